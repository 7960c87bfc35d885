"""Collections small enough for tests: three environments, 600 steps a round."""

import multiprocessing

from spi_diffusers.collection.collector import collect
from spi_diffusers.collection.config import CollectConfig, CollectionSpec, load_collect_config

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


def collect_one(task, folder, config, *, workers=1, on_progress=None, **options):
    """Collect one dataset; the options are the spec's."""
    spec = CollectionSpec(task, folder, config, **options)
    (dataset,) = collect(spec, workers=workers, on_progress=on_progress)
    return dataset


def start_collection(folder, **options):
    """Collect in a process of its own, with a checkpoint after every round."""
    process = _context.Process(target=_collect_job, args=(str(folder), options))
    process.start()
    return process


def _collect_job(folder: str, options: dict) -> None:
    collect_one("ballcircle", folder, tiny_config(runs=2), checkpoint_every=1, **options)
