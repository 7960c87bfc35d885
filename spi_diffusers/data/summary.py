"""What must be known of a dataset before its rows are streamed: episodes, statistics, fingerprint.

The writer of the parquet layout puts all of it beside the rows (`stats.json`, `episodes.parquet`), with the
checksums of the files that it belongs to. Where these checksums are right, it is taken from there, which
costs no reading of rows; on the Hub, not even a download, as the Hub knows the checksums of its files.
Otherwise one pass over the rows, a column at a time, finds it and checks every value.
"""

import hashlib
import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from spi_diffusers.data.actions import IntegerActions
from spi_diffusers.data.card import EPISODES_FILE, STATS_FILE
from spi_diffusers.data.columns import (
    ACTION_TOLERANCE,
    COLUMNS,
    FLAG_COLUMNS,
    INDEX_COLUMNS,
    NEGATIVE_COST,
    VALUE_COLUMNS,
    VECTOR_COLUMNS,
    ColumnChecker,
    DatasetError,
)
from spi_diffusers.data.network import with_retries
from spi_diffusers.data.parquet_rows import ParquetRows
from spi_diffusers.data.tasks import Task
from spi_diffusers.data.transitions import EpisodeTable
from spi_diffusers.documents import parse_json
from spi_diffusers.files import sha256_of
from spi_diffusers.messages import say, shown
from spi_diffusers.progress import progress_bar

logger = logging.getLogger(__name__)

#: Columns whose mean and deviation training needs.
MOMENT_COLUMNS = ("observation", *VALUE_COLUMNS)
_NUMBERS = (*VECTOR_COLUMNS, *VALUE_COLUMNS)


@dataclass(frozen=True, eq=False)
class DatasetSummary:
    """What is known of a dataset without its rows.

    Attributes:
        sha256: fingerprint of the content, as `TransitionDataset.sha256`.
        moments: mean and standard deviation (of the population), by `MOMENT_COLUMNS`: (O,) for the
            observation, scalars for reward and cost; float64.
        episodes: the episode table.
        extremes: smallest and largest value of each column of numbers: (D,) of vectors, () of others.
    """

    sha256: str
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]]
    episodes: EpisodeTable
    extremes: dict[str, tuple[np.ndarray, np.ndarray]]


def stored_summary(
    rows: ParquetRows, task: Task | None = None, *, clip_actions: bool = False
) -> DatasetSummary | None:
    """Take the summary from the files beside the rows, if they belong to exactly these rows.

    None if there are no such files or a checksum is wrong (a warning says which). DatasetError if files that
    are there cannot be read, or the statistics' extremes are values that in-memory loading would refuse.
    """
    beside = _Beside(rows)
    content = beside.read(STATS_FILE)
    if content is None:
        return None
    try:
        stats = parse_json(content)
        summary = _verified_summary(stats, rows, beside)
        problem = _bad_extremes(summary.extremes, task if not clip_actions else None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning(
            "%s: %s is not used: %s. All rows are read once instead.", rows.source, STATS_FILE, error
        )
        return None
    if problem:
        raise DatasetError(f"{rows.source}: {problem}")
    return summary


def _verified_summary(stats: dict[str, Any], rows: ParquetRows, beside: "_Beside") -> DatasetSummary:
    """The summary that statistics hold; a ValueError says why they do not belong to the rows."""
    listed = {PurePosixPath(entry["path"]).name: str(entry["sha256"]) for entry in stats["files"]}
    wanted = {PurePosixPath(file).name: file for file in rows.files}
    if listed.keys() != {*wanted, EPISODES_FILE}:
        raise ValueError(f"it belongs to other files: {', '.join(listed)}")
    for name, file in wanted.items():
        if beside.sha256(file) != listed[name]:
            raise ValueError(f"{name} has changed since (its SHA-256 is another)")
    table = beside.read(EPISODES_FILE)
    if table is None or hashlib.sha256(table).hexdigest() != listed[EPISODES_FILE]:
        raise ValueError(f"{EPISODES_FILE} is missing or has changed since (its SHA-256 is another)")
    moments = {name: _stored_moments(stats["columns"][name], name, rows) for name in MOMENT_COLUMNS}
    episodes = _read_episodes(table)
    if stats["num_transitions"] != rows.num_rows or int(episodes.length.sum()) != rows.num_rows:
        raise ValueError(f"the files have {rows.num_rows} rows, not {stats['num_transitions']}")
    digest = str(stats.get("sha256"))
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"its sha256 is no checksum but {shown(digest)}")
    extremes = {name: _stored(stats["columns"][name], "min", "max", name, rows) for name in _NUMBERS}
    return DatasetSummary(digest, moments, episodes, extremes)


