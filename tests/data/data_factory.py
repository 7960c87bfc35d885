"""Small real datasets for the tests of `spi_diffusers.data`."""

import numpy as np

from spi_diffusers.data.arrays import DSRL_NAMES
from spi_diffusers.data.tasks import Task
from spi_diffusers.data.transitions import TransitionDataset


def make_columns(lengths=(3, 2, 4), observation_dim=8, action_dim=2, seed=0, terminated=()):
    """Episodes of the given lengths that chain; those in `terminated` end by the task, the rest by time."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths)
    walk = [rng.normal(size=(length + 1, observation_dim)).astype(np.float32) for length in lengths]
    ends = np.cumsum(lengths) - 1
    is_terminated = np.zeros(rows, dtype=bool)
    is_terminated[[ends[k] for k in terminated]] = True
    is_truncated = np.zeros(rows, dtype=bool)
    is_truncated[ends] = True
    is_truncated &= ~is_terminated
    return {
        "observation": np.concatenate([w[:-1] for w in walk]),
        "next_observation": np.concatenate([w[1:] for w in walk]),
        "action": rng.uniform(-1, 1, size=(rows, action_dim)).astype(np.float32),
        "reward": rng.normal(size=rows).astype(np.float32),
        "cost": rng.integers(0, 2, size=rows).astype(np.float32),
        "terminated": is_terminated,
        "truncated": is_truncated,
    }


def make_dataset(task: Task | None = None, **options) -> TransitionDataset:
    return TransitionDataset.from_columns(make_columns(**options), task=task, source="made for a test")


def to_dsrl(columns):
    """The same columns under DSRL's names and in DSRL's float flags."""
    as_flag = {"terminated", "truncated"}
    return {
        DSRL_NAMES[name]: values.astype(np.float32) if name in as_flag else values
        for name, values in columns.items()
    }


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
