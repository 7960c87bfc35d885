"""A published policy, loaded by fresh processes with and without the package: the same actions everywhere."""

import itertools
import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from hub_client import run_client
from hub_server import HubServer
from policy_factory import make_run

from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish import copy_folder
from spi_diffusers.pipelines.saving import seal_folder

# One process runs a list of scripts: importing torch and diffusers takes seconds.
CLIENT = """
import contextlib, io, json, sys
if sys.argv[1] == "without":
    sys.modules["spi_diffusers"] = None  # importing it, or any part of it, is an ImportError
answers = []
for script in json.loads(sys.argv[2]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(script, "script", "exec"), {"__name__": "__main__"})
        except SystemExit as error:
            out.write(f"exit {error.code}")
        except Exception as error:
            out.write(f"{type(error).__name__}: {error}")
    answers.append(out.getvalue())
print("ANSWERS" + json.dumps(answers))
"""

ACT = """
import hashlib, torch
observation = torch.linspace(-1, 1, 16).reshape(2, 8)
seed = torch.Generator().manual_seed(3)
found = [
    pipe(observation, generator=seed, cost_limit=10.0),
    pipe(observation, generator=seed, cost_budget=5.0, steps_left=20),
    pipe(observation, generator=seed, extraction="reward"),
]
tensors = [value for output in found for value in output.values()]
controller = pipe.controller(5.0, num_envs=2, max_episode_steps=20)
controller.reset()
assert torch.equal(controller.act(observation), found[1].actions)
print(hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in tensors)).hexdigest())
"""
PACKAGE = "from spi_diffusers import SPIPolicyPipeline\npipe = SPIPolicyPipeline.from_pretrained({})\n" + ACT
DIFFUSERS = "from diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained({})\n" + ACT


def run_scripts(which, environment, folder, *scripts):
    return run_client(CLIENT, environment, folder, which, json.dumps(scripts))


def command(*words):
    return f"from spi_diffusers.cli import main\nraise SystemExit(main({list(words)!r}))"