def _stored_moments(
    column: dict[str, Any], name: str, rows: ParquetRows
) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = _stored(column, "mean", "std", name, rows)
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()):
        raise ValueError(f"the mean or the std of its {name} is not finite, or negative")
    return torch.from_numpy(mean), torch.from_numpy(std)


def _stored(
    column: dict[str, Any], first: str, second: str, name: str, rows: ParquetRows
) -> tuple[np.ndarray, np.ndarray]:
    """Two of a column's statistics, each of a vector's length, or one number."""
    pair = np.array(column[first], dtype=np.float64), np.array(column[second], dtype=np.float64)
    shape = (rows.widths[name],) if name in rows.widths else ()
    if not pair[0].shape == pair[1].shape == shape:
        raise ValueError(f"its {name} has other dimensions")
    return pair


def _bad_extremes(extremes: dict[str, tuple[np.ndarray, np.ndarray]], task: Task | None) -> str:
    """What the smallest and largest values tell of bad ones, before hours of training find them."""
    for name, (low, high) in extremes.items():
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return f"column {name!r} has values that are not finite (NaN or infinite)"
        if name == "cost" and low < 0:
            return f"column 'cost' has the negative value {low:g}; {NEGATIVE_COST}"
        if name == "action" and task is not None and max(-low.min(), high.max()) > 1 + ACTION_TOLERANCE:
            return (
                f"column 'action' reaches from {low.min():g} to {high.max():g}, outside [-1, 1], the "
                f"action range of {task.name}. Rescale the actions to [-1, 1]; if the simulator clipped them "
                "itself when it ran, load with clip_actions=True (--clip-actions)"
            )
    return ""


def scanned_summary(
    rows: ParquetRows, task: Task | None = None, *, clip_actions: bool = False, progress: bool = True
) -> DatasetSummary:
    """Read all rows once, a column at a time: check every value, and find the summary."""
    ColumnChecker(rows.source).check_widths(rows.widths, task)
    digest = hashlib.sha256()
    moments = {name: Moments() for name in MOMENT_COLUMNS}
    sums: dict[str, np.ndarray] = {}
    extremes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    integers = IntegerActions()
    with progress_bar(
        total=1 + len(COLUMNS), desc="reading once", unit=" column", disable=not progress
    ) as bar:
        start, length, terminated = _scan_episodes(rows)
        bar.update()
        for name in COLUMNS:
            # The digest is that of `TransitionDataset.sha256`.
            dtype = "bool" if name in FLAG_COLUMNS else "float32"
            shape = (rows.num_rows, rows.widths[name]) if name in rows.widths else (rows.num_rows,)
            digest.update(f"{name}:{dtype}:{shape};".encode())
            sums[name] = np.zeros(len(length))
            for first, arrays in rows.read_all([name]):
                checker = ColumnChecker(rows.source, first_row=first)
                if name == "action" and task is None:
                    integers.add(name, arrays[name])
                values = checker.clean_column(name, arrays[name], task, clip_actions=clip_actions)
                little = values.astype(values.dtype.newbyteorder("<"), copy=False)
                digest.update(little.reshape(-1).view(np.uint8).data)
                if name in _NUMBERS:
                    low, high = extremes.get(name, (np.inf, -np.inf))
                    extremes[name] = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
                if name in moments:
                    moments[name].add(values)
                if name in VALUE_COLUMNS:
                    numbers = np.arange(first, first + len(values))
                    episode = np.searchsorted(start, numbers, side="right") - 1
                    np.add.at(sums[name], episode, values.astype(np.float64))
            bar.update()
    integers.check(rows.source)
    table = EpisodeTable(
        episode_index=torch.arange(len(length)),
        start=torch.from_numpy(start),
        length=torch.from_numpy(length),
        return_=torch.from_numpy(sums["reward"]),
        cost_return=torch.from_numpy(sums["cost"]),
        terminated=torch.from_numpy(terminated),
    )
    results = {name: column.result() for name, column in moments.items()}
    return DatasetSummary(digest.hexdigest(), results, table, extremes)


