"""Minari datasets, through the `minari` package, as transitions.

Minari has no column for the cost; it is in the recorded infos of every step (`record_infos=True`), where
safe environments put it under `cost`.
"""

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.tasks import MINARI_PREFIX, Task
from spi_diffusers.data.transitions import TransitionDataset


def load_minari(
    dataset: str | os.PathLike[str],
    task: Task | None = None,
    *,
    cost: str = "cost",
    clip_actions: bool = False,
) -> TransitionDataset:
    """Load a Minari dataset: `minari:` and an id (downloaded by Minari if it is not here), or a folder.

    `cost` names the entry of the infos that holds the cost of a step. An episode that Minari stored without
    an end is truncated at its last step. DatasetError where observations or actions are no vectors, there is
    no cost, or Minari or the checks refuse it; ImportError if minari is not installed.
    """
    source = str(dataset)
    try:
        minari: Any = importlib.import_module("minari")
    except ImportError as error:
        raise ImportError(
            f"{source}: reading Minari datasets needs minari: pip install 'spi-diffusers[minari]'"
        ) from error
    try:
        if source.startswith(MINARI_PREFIX):
            loaded = minari.load_dataset(source.removeprefix(MINARI_PREFIX), download=True)
        else:
            folder = Path(dataset).expanduser()
            loaded = minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)
        episodes = list(loaded.iterate_episodes())
    except Exception as error:  # minari, gymnasium, h5py and its storages raise many unrelated types here
        raise DatasetError(
            f"{source}: Minari cannot load this dataset: {type(error).__name__}: {error}"
        ) from error
    if not episodes:
        raise DatasetError(f"{source}: zero episodes; a dataset needs at least one transition")
    parts = [_episode_columns(source, episode, cost) for episode in episodes]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return TransitionDataset.from_columns(
        columns, task=task, source=source, names={"cost": f"infos/{cost}"}, clip_actions=clip_actions
    )


def _episode_columns(source: str, episode: Any, cost: str) -> dict[str, np.ndarray]:
    where = f"{source}: episode {episode.id}"
    steps = len(episode.rewards)
    # One observation more than steps: the one that the episode began with.
    observation = _vectors(where, "observations", episode.observations, steps + 1)
    truncated = np.asarray(episode.truncations, dtype=bool).copy()
    terminated = np.asarray(episode.terminations, dtype=bool)
    if steps and not terminated[-1]:
        truncated[-1] = True
    return {
        "observation": observation[:-1],
        "next_observation": observation[1:],
        "action": _vectors(where, "actions", episode.actions, steps),
        "reward": np.asarray(episode.rewards),
        "cost": _costs(where, episode.infos or {}, cost, steps),
        "terminated": terminated,
        "truncated": truncated,
    }


def _vectors(where: str, what: str, values: Any, rows: int) -> np.ndarray:
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "fiu":
        shape = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else type(values)
        raise DatasetError(
            f"{where}: {what} must be one vector of numbers per step (a Box space of one dimension), "
            f"not {shape}"
        )
    if len(values) != rows:
        raise DatasetError(f"{where}: has {len(values)} {what} where {rows} belong")
    return values


def _costs(where: str, infos: dict[str, Any], cost: str, steps: int) -> np.ndarray:
    if cost not in infos:
        held = ", ".join(infos) or "nothing; it was recorded without infos (record_infos=True keeps them)"
        raise DatasetError(
            f"{where}: the infos have no {cost!r}; name the cost's key with --cost-column. They hold {held}"
        )
    values = np.asarray(infos[cost])
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) not in (steps, steps + 1):
        raise DatasetError(f"{where}: infos/{cost} has the shape {values.shape}, but there are {steps} steps")
    # With one entry more than steps the first is what `reset` returned, before any step.
    return values[-steps:] if steps else values[:0]