def snippets(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


#: What a user runs who has the card: its loading snippet, and its commands for the training's configuration.
CARD = """
import re, sys
from huggingface_hub import hf_hub_download
card = open(hf_hub_download("org/spi", "README.md")).read()
"""
LOADING = CARD + 'exec(re.findall(r"```python\\n(.*?)```", card, re.DOTALL)[0])'
FETCHING = (
    CARD
    + """
from huggingface_hub.cli.hf import main
sys.argv = ["hf", *re.search(r"```bash\\nhf (.*?)\\n", card)[1].split()]
main()
"""
)
TASK = """
from spi_diffusers.config.layers import make_train_config
print(make_train_config({}, config_file="train_config.json").task)
"""


@dataclass
class Published:
    """A Hub that a process with the package has published to and loaded from."""

    hub: HubServer
    folder: Path
    trace: Path
    answers: dict[str, list[str]]
    errors: str


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    run = make_run(folder / "run")
    evil, trace = make_evil(run, folder)
    publish = ["publish", str(run), "org/spi", "--quiet"]
    scripts = {
        "publishing": [
            command(*publish, "--dry-run", "--output", "copy"),
            command(*publish, "--private", "--tag", "v1"),
            command(*publish),
            command(*publish, "--create-pr", "--tag", "v2"),
        ],
        "acting": [
            PACKAGE.format(repr(str(run / "policy"))),
            PACKAGE.format("'copy'"),
            PACKAGE.format("'org/spi'"),
            PACKAGE.format("'org/spi', revision='v1'"),
            PACKAGE.format("'org/spi', local_files_only=True"),
            DIFFUSERS.format("'org/spi', trust_remote_code=True"),
        ],
        "card": [FETCHING, TASK, LOADING],
        "pushing": [
            "from spi_diffusers import SPIPolicyPipeline\n"
            "pipe = SPIPolicyPipeline.from_pretrained('org/spi')\n"
            "print(pipe.push_to_hub('org/spi'), pipe.push_to_hub('lab/copy'))",
        ],
        "evil": [
            PACKAGE.format("'org/evil'"),
            PACKAGE.format("'org/evil', trust_remote_code=True"),  # known classes are the package's own
            PACKAGE.format("'evil'"),
            PACKAGE.format("'org/new'"),
            DIFFUSERS.format("'org/evil'"),
        ],
    }
    with HubServer() as hub:
        for name, files in evil.items():
            hub.store.put("models", name, files)
        flat = [script for group in scripts.values() for script in group]
        answers, errors = run_scripts("with", hub.environment(folder / "home"), folder, *flat)
        rest = iter(answers)
        groups = {name: list(itertools.islice(rest, len(group))) for name, group in scripts.items()}
        yield Published(hub, folder, trace, groups, errors)


def make_evil(run, parent):
    """Repositories as published, but their code leaves a trace; the second has a class of its own, too."""
    folder = copy_folder(read_policy_files(run), "org/evil", parent / "evil")
    trace = parent / "executed"
    for path in folder.rglob("*.py"):
        path.write_text(f"open({str(trace)!r}, 'w').close()\n" + path.read_text())
    (folder / "noise_model" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    seal_folder(folder)
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    unknown = json.loads(files["model_index.json"]) | {"noise_model": ["noise_model", "Unheard"]}
    return {
        "org/evil": files,
        "org/new": files | {"model_index.json": json.dumps(unknown).encode()},
    }, trace


def test_published_by_the_command_it_loads_with_and_without_the_package(published, capsys):
    hub, folder, errors = published.hub, published.folder, published.errors
    dry, first, again, refused = published.answers["publishing"]
    assert dry.endswith("exit 0"), (dry, errors)
    assert "org/spi (model; will be made)" in dry
    assert "noise_model/diffusion_pytorch_model.safetensors" in dry
    assert "## Known failures" in dry
    assert "Dry run: nothing was changed on the Hub." in dry
    repo = hub.store.get("models", "org/spi")
    assert "Published: " in first, errors
    assert "verified by checksum" in first
    assert "Tagged: v1" in first
    assert "Next: spi evaluate org/spi" in first
    assert (repo.private, repo.tags["v1"], len(repo.commits)) == (True, repo.head.oid, 2)
    assert "Nothing to do: org/spi holds exactly these files" in again
    assert refused == "exit 2"
    assert "it goes without --tag" in errors
    actions = published.answers["acting"]
    assert len(actions[0].strip()) == 64, actions[0]
    assert actions == [actions[0]] * len(actions)

    # What came from the Hub goes back with its plots and video: nothing to commit, and a complete copy.
    copied = hub.store.get("models", "lab/copy").files
    (pushed,) = published.answers["pushing"]
    assert f"{hub.url}/org/spi/tree/{repo.head.oid} {hub.url}/lab/copy/commit/" in pushed, (pushed, errors)
    assert copied.keys() == repo.files.keys()
    assert {path for path in copied if copied[path] != repo.files[path]} == {"README.md"}

    # The card's training commands, and its loading snippet.
    _, task, played = published.answers["card"]
    assert (folder / "train_config.json").read_bytes() == repo.files["train_config.json"]
    assert task == "OfflineBallCircle-v0\n", errors[-3000:]
    if find_spec("pybullet"):
        assert re.fullmatch(r"cost \d+ of \d+\n", played), (played, errors[-3000:])

    # Where spi_diffusers cannot be imported, from a folder without anything cached.
    _, use = snippets(repo.files["README.md"].decode())
    answers, errors = run_scripts(
        "without",
        hub.environment(folder / "elsewhere"),
        folder,
        "import spi_diffusers.models",
        DIFFUSERS.format("'org/spi'"),
        DIFFUSERS.format("'org/spi', trust_remote_code=True"),
        DIFFUSERS.format("'org/spi', trust_remote_code=True, revision='v1'"),
        DIFFUSERS.format("'copy', trust_remote_code=True"),
        "from diffusers import DiffusionPipeline\n"
        "pipe = DiffusionPipeline.from_pretrained('copy', trust_remote_code=True)\n"
        "pipe.save_pretrained('again')\n"
        "pipe = type(pipe).from_pretrained('org/spi', trust_remote_code=True)\n" + ACT,
        use,
        "from diffusers import DiffusionPipeline\n"
        "DiffusionPipeline.from_pretrained('copy', trust_remote_code=True).push_to_hub('org/spi')",
    )
    assert answers[0].startswith("ModuleNotFoundError")
    assert answers[7].startswith("ImportError: Publishing needs the package")
    assert re.match(r"ValueError: .*trust_remote_code=True", answers[1], re.DOTALL)
    assert answers[2:6] == [actions[0]] * 4, errors[-3000:]
    assert re.fullmatch(r"tensor\(\[.*\]\)\n", answers[6]), answers[6]
    # diffusers would ask to install what is not needed
    assert "packages that were not found" not in errors

    # What was saved by the shipped code, with the package.
    capsys.readouterr()
    exec(PACKAGE.format(repr(str(folder / "again"))), {})
    assert capsys.readouterr().out == actions[0]


def test_code_of_a_repository_runs_only_if_it_is_trusted(published):
    answers = published.answers["evil"]
    assert answers[:3] == [published.answers["acting"][0]] * 3, published.errors[-3000:]
    assert "'noise_model' is a Unheard of noise_model, which this version does not know" in answers[3]
    assert answers[4].startswith("ValueError")
    assert not published.trace.exists()
