"""Small real training runs for the tests of `spi_diffusers.training`, in this process or in others."""

import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

import torch

from spi_diffusers.config.layers import make_train_config
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.leftovers import name_aside
from spi_diffusers.training.checkpoint import Checkpoint, CheckpointStore
from spi_diffusers.training.trainer import Trainer, TrainingResult

TIMINGS = {"seconds", "updates_per_second"}


def tiny_config(output_dir, dataset=None, **overrides) -> TrainConfig:
    """Seconds of training: tiny networks, one thread."""
    settings = {
        "task": "ballcircle",
        "dataset": None if dataset is None else str(dataset),
        "output_dir": str(output_dir),
        "updates": 20,
        "batch_size": 32,
        "threads": 1,
        "device": "cpu",
        "log_every": 3,
        "checkpoint_every": 5,
    }
    if overrides.get("algorithm", "spi").startswith("spi"):
        settings |= {"network.hidden_dims": [32, 32], "network.time_embed_dim": 8}
    return make_train_config(settings | overrides)


def run(config, dataset) -> tuple[Trainer, TrainingResult]:
    """Train in this process, without a progress bar."""
    trainer = Trainer(config, dataset, progress=False)
    return trainer, trainer.train()


def newest_checkpoint(output_dir) -> Checkpoint:
    checkpoint = CheckpointStore(Path(output_dir) / "checkpoints").load_newest()
    assert checkpoint is not None
    return checkpoint


def assert_same_training(first: Checkpoint, second: Checkpoint) -> None:
    """Bit for bit: weights, averages, optimisers, random state and the next update's inputs."""
    assert first.step == second.step
    assert first.tensors.keys() == second.tensors.keys()
    different = [
        name for name, value in first.tensors.items() if not torch.equal(value, second.tensors[name])
    ]
    assert different == []


def read_metrics(output_dir) -> list[dict]:
    """metrics.jsonl without what the clock decides."""
    lines = (Path(output_dir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]


# ---- jobs in processes of their own, which tests may kill

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["spi_diffusers.training.train", "training_factory"])


def start_job(target, *args):
    process = _context.Process(target=target, args=args)
    process.start()
    return process


def train_job(overrides: dict, die_at: str | None = None) -> None:
    """Train as `spi train` does; with `die_at`, SIGKILL this process at that moment of a checkpoint."""
    if die_at is not None:
        _die_at(die_at)
    config = tiny_config(**overrides)
    Trainer(config, load_transitions(config.dataset, config.task), progress=False).train()


def cli_job(arguments: list[str], errors: str) -> None:
    """Run `spi` with its messages written to a file."""
    from spi_diffusers.cli import main

    with open(errors, "w") as sys.stderr:
        code = main(arguments)
    sys.exit(code)


def train_until_sigterm_job(temporary: str, moment: str, data: str, settings: dict) -> None:
    """`train()` without an output folder, which gets SIGTERM when it opens its data, or in its updates."""
    from spi_diffusers import train

    def end(_=None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    if moment == "loading":
        sys.addaudithook(lambda event, args: end() if event == "open" and args[0] == data else None)
    tempfile.tempdir = temporary
    train("ballcircle", dataset=data, callback=end, **settings)


def train_with_file_size_limit_job(overrides: dict, limit: int, report: str) -> None:
    """Train while no file may grow beyond `limit` bytes: what a full disk looks like, without filling one."""
    config = tiny_config(**overrides)
    trainer = Trainer(config, load_transitions(config.dataset, config.task), progress=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        trainer.train()
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(report).write_text(f"{type(error).__name__}: {error}")


def _die_at(moment: str) -> None:
    """Kill this process, as from outside, at a moment of the second checkpoint's life."""
    from spi_diffusers import files
    from spi_diffusers.training import checkpoint

    def die(*_args):
        os.kill(os.getpid(), signal.SIGKILL)

    write, replace, remove = checkpoint.write_durably, files.replace_folder, checkpoint.remove_folder
    seen = {"write": 0, "replace": 0}

    def write_durably(path, content):
        seen["write"] += 1
        if moment == "half of the tensors" and seen["write"] == 3:
            path.write_bytes(content[: len(content) // 2])
            die()
        write(path, content)
        if moment == "tensors, no state" and seen["write"] == 3:
            die()

    def replace_folder(aside, target):
        seen["replace"] += 1
        if moment == "complete, not renamed" and seen["replace"] == 2:
            die()
        replace(aside, target)
        if moment == "renamed, not pruned" and seen["replace"] == 2:
            die()

    def remove_folder(folder):
        if moment == "half removed":
            aside = name_aside(folder)
            folder.rename(aside)
            (aside / "training_state.json").unlink()
            die()
        remove(folder)

    checkpoint.write_durably = write_durably
    files.replace_folder = replace_folder
    checkpoint.remove_folder = remove_folder


def save_policy_with_file_size_limit_job(overrides: dict, folder: str, limit: int, report: str) -> None:
    """Save a finished run's policy while no file may grow beyond `limit` bytes."""
    from spi_diffusers.training.export import save_policy

    config = tiny_config(**overrides, resume=True)
    trainer = Trainer(config, load_transitions(config.dataset, config.task), progress=False)
    trainer.train()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_policy(trainer, folder)
    except OSError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(report).write_text(f"{type(error).__name__}: {error}")
