"""Every snippet and command of README.md, CONTRIBUTING.md, policies/README.md and docs/ runs, made small.

Each page runs from top to bottom in a folder of its own, in this process, as a user would who copies block
after block. What makes it small is `SMALL_CALLS` for Python, `SMALL_COMMANDS` for commands, and
`SMALL_CONSTANTS` for what both call. `NOT_RUN` lists the commands that are not run, with the reason.
"""

import ast
import contextlib
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from hub_server import TOKEN, HubServer

from spi_diffusers.benchmark.cells import run_cell
from spi_diffusers.benchmark.runner import LocalExecutor
from spi_diffusers.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "policies/README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
BIN = Path(sys.executable).parent

#: Keywords that calls in Python snippets get. A baseline trains as it is, only shorter.
SMALL_CALLS: dict[str, dict[str, Any]] = {
    "train": {"updates": 10, "network": {"hidden_dims": [16, 16]}},
    "train a baseline": {"updates": 10},
    "evaluate": {"episodes": 1},
}
#: Options that commands get, by how they begin; the longest beginning counts.
SMALL_COMMANDS = {
    "spi train": "--updates 10 --network.hidden-dims 16 16",
    "spi train --task ballcircle --algorithm bcq-lag": "--updates 10",
    "spi train --task ballcircle --algorithm cdt": "--updates 2 --batch-size 8",
    "spi train --task ballcircle --algorithm caps": "--updates 2 --batch-size 8",
    "spi evaluate": "--episodes 1",
    "spi certify outputs/ballcircle-seed0": "--episodes 1 --cost-limit 10",
    # No episode costs more, so that a policy of ten updates passes.
    "spi certify outputs/ballcircle-seed0 --cost-limit 20": "--episodes 2 --cost-limit 200 --risk 0.9",
    "spi distill": "--updates 10",
    "spi benchmark --suite": "--algorithms bc --updates 10 --episodes 1",
    "spi data collect": "--steps 1",
}
#: Constants of this package while pages run: measuring and drawing take most of the time.
SMALL_CONSTANTS = {
    "spi_diffusers.evaluation.video.MAX_FRAMES": 4,
    "spi_diffusers.evaluation.certify.MARGINS": (1.0,),
}
#: Lines that are not run here, by how they begin, with the reason.
NOT_RUN = {
    "source": "the tests run in an environment already",
    "make": "test_make_targets looks at what they run; the demo's script has run before every page",
    "pip install": "test_installation does, as far as it goes without a network",
    "npm install": "the slow test of docs/examples/act.js does",
    "node": "the slow test of docs/examples/act.js does",
    "torchrun": "test_training_on_two_processes does",
    "accelerate launch": "test_training_on_two_processes does",
    "spi space": "it serves until Ctrl-C; tests/spaces/test_page.py runs it, and a browser looks at it",
    "spi benchmark --suite table1 --dataset datasets --ray-address": "tests/benchmark has a cluster",
    "python scripts/benchmark_training.py --device cuda": "there is no GPU; tests/scripts has what says so",
}
MAKE_TARGETS = {
    "make demo": "scripts/demo.py",
    "make test": "-m pytest",
    "make test-slow": "-m pytest -m slow",
    "make test PYTHON=python3.13 VENV=.venv-3.13": ".venv-3.13/bin/python -m pytest",
    "make lint": "ruff check",
    "make docs": "mkdocs build --strict",
    "make results": "spi benchmark --suite safe",
    "make cards": "scripts/render_model_cards.py",
    "make policies": "scripts/make_policies.py",
    "make benchmark": "scripts/benchmark_training.py",
}
#: Pages that train `outputs/ballcircle-seed0` themselves; the others find it, trained and evaluated.
FROM_SCRATCH = ("README.md", "docs/quickstart.md")


def blocks(page: str) -> Iterator[tuple[str, str, str]]:
    """Language, title and text of the fenced blocks of a page."""
    for language, info, text in re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", PAGES[page], re.DOTALL | re.M):
        title = re.search(r'title="([^"]+)"', info)
        yield language, title[1] if title else "", text


