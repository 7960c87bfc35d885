"""Minari datasets, through the `minari` package, as transitions.

Minari has no column for the cost; it is in the recorded infos of every step (`record_infos=True`), where
safe environments put it under `cost`. The columns are `observations`, `next_observations`, `actions`,
`rewards`, `terminations`, `truncations` and `infos/NAME`; of Dict and Tuple spaces each entry is a column of
its own, such as `observations/goal`, and a vector is all of them in alphabetical order.
"""

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spi_diffusers.data.actions import ActionRange
from spi_diffusers.data.arrays import own_values
from spi_diffusers.data.assembly import SourceTable
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.memory import check_size
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.tasks import MINARI_PREFIX
from spi_diffusers.files import local_path
from spi_diffusers.messages import say


def open_minari(dataset: str | os.PathLike[str], columns: ColumnNames) -> SourceTable:
    """The steps of a Minari dataset: `minari:` and an id (downloaded by Minari if not here), or a folder.

    `columns` are those that are named. An episode that Minari stored without an end is truncated at its last
    step. DatasetError where there is nothing that may be the cost, or Minari refuses it; ImportError if
    minari is not installed.
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
            folder = local_path(dataset)
            loaded = minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)
        space = None if columns.action else _action_range(source, loaded.action_space)
        files = sorted(Path(loaded.storage.data_path).glob("*.hdf5"))
        check_size(source, sum(map(own_values, files)))
        episodes = [dict(_episode_columns(f"{source}: episode {e.id}", e)) for e in loaded.iterate_episodes()]
    except DatasetError:
        raise
    except Exception as error:  # minari, gymnasium, h5py and its storages raise many unrelated types here
        raise DatasetError(f"{source}: Minari cannot load this dataset: {say(error)}") from error
    if not episodes:
        raise DatasetError(f"{source}: zero episodes; a dataset needs at least one transition")
    names = [name for name in episodes[0] if all(name in episode for episode in episodes)]
    if not any(name.startswith("infos/") for name in names) and columns.cost is None:
        raise DatasetError(
            f"{source}: no episode has infos, which hold the cost of every step; record the dataset with "
            "record_infos=True, or name the column of the cost with --cost-column"
        )

    def read(wanted: list[str]) -> Mapping[str, np.ndarray]:
        try:
            return {name: np.concatenate([episode[name] for episode in episodes]) for name in wanted}
        except ValueError as error:
            raise DatasetError(f"{source}: the episodes have entries of different shapes: {error}") from error

    return SourceTable(source, names, read, action_range=space)


def _action_range(source: str, space: Any) -> ActionRange | None:
    """The range of an action space, where it is bounded; DatasetError for a discrete one."""
    parts = list(_boxes(source, "actions", space))
    low, high = (
        tuple(float(bound) for part in parts for bound in np.ravel(getattr(part, side)))
        for side in ("low", "high")
    )
    return ActionRange(low, high) if np.isfinite(low + high).all() else None


def _boxes(source: str, name: str, space: Any) -> Iterator[Any]:
    """The boxes of a nested space in the order in which `_flatten` gives their arrays."""
    kind = type(space).__name__
    if kind == "Dict":
        for key in sorted(space.spaces):
            yield from _boxes(source, f"{name}/{key}", space.spaces[key])
    elif kind == "Tuple":
        for number, part in enumerate(space.spaces):
            yield from _boxes(source, f"{name}/{number}", part)
    elif kind == "Box" and np.issubdtype(space.dtype, np.floating):
        yield space
    else:
        raise DatasetError(
            f"{source}: {name} are of the space {space}; algorithms here take continuous actions only, of a "
            "Box of floats"
        )


def _episode_columns(where: str, episode: Any) -> Iterator[tuple[str, np.ndarray]]:
    steps = len(episode.rewards)
    # One observation more than steps: the one that the episode began with.
    for name, values in _flatten("observations", episode.observations):
        if len(values) != steps + 1:
            raise DatasetError(f"{where}: has {len(values)} {name} where {steps + 1} belong")
        yield name, values[:-1]
        yield f"next_{name}", values[1:]
    yield from _flatten("actions", episode.actions)
    yield "rewards", np.asarray(episode.rewards)
    truncated = np.asarray(episode.truncations, dtype=bool).copy()
    terminated = np.asarray(episode.terminations, dtype=bool)
    if steps and not terminated[-1]:
        truncated[-1] = True
    yield "terminations", terminated
    yield "truncations", truncated
    for name, values in _flatten("infos", episode.infos or {}):
        # With one entry more than steps the first is what `reset` returned, before any step.
        if len(values) in (steps, steps + 1):
            yield name, values[len(values) - steps :]


def _flatten(name: str, values: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a nested space by their paths, in alphabetical order."""
    if isinstance(values, Mapping):
        for key in sorted(values):
            yield from _flatten(f"{name}/{key}", values[key])
    elif isinstance(values, tuple):
        for number, value in enumerate(values):
            yield from _flatten(f"{name}/{number}", value)
    elif np.ndim(values) > 0:
        yield name, np.asarray(values)
