"""Every command and snippet of README.md is run here, made small; and its tables are up to date."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent

SMALL_TRAINING = "--updates 10 --network.hidden_dims 16 16 --calibrate false"
#: What is added to each command to make it small; later options win over earlier ones. A command that is
#: not listed fails the test: list it.
COMMANDS = {
    "spi tasks": "",
    "spi train --help": "",
    "spi data convert SOURCE FOLDER": "",
    "spi data describe DATASET": "",
    "spi data push FOLDER ORG/NAME": "--help",  # needs a Hub: tests/hub runs it
    "spi card outputs/ballcircle-seed0": "",
    "spi card FOLDER": "--help",
    "spi publish FOLDER ORG/NAME": "--help",  # needs a Hub: tests/hub runs it
    "spi publish FOLDER ORG/NAME --dry-run": "--help",
    "spi publish --all FOLDER ORG": "--help",
    "spi play outputs/ballcircle-seed0 --cost-limit 20 --seed 1": "",
    "spi compare outputs/ballcircle-seed0 outputs/demo --best": "",
    "spi leaderboard TASK --author ORG": "--help",  # needs a Hub: tests/hub runs it
    "spi benchmark --suite table1 --tasks ballcircle --seeds 0": "--algorithms bc --updates 10 --episodes 1",
    "spi benchmark --report outputs/benchmark --output outputs/report": "",
    "spi data collect --task ballcircle --output outputs/datasets": "--steps 1",
    "spi train --task ballcircle": SMALL_TRAINING,
    "spi evaluate outputs/ballcircle-seed0 --cost-limit 10 20 40 --episodes 20 --seeds 0": "--episodes 1",
    "accelerate launch scripts/train.py --task OfflineBallCircle-v0": f"{SMALL_TRAINING} --output_dir a",
    "torchrun --nproc_per_node 2 scripts/train.py --task ballcircle": f"{SMALL_TRAINING} --output_dir t",
    'pip install -e ".[bullet,mujoco,video]" -c constraints.txt': "--dry-run -q --disable-pip-version-check",
}
PLACEHOLDERS = {
    "SOURCE": str(ROOT / "spi_diffusers" / "data" / "embedded"),
    "FOLDER": "converted",
    "DATASET": "embedded",
}
#: Make targets: checked to exist and to run this. `make demo`'s script is run by a test of its own.
MAKE_TARGETS = {
    "make demo": "scripts/demo.py",
    "make test": "-m pytest",
    "make test-slow": "-m pytest -m slow",
    "make results": "spi benchmark --suite safe",
    "make cards": "scripts/render_model_cards.py",
    "make benchmark": "scripts/benchmark_training.py",
}


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def readme_commands() -> list[str]:
    """Lines of the bash blocks, and inline code that starts with a program's name."""
    lines = [line for block in readme_blocks("bash") for line in block.strip().splitlines()]
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    inline = re.findall(r"`([^`]+)`", text)
    programs = ("spi ", "accelerate ", "torchrun ", "make ", "pip ")
    return lines + [code.replace("\n", " ") for code in inline if code.startswith(programs)]


def run(words: list[str], cwd: Path) -> str:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, f"{words}:\n{process.stdout[-3000:]}\n{process.stderr[-3000:]}"
    return process.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `make demo` has just run, small."""
    folder = tmp_path_factory.mktemp("readme")
    for name in (
        "scripts",
        "results",
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "spi_diffusers",
    ):
        (folder / name).symlink_to(ROOT / name)
    output = run([sys.executable, "scripts/demo.py", "--updates", "20", "--episodes", "2"], folder)
    assert "feasible among 48 candidates" in output
    return folder


def test_demo_leaves_what_the_readme_says(workplace: Path) -> None:
    demo = workplace / "outputs" / "demo"
    for name in ("policy/model_index.json", "results.json", "limits.png", "training.png", "replay.mp4"):
        assert (demo / name).stat().st_size > 0


def test_commands_of_the_readme_run(workplace: Path) -> None:
    seen = [command for command in readme_commands() if not command.startswith("make ")]
    assert set(seen) == set(COMMANDS)
    for command in dict.fromkeys(seen):
        words = shlex.split(f"{command} {COMMANDS[command]}")
        words = [PLACEHOLDERS.get(word, word) for word in words]
        run([str(BIN / words[0]), *words[1:]], workplace)


@pytest.mark.parametrize("index", range(len(readme_blocks("python"))))
def test_python_snippets_of_the_readme_run(workplace: Path, index: int) -> None:
    run([sys.executable, "-c", readme_blocks("python")[index]], workplace)


def test_make_targets_of_the_readme_exist() -> None:
    mentioned = {command for command in readme_commands() if command.startswith("make ")}
    assert mentioned == set(MAKE_TARGETS)
    for command, expected in MAKE_TARGETS.items():
        assert expected in run([*command.split(), "--dry-run"], ROOT)


def test_tables_of_the_readme_are_up_to_date() -> None:
    run([sys.executable, str(ROOT / "scripts" / "update_readme.py"), "--check"], ROOT)


def test_files_that_the_readme_links_to_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert missing == []
