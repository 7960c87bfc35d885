"""From the episodes that were kept while collecting to a dataset that fits, in the parquet layout."""

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spi_diffusers.collection.episodes import Episode
from spi_diffusers.collection.errors import CollectionError
from spi_diffusers.collection.record import STATS_KEY
from spi_diffusers.data.tasks import Task
from spi_diffusers.data.thinning import thin_transitions
from spi_diffusers.data.transitions import EpisodeTable, TransitionDataset
from spi_diffusers.data.writing import write_parquet_dataset

SOURCE = "collected by this package in the real simulator"
_TRIALS_IN_PROPORTION = 8


def write_collection(
    task: Task,
    episodes: Sequence[Episode],
    folder: Path,
    *,
    max_bytes: int,
    seed: int,
    describe: Callable[[TransitionDataset], str],
    record: dict[str, Any],
    trial_folder: Path,
    overwrite: bool,
) -> TransitionDataset:
    """Choose as many episodes as fit, and write them.

    Args:
        task: The task that was played.
        episodes: What was kept while collecting.
        folder: The dataset's folder.
        max_bytes: The largest size of the config's folder.
        seed: Decides the choice.
        describe: Makes the card's words from the dataset.
        record: JSON values that `is_collected` knows the collection by.
        trial_folder: A folder to find out in how large a choice is; it is removed.
        overwrite: Replace the config if the folder has it.

    Returns:
        The dataset as written.

    Raises:
        CollectionError: No choice of episodes fits.
        FileExistsError: The folder has the config already and `overwrite` is off.
    """
    table = episode_table(episodes)
    wanted = int(table.length.sum())
    for trial in itertools.count(1):
        try:
            chosen = thin_transitions(table, wanted, cost_limits=task.cost_limits, seed=seed)
        except ValueError:  # not even one episode
            break
        dataset = to_dataset(task, [episodes[index] for index in chosen.tolist()])
        description = describe(dataset)
        size = _written_size(dataset, task, trial_folder)
        words = len(json.dumps([SOURCE, description])) + len(json.dumps({STATS_KEY: record}, indent=2))
        if size + words <= max_bytes:
            write_parquet_dataset(
                dataset,
                folder,
                source=SOURCE,
                description=description,
                more_stats={STATS_KEY: record},
                overwrite=overwrite,
            )
            return dataset
        # A little less than in proportion, so that few trials are enough.
        wanted = int(wanted * max_bytes / (size if size > max_bytes else size + words) * 0.995)
        if trial >= _TRIALS_IN_PROPORTION:  # where few long episodes fit, the same ones may be chosen again
            wanted = min(wanted, len(dataset) - 1)
    raise CollectionError(
        f"{task.name}: no choice of episodes fits into {max_bytes} bytes. What was collected is kept: the "
        "same collection with a larger max_bytes (--max-bytes) goes on from it"
    )


def _written_size(dataset: TransitionDataset, task: Task, trial_folder: Path) -> int:
    """Bytes of the config's folder, except for the words about it and the record."""
    written = write_parquet_dataset(dataset, trial_folder, source="trial", overwrite=True)
    size = sum(file.stat().st_size for file in (written / task.name).iterdir())
    shutil.rmtree(written)
    return size


def episode_table(episodes: Sequence[Episode]) -> EpisodeTable:
    """The table of the episodes, in their order."""
    length = torch.tensor([len(episode.reward) for episode in episodes])
    return EpisodeTable(
        episode_index=torch.arange(len(episodes)),
        start=length.cumsum(0) - length,
        length=length,
        return_=torch.tensor([episode.return_ for episode in episodes], dtype=torch.float64),
        cost_return=torch.tensor([episode.cost_return for episode in episodes], dtype=torch.float64),
        terminated=torch.tensor([episode.terminated for episode in episodes]),
    )


def to_dataset(task: Task, episodes: Sequence[Episode]) -> TransitionDataset:
    """The episodes, one after the other, as a dataset."""

    def ends(terminated: bool) -> np.ndarray:
        rows = [np.arange(len(e.reward)) == len(e.reward) - 1 for e in episodes]
        return np.concatenate(
            [row & (e.terminated == terminated) for row, e in zip(rows, episodes, strict=True)]
        )

    columns = {
        "observation": np.concatenate([episode.observation[:-1] for episode in episodes]),
        "next_observation": np.concatenate([episode.observation[1:] for episode in episodes]),
        **{
            name: np.concatenate([getattr(episode, name) for episode in episodes])
            for name in ("action", "reward", "cost")
        },
        "terminated": ends(True),
        "truncated": ends(False),
    }
    return TransitionDataset.from_columns(columns, task=task, source=f"collection of {task.name}")
