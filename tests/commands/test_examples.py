"""The examples in the help of every command: all can be read, and the first of each runs, made small."""

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from hub_client import run_client
from hub_server import HubServer
from policy_factory import make_run

from spi_diffusers.cli import COMMANDS, main, make_parser
from spi_diffusers.commands import data
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish import copy_folder

ROOT = Path(__file__).parents[2]
MODULES = {name: importlib.import_module(f"spi_diffusers.commands.{name}") for name in COMMANDS}
MODULES |= {f"data {name}": module for name, (module, _) in data.COMMANDS.items()}

#: What makes the first example small, or keeps it from changing anything.
SMALL = {
    "train": "--updates 3 --network.hidden-dims 16 --batch-size 32 --threads 1 --device cpu --quiet",
    "evaluate": "--cost-limit 10 --episodes 1 --extraction reward --no-plots --no-video --quiet",
    "certify": "--cost-limit 10 --episodes 1 --quiet",
    "assess": "--dataset embedded --episodes 2",
    "distill": "--dataset embedded --updates 2 --quiet",
    "play": "--quiet",
    "benchmark": "--dry-run",
    "publish": "--quiet",
    "data convert": "--quiet",
    "data collect": "--steps 3200 --quiet",
    "data push": "--quiet",
}
SIMULATED = ("evaluate", "certify", "data collect")

CLIENT = """
import contextlib, io, json, sys
from spi_diffusers.cli import main
answers = {}
for name, words in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as error:
            code = error.code
    answers[name] = [code, out.getvalue(), err.getvalue()]
print("ANSWERS" + json.dumps(answers))
"""


def examples(module) -> list[list[str]]:
    """The words of each command below "examples:", without what is said of it."""
    block = module.EXAMPLES.partition("examples:\n")[2].partition("\n\n")[0].replace("\\\n", " ")
    lines = [re.split(r" {3,}| > ", line.strip())[0] for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line))]


@pytest.mark.parametrize("name", MODULES)
def test_every_example_can_be_read(name):
    commands = [words for words in examples(MODULES[name]) if words[0] == "spi"]
    assert any(" ".join(words[1:]).startswith(f"{name} ") for words in commands)
    for words in commands:
        args, unknown = make_parser([words[1]]).parse_known_args(words[1:])
        assert unknown == [], words
        assert callable(args.run)


def first_examples() -> dict[str, list[str]]:
    """The words of each command's first example, made small."""
    found = {name: examples(module)[0][1:] for name, module in MODULES.items() if name != "data"}
    found = {name: [*words, *SMALL.get(name, "").split()] for name, words in found.items()}
    found["train"] += ["--output-dir", "run"]
    for name in ("data convert", "data push"):  # datasets/ is the repository's own
        found[name] = ["mine/set" if word == "datasets/mine" else word for word in found[name]]
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, small_file):
    """A folder in which the first examples find what they are about."""
    folder = tmp_path_factory.mktemp("workplace")
    make_run(folder / "outputs" / "ballcircle-seed0")
    (folder / "datasets").symlink_to(ROOT / "datasets")
    (folder / "mine").mkdir()
    shutil.copy(small_file, folder / "logs.npz")
    return folder


@pytest.fixture(scope="module")
def answers(workplace):
    """Code, output and errors of each command's first example, in one process: imports take seconds."""
    run = workplace / "outputs" / "ballcircle-seed0"
    published = copy_folder(read_policy_files(run), "org/spi-ballcircle", workplace / "published")
    commands = {name: words for name, words in first_examples().items() if name not in ("play", "space")}
    with HubServer() as hub:
        files = {
            p.relative_to(published).as_posix(): p.read_bytes() for p in published.rglob("*") if p.is_file()
        }
        hub.store.put("models", "org/spi-ballcircle", files)
        environment = hub.environment(workplace / "home")
        found, _ = run_client(CLIENT, environment, workplace, json.dumps(commands), timeout=300)
    return found


# `spi space` serves until Ctrl-C; tests/spaces/test_page.py runs it.
@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("data", "play", "space")])
def test_the_first_example_runs(answers, name):
    if name in SIMULATED:
        pytest.importorskip("bullet_safety_gym")
    code, output, errors = answers[name]
    assert (code, "Traceback" in errors) == (0, False), (output, errors)
    assert output.strip()


@pytest.mark.slow
def test_the_first_example_of_play_runs(workplace, monkeypatch, capsys):
    pytest.importorskip("bullet_safety_gym")
    monkeypatch.chdir(workplace)
    assert main(first_examples()["play"]) == 0
    assert "Written: outputs/play/" in capsys.readouterr().out
