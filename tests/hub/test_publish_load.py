"""A published policy, loaded by fresh processes with and without the package: the same actions everywhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer
from policy_factory import make_run

from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish import copy_folder

REPOSITORY = Path(__file__).parents[2]

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
print(hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in tensors)).hexdigest())
"""
PACKAGE = "from spi_diffusers import SPIPolicyPipeline\npipe = SPIPolicyPipeline.from_pretrained({})\n" + ACT
DIFFUSERS = "from diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained({})\n" + ACT


def run_scripts(which, environment, folder, *scripts):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    process = subprocess.run(
        [sys.executable, "-c", CLIENT, which, json.dumps(scripts)],
        env=clean | {"PYTHONPATH": str(REPOSITORY)} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "ANSWERS" in process.stdout, process.stderr[-3000:]
    return json.loads(process.stdout.partition("ANSWERS")[2]), process.stderr


def command(*words):
    return f"from spi_diffusers.cli import main\nraise SystemExit(main({list(words)!r}))"


def snippets(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_published_by_the_command_it_loads_with_and_without_the_package(tmp_path):
    run = make_run(tmp_path / "run")
    publish = ["publish", str(run), "org/spi", "--quiet"]
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "home")
        answers, errors = run_scripts(
            "with",
            environment,
            tmp_path,
            command(*publish, "--dry-run", "--output", "copy"),
            command(*publish, "--private", "--tag", "v1"),
            command(*publish),
            command(*publish, "--create-pr", "--tag", "v2"),
            PACKAGE.format(repr(str(run / "policy"))),
            PACKAGE.format("'copy'"),
            PACKAGE.format("'org/spi'"),
            PACKAGE.format("'org/spi', revision='v1'"),
            PACKAGE.format("'org/spi', local_files_only=True"),
            DIFFUSERS.format("'org/spi', trust_remote_code=True"),
            "from spi_diffusers import SPIPolicyPipeline\n"
            "pipe = SPIPolicyPipeline.from_pretrained('org/spi')\n"
            "print(pipe.push_to_hub('org/spi'), pipe.push_to_hub('lab/copy'))",
        )
        dry, published, again, refused, *actions, pushed = answers
        assert dry.endswith("exit 0"), (dry, errors)
        assert "org/spi (model; will be made)" in dry
        assert "noise_model/diffusion_pytorch_model.safetensors" in dry
        assert "## Known failures" in dry
        assert "Dry run: nothing was changed on the Hub." in dry
        repo = hub.store.get("models", "org/spi")
        assert "Published: " in published, errors
        assert "verified by checksum" in published
        assert "Tagged: v1" in published
        assert "Next: spi evaluate org/spi" in published
        assert (repo.private, repo.tags["v1"], len(repo.commits)) == (True, repo.head.oid, 2)
        assert "Nothing to do: org/spi holds exactly these files" in again
        assert refused == "exit 2"
        assert "it goes without --tag" in errors
        assert len(actions[0].strip()) == 64, actions[0]
        assert actions == [actions[0]] * len(actions)

        # What came from the Hub goes back with its plots and video: nothing to commit, and a complete copy.
        copied = hub.store.get("models", "lab/copy").files
        assert f"{hub.url}/org/spi/tree/{repo.head.oid} {hub.url}/lab/copy/commit/" in pushed, (
            pushed,
            errors,
        )
        assert copied.keys() == repo.files.keys()
        assert {path for path in copied if copied[path] != repo.files[path]} == {"README.md"}

        # Where spi_diffusers cannot be imported, from a folder without anything cached.
        loading, use = snippets(repo.files["README.md"].decode())
        there = hub.environment(tmp_path / "elsewhere")
        answers, errors = run_scripts(
            "without",
            there,
            tmp_path,
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
        assert (
            "packages that were not found" not in errors
        )  # diffusers would ask to install what is not needed

        # The other snippet of the card, its training commands, and what was saved by the shipped code.
        words = re.search(r"```bash\nhf (.*?)\n", repo.files["README.md"].decode())[1].split()
        answers, errors = run_scripts(
            "with",
            environment,
            tmp_path,
            loading,
            f"import sys\nfrom huggingface_hub.cli.hf import main\nsys.argv = ['hf', *{words!r}]\nmain()",
            "from spi_diffusers.config.layers import make_train_config\n"
            "print(make_train_config({}, config_file='train_config.json').task)",
            PACKAGE.format("'again'"),
        )
        pytest.importorskip("pybullet")
        assert re.fullmatch(r"cost \d+ of \d+\n", answers[0]), (answers[0], errors[-3000:])
        assert (tmp_path / "train_config.json").read_bytes() == repo.files["train_config.json"]
        assert answers[2:] == ["OfflineBallCircle-v0\n", actions[0]], errors[-3000:]


def test_code_of_a_repository_runs_only_if_it_is_trusted(tmp_path):
    """The repository is as published, but its code leaves a trace."""
    run = make_run(tmp_path / "run")
    folder = copy_folder(read_policy_files(run), "org/evil", tmp_path / "evil")
    trace = tmp_path / "executed"
    for path in folder.rglob("*.py"):
        path.write_text(f"open({str(trace)!r}, 'w').close()\n" + path.read_text())
    (folder / "noise_model" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    unknown = json.loads(files["model_index.json"]) | {"noise_model": ["noise_model", "Unheard"]}
    with HubServer() as hub:
        hub.store.put("models", "org/evil", files)
        hub.store.put("models", "org/new", files | {"model_index.json": json.dumps(unknown).encode()})
        answers, errors = run_scripts(
            "with",
            hub.environment(tmp_path / "home", TOKEN),
            tmp_path,
            PACKAGE.format("'org/evil'"),
            PACKAGE.format("'org/evil', trust_remote_code=True"),  # known classes are the package's own
            PACKAGE.format("'evil'"),
            PACKAGE.format("'org/new'"),
            DIFFUSERS.format("'org/evil'"),
        )
        assert len(answers[0].strip()) == 64, errors[-3000:]
        assert answers[:3] == [answers[0]] * 3
        assert "'noise_model' is a Unheard of noise_model, which this version does not know" in answers[3]
        assert answers[4].startswith("ValueError")
        assert not trace.exists()
        fetched = {path.suffix for path in (tmp_path / "home").rglob("snapshots/*/**/*.bin")}
        assert not fetched
        run_scripts(
            "without",
            hub.environment(tmp_path / "home"),
            tmp_path,
            DIFFUSERS.format("'org/evil', trust_remote_code=True"),
        )
        assert trace.exists()  # so the trace would have been seen above
