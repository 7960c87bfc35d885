"""Collections small enough for tests: three environments, 600 steps a round."""

import multiprocessing

from spi_diffusers.collection.collector import collect
from spi_diffusers.collection.config import CollectConfig, load_collect_config

_context = multiprocessing.get_context("spawn")

TINY = {
    "num_envs": 3,
    "num_probes": 1,
    "segment_steps": 50,
    "epochs": 2,
    "minibatch_size": 40,
    "hidden_dims": (8,),
}


def tiny_config(task: str = "ballcircle", **overrides) -> CollectConfig:
    return load_collect_config(task, **{**TINY, "steps": 2400, **overrides})


def start_collection(folder, **options):
    """Collect in a process of its own, with a checkpoint after every round."""
    process = _context.Process(target=_collect_job, args=(str(folder), options))
    process.start()
    return process


def _collect_job(folder: str, options: dict) -> None:
    collect("ballcircle", folder, tiny_config(runs=2), checkpoint_every=1, **options)
