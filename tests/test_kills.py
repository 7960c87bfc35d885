"""SIGKILLs at random moments of every job that writes; the same command then ends with the same bits.

Moments are drawn with a seed, over the time that the job takes uninterrupted.
"""

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time

import pytest
from collection_factory import tiny_config
from hub_server import TOKEN, HubServer
from policy_factory import make_run
from training_factory import TIMINGS

from spi_diffusers.collection.collector import clear_work, collect
from spi_diffusers.collection.config import CollectionSpec
from spi_diffusers.collection.dataset import is_collected

pytestmark = pytest.mark.slow
#: What the clock decides, and the checksums of files that hold such a thing.
CLOCK = TIMINGS | {"train_seconds", "steps_per_second", "sha256", "_sha256"}
COMPARED = {".json", ".jsonl", ".safetensors", ".parquet"}

TINY = """\
network: {hidden_dims: [16, 16], time_embed_dim: 8}
bc: {hidden_dims: [16, 16]}
batch_size: 32
threads: 1
device: cpu
"""
TRAIN = "train --task ballcircle --dataset data.npz --config tiny.yaml --output_dir run --quiet --resume"
BENCHMARK = "benchmark --suite table1 --tasks ballcircle --algorithms bc --seeds 0 --episodes 2 --quiet"
#: The command of each job, and how many of its runs are killed.
JOBS = {
    "training": (f"{TRAIN} --updates 300 --checkpoint_every 50 --log_every 5", 10),
    "checkpointing": (f"{TRAIN} --updates 60 --checkpoint_every 1 --log_every 5", 10),
    "export": (f"{TRAIN} --updates 20 --checkpoint_every 10 --log_every 5", 8),
    "collection": ("collect", 8),
    "evaluation": ("evaluate run --cost-limit 10 --episodes 1 --extraction safe --no-video --quiet", 5),
    "benchmark": (f"{BENCHMARK} --dataset data.npz --config tiny.yaml --updates 20 --output out", 5),
    "upload": ("publish run org/spi --quiet", 10),
}

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["spi_diffusers.training.train", "test_kills"])


def work(command, folder, endpoint):
    """Run a command in a folder, in a process of its own."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open("said.txt", "a")  # noqa: SIM115  (this process may be killed)
    if command == "collect":
        # As `spi data collect`, but with a checkpoint after every round of a few steps.
        spec = CollectionSpec("ballcircle", "set", tiny_config(runs=2, steps=1200), checkpoint_every=1)
        clear_work(spec) if is_collected(spec) else collect(spec)
        return
    if endpoint:
        from huggingface_hub import constants

        constants.ENDPOINT, constants.HF_HUB_DISABLE_XET = endpoint, True
        constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        os.environ |= {"HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
    from spi_diffusers.cli import main

    sys.exit(main(command.split()))


def start(command, folder, endpoint=None):
    process = _context.Process(target=work, args=(command, str(folder), endpoint))
    process.start()
    return process


def complete(command, folder, endpoint=None):
    process = start(command, folder, endpoint)
    process.join()
    assert process.exitcode == 0, (folder / "said.txt").read_text()[-2000:]


def without_clock(value):
    if isinstance(value, dict):
        return {key: without_clock(one) for key, one in value.items() if key not in CLOCK}
    return [without_clock(one) for one in value] if isinstance(value, list) else value


def bits(folder):
    """What a job has left, by path: content where the clock does not decide it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name == "said.txt" or ("/runs/" in name and "/checkpoints/" in name):
            continue  # an orphan of a benchmark makes a checkpoint wherever it is
        content = path.read_bytes() if path.suffix in COMPARED else b""
        if path.suffix.startswith(".json"):
            content = (
                [without_clock(json.loads(line)) for line in content.splitlines()]
                if (path.suffix == ".jsonl")
                else without_clock(json.loads(content))
            )
        found[name] = content
    return found


@pytest.fixture(scope="module")
def start_folder(small_file, tmp_path_factory):
    """What the jobs start from: data and settings."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copy(small_file, folder / "data.npz")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def prepared(job, start_folder, folder):
    shutil.copytree(start_folder, folder)
    if job == "evaluation":
        complete(f"{TRAIN} --updates 5", folder)
    if job == "upload":
        make_run(folder / "run")
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_the_same_command_after_a_kill_ends_with_the_same_bits(job, start_folder, tmp_path):
    command, kills = JOBS[job]
    ready = prepared(job, start_folder, tmp_path / "ready")
    chance, killed, attempts, seconds = random.Random(job), 0, 0, math.inf
    expected, there = {}, {}
    while killed < kills:
        attempts += 1
        assert attempts < 3 * kills, "hardly any run is killed before it is done"
        folder = shutil.copytree(ready, tmp_path / "work")
        with HubServer() as hub:
            endpoint = hub.url if job == "upload" else None
            if attempts > 2:  # the first warms up, the second is what it should come to
                process = start(command, folder, endpoint)
                time.sleep(chance.uniform(0.0, seconds))
                process.kill()
                process.join()
                killed += process.exitcode == -signal.SIGKILL
                if job == "upload" and ("models", "org/spi") in hub.store.repos:
                    files = set(hub.store.get("models", "org/spi").files)
                    assert files in (set(), {".gitattributes"}, set(there)), "half of it is visible"
            started = time.monotonic()
            complete(command, folder, endpoint)
            if attempts <= 2:
                seconds = min(seconds, time.monotonic() - started)
            uploaded = dict(hub.store.get("models", "org/spi").files) if endpoint else {}
        if attempts <= 2:
            expected, there = bits(folder), uploaded
        assert bits(folder) == expected
        assert uploaded == there
        assert not list(folder.rglob(".*")), "something half written is left"
        shutil.rmtree(folder)