def commands(text: str) -> list[str]:
    """Lines of a bash block; those that end in a backslash go on."""
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def beginning(command: str, table: dict[str, str]) -> str | None:
    """The longest key of the table that the command begins with."""
    return max((key for key in table if f"{command} ".startswith(f"{key} ")), key=len, default=None)


class _MakeSmall(ast.NodeTransformer):
    """Gives calls the keywords of `SMALL_CALLS`."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        algorithm = next((k.value.value for k in node.keywords if k.arg == "algorithm"), "spi")
        if name == "train" and not algorithm.startswith("spi"):
            name = "train a baseline"
        small = SMALL_CALLS.get(name, {})
        kept = [keyword for keyword in node.keywords if keyword.arg not in small]
        added = [ast.keyword(key, ast.parse(repr(value), mode="eval").body) for key, value in small.items()]
        node.keywords = kept + added
        return node


def run_python(text: str, names: dict[str, Any], page: str) -> None:
    tree = ast.fix_missing_locations(_MakeSmall().visit(ast.parse(text)))
    exec(compile(tree, page, "exec"), names)


def run_command(command: str) -> None:
    if beginning(command, NOT_RUN):
        return
    key = beginning(command, SMALL_COMMANDS)
    words = shlex.split(f"{command} {SMALL_COMMANDS[key] if key else ''}")
    if words[0] == "python":
        run_script(words[1:])
        return
    assert words[0] == "spi", f"{command}: is neither run nor listed in NOT_RUN"
    try:
        code = main(words[1:])
    except SystemExit as end:  # --help
        code = end.code
    assert code == 0, f"{command} ended with {code}"


def run_script(words: list[str]) -> None:
    """As `python FILE ...` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        patch.syspath_prepend(Path(words[0]).resolve().parent)
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{words} ended with {end.code}") from end


def make_links(folder: Path) -> None:
    folders = ("scripts", "results", "datasets", "docs", "policies", "spi_diffusers")
    for name in (*folders, "pyproject.toml", "README.md"):
        (folder / name).symlink_to(ROOT / name)


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL_CONSTANTS.items():
            patch.setattr(name, value)
        # Cells of a benchmark run in this process, where torch is imported already.
        patch.setattr(LocalExecutor, "run", lambda executor, folder: run_cell(folder))
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `make demo`, `spi train --task ballcircle` and its evaluation have run, small."""
    pytest.importorskip("bullet_safety_gym")
    folder = tmp_path_factory.mktemp("prepared")
    make_links(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        mpl.use("agg")

        importlib.import_module("spi_diffusers.training.train")  # gets the function as it is
        run_script(["scripts/demo.py", "--updates", "10", "--width", "16", "--episodes", "1"])
        run_command("spi train --task ballcircle --quiet")
        run_command("spi evaluate outputs/ballcircle-seed0 --no-video --no-plots --quiet")
    return folder


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> Path:
    make_links(tmp_path)
    shutil.copytree(prepared / "outputs", tmp_path / "outputs")
    if request.node.callspec.params["page"] in FROM_SCRATCH:
        shutil.rmtree(tmp_path / "outputs" / "ballcircle-seed0")
    (tmp_path / "data").mkdir()
    shutil.copytree(ROOT / "spi_diffusers" / "data" / "embedded", tmp_path / "data" / "robot")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """The Hub of the tests, on the loopback interface, as the one that everything goes to."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        cache = str(tmp_path_factory.mktemp("cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)  # diffusers asks this one
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", cache)
        yield server


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```bash" in PAGES[page] or "```python" in PAGES[page]]
)
def test_page_runs_from_top_to_bottom(page: str, place: Path, hub: HubServer) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, title, text in blocks(page):
        if language == "python" and title:
            Path(title).write_text(text, encoding="utf-8")
    for language, title, text in blocks(page):
        text = text.replace("my-org/", "org/").replace(" my-org", " org")
        if language == "python" and not title:
            run_python(text, names, page)
        for command in commands(text) if language == "bash" else ():
            run_command(command)


