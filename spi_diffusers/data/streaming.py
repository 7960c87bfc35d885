"""Datasets that are read in parts, while training, because they may be larger than memory."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from spi_diffusers.data.actions import ActionRange
from spi_diffusers.data.columns import COLUMNS, ColumnChecker, DatasetError
from spi_diffusers.data.costs import COST
from spi_diffusers.data.loading import check_revision, load_transitions
from spi_diffusers.data.memory import available_memory
from spi_diffusers.data.network import is_transient
from spi_diffusers.data.parquet_rows import ParquetRows, Range, folder_rows, hub_rows
from spi_diffusers.data.summary import (
    MOMENT_COLUMNS,
    DatasetSummary,
    Moments,
    scanned_summary,
    stored_summary,
)
from spi_diffusers.data.tables import data_kind
from spi_diffusers.data.tasks import DSRL_DATASET_REPO, EMBEDDED_FOLDER, TASKS, Task, resolve_task
from spi_diffusers.data.transitions import EpisodeTable, TransitionBatch, TransitionDataset, describe_briefly
from spi_diffusers.files import local_path
from spi_diffusers.messages import say

logger = logging.getLogger(__name__)

#: Data takes at most this share of the memory that is available; else it is streamed.
MEMORY_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class StreamedDataset:
    """Transitions that stay in their files; what must be known of all of them is in memory.

    Make one by `open_stream`.

    Attributes:
        rows: the rows in their files.
        summary: episodes, statistics and fingerprint.
        task: the task that the data belongs to, where it is known.
        clip_actions: clip actions outside [-1, 1] instead of refusing them.
    """

    rows: ParquetRows
    summary: DatasetSummary
    task: Task | None
    clip_actions: bool = False

    def __len__(self) -> int:
        return int(self.episodes.length.sum())

    def __repr__(self) -> str:
        return describe_briefly(self)

    @property
    def source(self) -> str:
        """Where the data comes from (path or Hub id), for messages and cards."""
        return self.rows.source

    @property
    def sha256(self) -> str:
        """Fingerprint of the content, as of the same data in memory."""
        return self.summary.sha256

    @property
    def observation_dim(self) -> int:
        """Length of an observation."""
        return self.rows.widths["observation"]

    @property
    def action_dim(self) -> int:
        """Length of an action."""
        return self.rows.widths["action"]

    @property
    def action_range(self) -> ActionRange | None:
        """Range of the environment's actions, where the files state it."""
        return self.rows.action_range

    @property
    def cost_names(self) -> tuple[str, ...]:
        """Of its costs; only one can be streamed."""
        return (COST,)

    @property
    def extremes(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Smallest and largest value of each column of numbers, as of the same data in memory."""
        return self.summary.extremes

    @property
    def episodes(self) -> EpisodeTable:
        """The episode table."""
        return self.summary.episodes

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    def read(self, ranges: Sequence[Range]) -> Iterator[tuple[int, TransitionBatch]]:
        """Read and check rows.

        `ranges` are (first row, row after the last), in increasing order, without overlap. Yields (number of
        the first row, neighboring rows of one range); DatasetError for what in-memory loading would refuse.
        """
        for first, arrays in self.rows.read(ranges):
            checker = ColumnChecker(self.source, first_row=first)
            clean = checker.clean_rows(arrays, self.task, clip_actions=self.clip_actions)
            yield first, TransitionBatch(*(torch.from_numpy(_writable(clean[name])) for name in COLUMNS))

    def first_observations(self) -> torch.Tensor:
        """First observations of the episodes, (E, O); reads that one column of all rows, a part at a time."""
        starts = self.episodes.start.numpy()
        found = []
        for first, arrays in self.rows.read_all(["observation"]):
            checker = ColumnChecker(self.source, first_row=first)
            values = checker.clean_column("observation", arrays["observation"], self.task)
            begin, end = np.searchsorted(starts, [first, first + len(values)])
            found.append(values[starts[begin:end] - first])
        return torch.from_numpy(np.concatenate(found))

    def select_episodes(self, mask: torch.Tensor) -> "StreamedDataset":
        """Keep some episodes, (E,) bool: what is known of the rows, and drawn from them, is of these alone.

        The fingerprint stays that of all, and so do extremes of actions and next observations. Reads
        observations, rewards and costs of all rows once, a column and a part at a time, for the statistics of
        the episodes that stay.
        """
        episodes = self.episodes.select(mask)
        moments = {name: Moments() for name in MOMENT_COLUMNS}
        extremes = dict(self.summary.extremes)
        for name, found in moments.items():
            ends: list[np.ndarray] = []
            for first, arrays in self.rows.read_all([name]):
                values = ColumnChecker(self.source, first_row=first).clean_column(
                    name, arrays[name], self.task
                )
                stay = episodes.hold_rows(torch.arange(first, first + len(values))).numpy()
                if stay.any():
                    found.add(values[stay])
                    ends += [values[stay].min(0), values[stay].max(0)]
            extremes[name] = (np.min(ends, axis=0), np.max(ends, axis=0))
        results = {name: found.result() for name, found in moments.items()}
        return replace(
            self, summary=replace(self.summary, moments=results, episodes=episodes, extremes=extremes)
        )

    def load_episodes(self, chosen: torch.Tensor) -> TransitionDataset:
        """Load episodes into memory, by their positions in the episode table, increasing, (K,) int64."""
        start = self.episodes.start[chosen]
        stop = start + self.episodes.length[chosen]
        batches = [batch for _, batch in self.read([*zip(start.tolist(), stop.tolist(), strict=True)])]
        columns = {name: torch.cat([getattr(batch, name) for batch in batches]).numpy() for name in COLUMNS}
        return TransitionDataset.from_columns(
            columns,
            task=self.task,
            source=self.source,
            clip_actions=self.clip_actions,
            action_range=self.action_range,
        )


#: In memory, or in its files.
Dataset = TransitionDataset | StreamedDataset


def load_episodes(dataset: Dataset, chosen: torch.Tensor) -> TransitionDataset:
    """Episodes in memory, by their positions in the episode table, increasing, (K,) int64."""
    if isinstance(dataset, StreamedDataset):
        return dataset.load_episodes(chosen)
    return dataset.select_episodes(chosen)


def sample_episodes(dataset: Dataset, max_transitions: int, seed: int) -> TransitionDataset:
    """Episodes in memory, drawn at random: at most `max_transitions`, but at least one episode."""
    if isinstance(dataset, TransitionDataset) and len(dataset) <= max_transitions:
        return dataset
    pool, rng = np.arange(dataset.num_episodes), np.random.default_rng(seed)
    return load_episodes(dataset, draw_episodes(dataset, pool, max_transitions, rng))


def draw_episodes(
    dataset: Dataset,
    pool: np.ndarray,
    max_transitions: int,
    rng: np.random.Generator,
    most: int | None = None,
) -> torch.Tensor:
    """Positions of episodes drawn from those of a pool, (K,), increasing: at most `most` with at most
    `max_transitions`, but at least one.
    """
    order = torch.from_numpy(rng.permutation(pool)[:most])
    return dataset.episodes.within(order, max_transitions).sort().values


def open_stream(
    dataset: str | os.PathLike[str] | None,
    task: str | Task | None = None,
    *,
    revision: str | None = None,
    clip_actions: bool = False,
    progress: bool = True,
) -> StreamedDataset:
    """Open a dataset for reading in parts: a local folder in the parquet layout, a Hub id, or `embedded`.

    The other arguments and errors are those of `load_transitions`; DatasetError also for data in another
    layout. Without (valid) statistics beside the data, one pass checks all values, with a bar if `progress`;
    else the statistics' extremes are checked now, and the values of every part when it is read.
    """
    known, config = resolve_task(task, dataset)
    rows = _open_rows(dataset, config, revision)
    known = known or TASKS.get(rows.config)
    ColumnChecker(rows.source).check_widths(rows.widths, known)
    summary = stored_summary(rows, known, clip_actions=clip_actions)
    if summary is None:
        summary = scanned_summary(rows, known, clip_actions=clip_actions, progress=progress)
    return StreamedDataset(rows, summary, known, clip_actions)


def open_transitions(
    dataset: str | os.PathLike[str] | None = None,
    task: str | Task | None = None,
    *,
    revision: str | None = None,
    clip_actions: bool = False,
) -> Dataset:
    """Load a dataset into memory, or open it for reading in parts if it is too large.

    The arguments and errors are those of `load_transitions`.
    """
    if exceeds_memory(dataset, task, revision=revision):
        return open_stream(dataset, task, revision=revision, clip_actions=clip_actions)
    return load_transitions(dataset, task, revision=revision, clip_actions=clip_actions)


def exceeds_memory(
    dataset: str | os.PathLike[str] | None,
    task: str | Task | None = None,
    *,
    revision: str | None = None,
    copies: int = 1,
) -> bool:
    """Whether a dataset can be streamed, and would take more than half of the available memory.

    The arguments are those of `open_transitions`, and `copies`: processes on this machine that load it.
    False if the size is unknown; loading then reports the error, or takes what is cached.
    """
    allowed = MEMORY_SHARE * available_memory() / copies
    try:
        return _open_rows(dataset, resolve_task(task, dataset)[1], revision).tensor_bytes > allowed
    except (DatasetError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        if is_transient(cause):
            logger.warning("Assumed to fit into memory, as its size cannot be found out: %s", say(cause))
        return False


def _open_rows(
    dataset: str | os.PathLike[str] | None, config: str | None, revision: str | None
) -> ParquetRows:
    kind, text = data_kind(dataset), str(dataset)
    check_revision(dataset, revision)
    if kind == "embedded":
        rows = folder_rows(EMBEDDED_FOLDER, config)
        rows.source = f"embedded:{rows.config}"
        return rows
    if kind == "folder":
        return folder_rows(local_path(text), config)
    if kind != "hub":
        raise DatasetError(
            f"{text}: cannot be streamed; only the parquet layout can, in a local folder or on the Hub. `spi "
            f"data convert {DSRL_DATASET_REPO if text == 'dsrl' else text} FOLDER` makes a folder of it"
        )
    return hub_rows(text, config, revision=revision)


def _writable(values: np.ndarray) -> np.ndarray:
    # Arrays from Arrow are views of read-only buffers, which torch warns of.
    return values if values.flags.writeable else values.copy()
