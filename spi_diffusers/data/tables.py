"""Logged transitions in a CSV or parquet table whose columns have names of their own."""

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spi_diffusers.data.columns import VECTOR_COLUMNS, DatasetError
from spi_diffusers.data.dsrl import dataset_from_raw
from spi_diffusers.data.parquet import column_to_numpy
from spi_diffusers.data.tasks import TABLE_SUFFIXES, Task
from spi_diffusers.data.transitions import TransitionDataset

if TYPE_CHECKING:
    import pyarrow as pa

# Usual names of columns in other logs. Ours comes first: where it is there, no other is looked for. A vector
# may also be spread over numbered columns: obs_0, obs_1 or state[0], state[1].
_USUAL = {
    "observation": ("observations", "obs", "state", "states", "observation.state"),
    "next_observation": ("next_observations", "next_obs", "next_state", "next_states"),
    "action": ("actions", "act"),
    "reward": ("rewards",),
    "cost": ("costs",),
    "terminated": ("terminal", "terminals", "termination", "terminations"),
    "truncated": ("timeout", "timeouts", "truncation", "truncations"),
    "episode_index": ("episode", "episode_id", "episodes", "trajectory", "trajectory_id", "traj_id"),
}
_NEEDED = ("observation", "action", "reward", "cost")


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table hold what.

    A vector is one column of lists, or several columns of numbers: names or patterns such as `obs_*`,
    which stand for all columns that match, in natural order (`obs_2` before `obs_10`).

    What is None is looked for by its name here and by other usual names, such as `obs`, `state_0`,
    `rewards` or `timeouts`. `observation`, `action`, `reward` and `cost` must be there.

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

    A CSV file has the names in its first line; without `columns`, usual names are looked for. A missing next
    observation is derived, see `dsrl.derive_next_observation`. DatasetError if the file is not such a table,
    columns are missing, ambiguous or named for two roles, nothing tells where episodes end, or the columns do
    not pass the checks of `TransitionDataset.from_columns`.
    """
    table = read_table(path)
    reader = _TableReader(str(path), table)
    named = vars(columns or TableColumns())
    named = {role: named[role.removesuffix("_index")] for role in _USUAL}
    raw: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    for role in sorted(named, key=lambda role: named[role] is None):  # what is named is not found for others
        found = reader.find(role) if named[role] is None else named[role]
        if role in VECTOR_COLUMNS and found:
            raw[role], names[role] = reader.vectors(role, found)
        elif found:
            names[role] = found if isinstance(found, str) else found[0]
            raw[role] = (reader.episodes if role == "episode_index" else reader.numbers)(role, names[role])
        elif role in _NEEDED:
            raise reader.missing(role)
    if "frame_index" in table.column_names:
        raw["frame_index"] = reader.numbers("frame_index", "frame_index")

    if not raw.keys() & {"terminated", "truncated", "episode_index"}:
        done = " Column 'done' may be one of these: say which." if "done" in table.column_names else ""
        raise DatasetError(
            f"{path}: nothing tells where an episode ends; name the column that holds the episode's number "
            f"(--episode-column), or those of its ends (--terminated-column, --truncated-column).{done}"
        )
    raw.setdefault("terminated", np.zeros(len(table), dtype=bool))
    if "truncated" not in raw:
        raw["truncated"] = np.zeros(len(table), dtype=bool)
        if "episode_index" in raw and len(table):
            last = np.append(np.diff(raw["episode_index"]) != 0, True)
            raw["truncated"] = last & ~raw["terminated"].astype(bool)
    return dataset_from_raw(raw, str(path), names, task, clip_actions=clip_actions, stacklevel=3)


def read_table(path: Path) -> "pa.Table":
    """Read a CSV or parquet file, by its suffix; DatasetError if it is damaged or has a name twice."""
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
        raise DatasetError(f"{path}: is not a table; expected {', '.join(TABLE_SUFFIXES)}")
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

    def find(self, role: str) -> tuple[str, ...]:
        """Find the column(s) of a role by their usual names; empty if there are none."""
        there = [name for name in self.table.column_names if name not in self._roles]
        if role in there:
            return (role,)
        found = [(name,) for name in _USUAL[role] if name in there]
        if role in VECTOR_COLUMNS:
            for name in (role, *_USUAL[role]):
                numbered = re.compile(rf"{re.escape(name)}[._]?(\d+|\[\d+\])")
                if matches := sorted(filter(numbered.fullmatch, there), key=_natural):
                    found.append(tuple(matches))
        if len(found) > 1:
            first, second = (", ".join(columns[:3]) for columns in found[:2])
            raise DatasetError(
                f"{self.source}: the {_word(role)} may be column {first} or {second}; say which with "
                f"{column_option(role)} (spi data convert)"
            )
        return found[0] if found else ()

    def missing(self, role: str, name: str | None = None) -> DatasetError:
        """The error where the table has no column of a role, or not the named one."""
        what = "no column with a usual name" if name is None else f"no column {name!r}"
        return DatasetError(
            f"{self.source}: has {what} for the {_word(role)}; name one with {column_option(role)} (spi data "
            f"convert). It has {', '.join(self.table.column_names) or 'none'}"
        )

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

    def episodes(self, role: str, name: str) -> np.ndarray:
        """Number the episodes 0, 1, ... by first appearance; (N,) int64."""
        self._require(role, name)
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
            raise self.missing(role, name)
        self._take(role, name)

    def _take(self, role: str, name: str) -> None:
        other = self._roles.setdefault(name, role)
        if other != role:
            first, second = (f"the {_word(each)} ({column_option(each)})" for each in (other, role))
            raise DatasetError(
                f"{self.source}: column {name!r} is taken both for {first} and for {second}; a column has "
                "one role. Give each the columns of its own, by name where a pattern matches too many"
            )

    def _match(self, role: str, patterns: Sequence[str]) -> list[str]:
        found: list[str] = []
        for pattern in patterns:
            if pattern in self.table.column_names:  # a name that only looks like a pattern
                matches = [pattern]
            else:
                matches = fnmatch.filter(self.table.column_names, pattern)
            if not matches:
                raise self.missing(role, pattern)
            found += sorted((name for name in matches if name not in found), key=_natural)
        for name in found:
            self._take(role, name)
        return found


def column_option(role: str) -> str:
    """The option of `spi data convert` that names the column(s) of a role."""
    return f"--{_word(role).replace('_', '-')}-column" + ("s" if role in VECTOR_COLUMNS else "")


def _word(role: str) -> str:
    return role.removesuffix("_index")


def _natural(name: str) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]