def test_demo_leaves_what_the_pages_say(prepared: Path) -> None:
    demo = prepared / "outputs" / "demo"
    for name in ("policy/model_index.json", "results.json", "limits.png", "training.png", "replay.mp4"):
        assert (demo / name).stat().st_size > 0


def all_commands() -> list[str]:
    return [
        line for page in PAGES for kind, _, text in blocks(page) if kind == "bash" for line in commands(text)
    ]


def inline(page: str) -> list[str]:
    """Inline code of a page."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.DOTALL | re.M)
    return [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", text)]


def test_make_targets() -> None:
    mentioned = {code for page in PAGES for code in inline(page) if re.fullmatch(r"make [a-z-]+", code)}
    mentioned |= {command for command in all_commands() if command.startswith("make ")}
    assert mentioned <= set(MAKE_TARGETS)
    for command in mentioned:
        process = subprocess.run(
            [*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert MAKE_TARGETS[command] in process.stdout


def test_installation() -> None:
    lines = [command for command in all_commands() if command.startswith("pip install")]
    assert lines
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in lines:
        for extra in re.findall(r"\[([\w,]+)\]", line):
            assert all(re.search(rf"^{name} = \[", project, re.M) for name in extra.split(","))
        assert all((ROOT / name).exists() for name in re.findall(r"-c (\S+)", line))


@pytest.mark.slow
def test_installation_needs_nothing_more() -> None:
    for line in dict.fromkeys(all_commands()):
        if line.startswith("pip install"):
            words = shlex.split(f"{line} --dry-run -q --disable-pip-version-check")
            subprocess.run([str(BIN / "python"), "-m", *words], cwd=ROOT, check=True, timeout=300)


@pytest.mark.slow
def test_training_on_two_processes(tmp_path: Path) -> None:
    make_links(tmp_path)
    lines = [line for line in all_commands() if line.startswith(("torchrun", "accelerate"))]
    assert len(lines) >= 2
    for number, line in enumerate(dict.fromkeys(lines)):
        words = shlex.split(f"{line} {SMALL_COMMANDS['spi train']} --output-dir run{number}")
        environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [str(BIN / words[0]), *words[1:]], cwd=tmp_path, env=environment, check=True, timeout=300
        )


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with contextlib.suppress(SystemExit):
        main(words)
    return capsys.readouterr().out


def test_options_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        option
        for page in PAGES
        for code in inline(page)
        for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", code)
    }
    subcommands = re.findall(r"^    ([a-z]+)  ", help_of(["--help"], capsys), re.M)
    data = [
        ["data", name] for name in re.findall(r"^    ([a-z]+)  ", help_of(["data", "--help"], capsys), re.M)
    ]
    helps = [help_of(["--help"], capsys), help_of(["train", "--help-all"], capsys)]
    helps += [help_of([*words, "--help"], capsys) for words in [*([name] for name in subcommands), *data]]
    known = set(re.findall(r"--[a-z][\w.-]*", "\n".join(helps)))
    known |= set(
        re.findall(r"--[a-z][\w-]*", (ROOT / "scripts" / "update_readme.py").read_text(encoding="utf-8"))
    )
    assert found
    assert found - known == set()


def test_files_in_the_text_exist() -> None:
    for page in PAGES:
        for code in inline(page):
            is_path = re.fullmatch(
                r"(spi_diffusers|scripts|tests|docs|results|datasets|policies)/[\w./-]*", code
            )
            if is_path and "NAME" not in code:
                assert (ROOT / code).exists(), f"{page}: {code}"


def test_tables_are_up_to_date() -> None:
    subprocess.run([sys.executable, "scripts/update_readme.py", "--check"], cwd=ROOT, check=True, timeout=300)


def test_files_that_pages_outside_of_the_site_link_to_exist() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#]+)\)", PAGES[page])
        missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
        assert missing == [], page
