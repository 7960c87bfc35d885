"""Logged transitions in a CSV or parquet table whose columns have names of their own."""

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spi_diffusers.data.columns import FLAG_COLUMNS, VALUE_COLUMNS, VECTOR_COLUMNS, DatasetError
from spi_diffusers.data.dsrl import dataset_from_raw
from spi_diffusers.data.parquet import column_to_numpy
from spi_diffusers.data.tasks import Task
from spi_diffusers.data.transitions import TransitionDataset

if TYPE_CHECKING:
    import pyarrow as pa

#: Suffixes of the files that `load_table` reads.
TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table hold what.

    A vector is one column of lists, or several columns of numbers: names or patterns such as `obs_*`,
    which stand for all columns that match, in natural order (`obs_2` before `obs_10`).

    What is None has our name: `observation`, `action`, `reward` and `cost` must then be there, and the
    others are used if they are.

    Attributes:
        observation: column(s) of the observation.
        action: column(s) of the action.
        reward: column of the reward.
        cost: column of the cost, at least 0.
        next_observation: column(s) of the next observation; without, it is taken from the following row.
        terminated: column that is 1 (true) where the task itself ended; without, it never did.
        truncated: column that is 1 (true) where the episode was cut off; without, that is the last row
            of every episode that did not terminate, which needs `episode`.
        episode: column with one value (a number or a text) all through an episode; ours is
            `episode_index`.
    """

    observation: tuple[str, ...] | None = None
    action: tuple[str, ...] | None = None
    reward: str | None = None
    cost: str | None = None
    next_observation: tuple[str, ...] | None = None
    terminated: str | None = None
    truncated: str | None = None
    episode: str | None = None


def load_table(
    path: Path, columns: TableColumns | None = None, task: Task | None = None, *, clip_actions: bool = False
) -> TransitionDataset:
    """Load a table of logged transitions: one row per step, episode after episode.

    Args:
        path: a `.csv`, `.csv.gz` or `.parquet` file; a CSV file has the names in its first line.
        columns: which columns hold what, by default those with our names.
        task: fixes the dimensions and the action range, where given.
        clip_actions: clip actions outside [-1, 1] instead of refusing them.

    Returns:
        The dataset. A missing next observation is derived, see `dsrl.derive_next_observation`.

    Raises:
        DatasetError: the file is not such a table, a column is missing, named for two roles, empty in some
            row or not numeric, the rows of an episode do not go together, nothing tells where episodes end,
            or the columns do not pass the checks of `TransitionDataset.from_columns`.
    """
    table = read_table(path)
    reader = _TableReader(str(path), table)
    columns = columns or TableColumns()
    have = set(table.column_names)

    raw: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    for role in VECTOR_COLUMNS:
        patterns = getattr(columns, role)
        if patterns or role != "next_observation" or role in have:
            raw[role], names[role] = reader.vectors(role, patterns or (role,))
    for role in (*VALUE_COLUMNS, *FLAG_COLUMNS):
        name = getattr(columns, role)
        if name or role in VALUE_COLUMNS or role in have:
            raw[role], names[role] = reader.numbers(role, name or role), name or role
    if columns.episode or "episode_index" in have:
        names["episode_index"] = columns.episode or "episode_index"
        raw["episode_index"] = reader.episodes(names["episode_index"])
    if "frame_index" in have:
        raw["frame_index"] = reader.numbers("frame_index", "frame_index")

    if not raw.keys() & {"terminated", "truncated", "episode_index"}:
        raise DatasetError(
            f"{path}: nothing tells where an episode ends; name the column that holds the episode's number "
            "(--episode-column), or those of its ends (--terminated-column, --truncated-column)"
        )
    raw.setdefault("terminated", np.zeros(len(table), dtype=bool))
    if "truncated" not in raw:
        raw["truncated"] = np.zeros(len(table), dtype=bool)
        if "episode_index" in raw and len(table):
            last = np.append(np.diff(raw["episode_index"]) != 0, True)
            raw["truncated"] = last & ~raw["terminated"].astype(bool)
    return dataset_from_raw(raw, str(path), names, task, clip_actions=clip_actions, stacklevel=3)


def read_table(path: Path) -> "pa.Table":
    """Read a CSV or parquet file.

    Args:
        path: the file; its suffix tells what it is.

    Returns:
        The table.

    Raises:
        DatasetError: the suffix is not known, the file is damaged or no such table, or two columns have
            the same name.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    readers: dict[str, Callable[[Path], pa.Table]] = {
        ".csv": pyarrow.csv.read_csv,
        ".csv.gz": pyarrow.csv.read_csv,
        ".parquet": lambda file: pyarrow.parquet.ParquetFile(file, page_checksum_verification=True).read(),
    }
    reader = next((read for suffix, read in readers.items() if path.name.lower().endswith(suffix)), None)
    if reader is None:
        raise DatasetError(f"{path}: is no table; give a file that ends in {', '.join(TABLE_SUFFIXES)}")
    try:
        table = reader(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: cannot be read as a table: {error}") from error
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise DatasetError(f"{path}: has several columns with the name {', '.join(map(repr, twice))}")
    return table


class _TableReader:
    """Takes NumPy columns out of a table, or says which is missing."""

    def __init__(self, source: str, table: "pa.Table"):
        self.source = source
        self.table = table
        self._roles: dict[str, str] = {}  # of the columns that were taken

    def numbers(self, role: str, name: str) -> np.ndarray:
        self._require(role, name)
        return column_to_numpy(self.table.column(name), name, self.source, vector=False)

    def vectors(self, role: str, patterns: Sequence[str]) -> tuple[np.ndarray, str]:
        """Read a vector, (N, D), and what to call its column(s) in messages."""
        import pyarrow as pa

        names = self._match(role, patterns)
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        types = [self.table.schema.field(name).type for name in names]
        if len(names) == 1 and any(check(types[0]) for check in lists):
            only = names[0]
            return column_to_numpy(self.table.column(only), only, self.source, vector=True), only
        parts = [column_to_numpy(self.table.column(name), name, self.source, vector=False) for name in names]
        return np.stack(parts, axis=1), ", ".join(names)

    def episodes(self, name: str) -> np.ndarray:
        """Number the episodes 0, 1, ... by first appearance; (N,) int64."""
        self._require("episode", name)
        column = self.table.column(name).combine_chunks()
        if column.null_count:
            raise DatasetError(f"{self.source}: column {name!r} has {column.null_count} missing values")
        encoded = column.dictionary_encode()
        numbers = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        # Also missing: a text that is empty, as in a CSV file, and NaN, as pandas writes it.
        blank = [i for i, value in enumerate(encoded.dictionary.to_pylist()) if value == "" or value != value]
        if len(rows := np.flatnonzero(np.isin(numbers, blank))):
            raise DatasetError(
                f"{self.source}: column {name!r} has {len(rows)} missing values, the first in row {rows[0]}"
            )
        return numbers

    def _require(self, role: str, name: str) -> None:
        if name not in self.table.column_names:
            raise self._missing(role, name)
        self._take(role, name)

    def _take(self, role: str, name: str) -> None:
        other = self._roles.setdefault(name, role)
        if other != role:
            raise DatasetError(
                f"{self.source}: column {name!r} is taken both for the {other} ({_option(other)}) and for "
                f"the {role} ({_option(role)}); a column has one role. Give each the columns of its own, by "
                "name where a pattern matches too many"
            )

    def _missing(self, role: str, name: str) -> DatasetError:
        return DatasetError(
            f"{self.source}: has no column {name!r} for the {role}; name one with {_option(role)}. It has "
            f"{', '.join(self.table.column_names) or 'none'}"
        )

    def _match(self, role: str, patterns: Sequence[str]) -> list[str]:
        found: list[str] = []
        for pattern in patterns:
            if pattern in self.table.column_names:  # a name that only looks like a pattern
                matches = [pattern]
            else:
                matches = fnmatch.filter(self.table.column_names, pattern)
            if not matches:
                raise self._missing(role, pattern)
            found += sorted((name for name in matches if name not in found), key=_natural)
        for name in found:
            self._take(role, name)
        return found


def _option(role: str) -> str:
    return f"--{role.replace('_', '-')}-column" + ("s" if role in VECTOR_COLUMNS else "")


def _natural(name: str) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]