def _scan_episodes(rows: ParquetRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First row, length and `terminated` of each episode, with the checks of `ColumnChecker.clean`."""
    ends: list[np.ndarray] = []
    terminated: list[np.ndarray] = []
    given: list[np.ndarray] = []
    frame = 0
    previous: int | None = None
    for first, arrays in rows.read_all([*FLAG_COLUMNS, *(INDEX_COLUMNS if rows.has_index_columns else ())]):
        checker = ColumnChecker(rows.source, first_row=first)
        flags = [checker.clean_column(name, arrays[name], None) for name in FLAG_COLUMNS]
        end = flags[0] | flags[1]
        if rows.has_index_columns:
            checker.check_indices(arrays, end, frame=frame, previous=previous)
            given.append(arrays["episode_index"][np.concatenate([[frame == 0], end[:-1]])])
            previous = int(arrays["episode_index"][-1])
        last = np.flatnonzero(end)
        ends.append(first + last)
        terminated.append(flags[0][last])
        frame = frame + len(end) if len(last) == 0 else len(end) - 1 - int(last[-1])
    all_ends = np.concatenate(ends)
    checker = ColumnChecker(rows.source)
    checker.check_ends(all_ends, rows.num_rows)
    if given:
        checker.check_distinct(np.concatenate(given))
    start = np.concatenate([[0], all_ends[:-1] + 1])
    return start, all_ends - start + 1, np.concatenate(terminated)


class Moments:
    """Mean and deviation of a column that comes in parts, merged after Chan, Golub and LeVeque (1979)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, values: np.ndarray) -> None:
        """Take in values (N, ...), N > 0."""
        part = values.astype(np.float64)
        mean, count = part.mean(axis=0), self._count + len(part)
        shift = mean - self._mean
        self._squares += ((part - mean) ** 2).sum(axis=0) + shift**2 * self._count * len(part) / count
        self._mean += shift * len(part) / count
        self._count = count

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of all of them, (...)."""
        return torch.as_tensor(self._mean), torch.as_tensor(np.sqrt(self._squares / self._count))


class _Beside:
    """Files in the folder of a config's rows, local or on the Hub, and the checksums of the rows' files."""

    def __init__(self, rows: ParquetRows):
        self._folder = rows.files[0].rpartition("/")[0]
        self._is_remote = rows.is_remote

    def read(self, name: str) -> bytes | None:
        path = f"{self._folder}/{name}"
        try:
            return self._hub("cat_file", path) if self._is_remote else Path(path).read_bytes()
        except FileNotFoundError:
            return None
        except Exception as error:  # httpx, fsspec and the Hub's client raise many unrelated types here
            raise DatasetError(f"{path}: cannot be read: {say(error)}") from error

    def sha256(self, file: str) -> str:
        try:
            if not self._is_remote:
                return sha256_of(Path(file))
            lfs = self._hub("info", file).get("lfs")
            if lfs is not None:
                return lfs.sha256
            return hashlib.sha256(self._hub("cat_file", file)).hexdigest()  # small, or in LFS
        except Exception as error:
            raise DatasetError(f"{file}: its checksum cannot be found out: {say(error)}") from error

    def _hub(self, method: str, path: str) -> Any:
        from huggingface_hub import HfFileSystem

        return with_retries(lambda: getattr(HfFileSystem(), method)(path), what=self._folder)


def _read_episodes(content: bytes) -> EpisodeTable:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))

    def column(name: str) -> torch.Tensor:
        return torch.from_numpy(table.column(name).to_numpy().copy())

    length = column("length")
    return EpisodeTable(
        episode_index=column("episode_index"),
        start=length.cumsum(0) - length,
        length=length,
        return_=column("return"),
        cost_return=column("cost_return"),
        terminated=column("terminated"),
    )
