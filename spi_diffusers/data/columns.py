"""The columns of a transition table: their names, shapes and the checks that every source goes through.

Checks run once, on whole NumPy columns, before anything else is done with the data. Every failure is a
`DatasetError` that names the source, the column as the source calls it, and the first bad row.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from spi_diffusers.data.tasks import Task

#: The columns of a transition in their order in the parquet layout (DSRL has other names, see `arrays.py`).
VECTOR_COLUMNS = ("observation", "next_observation", "action")
VALUE_COLUMNS = ("reward", "cost")
FLAG_COLUMNS = ("terminated", "truncated")
COLUMNS = VECTOR_COLUMNS + VALUE_COLUMNS + FLAG_COLUMNS
#: Bookkeeping columns: which episode a row belongs to, and which step of it the row is.
INDEX_COLUMNS = ("episode_index", "frame_index")

#: How far outside [-1, 1] an action of a DSRL task may lie (rounding); such values are clamped.
ACTION_TOLERANCE = 1e-3
#: What to do about a negative cost.
NEGATIVE_COST = "a cost is at least 0: shift it, or cut it at 0 and put gains into the reward"
_SHOWN = 30  # names in a message, at most


class DatasetError(ValueError):
    """A dataset cannot be used; the message names the file, the column and the row."""


def list_names(names: Sequence[str]) -> str:
    """Names as a part of a message: quoted, and not too many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(map(repr, names[:_SHOWN])) or "none") + more


class ColumnChecker:
    """Turns raw columns of one source into clean ones, or says what is wrong with them.

    `names` maps our names to the source's, for messages; `first_row` is the number of the first row checked,
    where rows come in parts.
    """

    def __init__(self, source: str, names: Mapping[str, str] | None = None, first_row: int = 0):
        self.source = source
        self.names = dict(names or {})
        self.first_row = first_row

    def error(self, column: str, problem: str) -> DatasetError:
        """Make the error for a problem with a column."""
        return DatasetError(f"{self.source}: column {self.names.get(column, column)!r} {problem}")

    def clean(
        self, raw: Mapping[str, np.ndarray], task: Task | None, *, clip_actions: bool = False
    ) -> dict[str, np.ndarray]:
        """Check and convert all columns, or raise DatasetError.

        `raw` has arrays by our column names (`COLUMNS`, and `INDEX_COLUMNS` where the source has them):
        vectors (N, D), values and flags (N,) or (N, 1), several costs (N, K), of any numeric or bool type.
        `task` fixes dimensions and action range (-1 to 1); `clip_actions` clips what lies outside instead of
        refusing it.

        Returns contiguous arrays: vectors (N, D), values (N,) and several costs (N, K) float32, flags (N,)
        bool, and `episode_index` (0, 1, ... in file order) and `frame_index`, (N,) int64.
        """
        clean = self.clean_rows(raw, task, clip_actions=clip_actions)
        ends = clean["terminated"] | clean["truncated"]
        self.check_ends(np.flatnonzero(ends), len(ends))
        self.check_indices(raw, ends)
        is_start = np.concatenate([[True], ends[:-1]])
        rows = np.arange(len(ends), dtype=np.int64)
        if "episode_index" in raw:
            self.check_distinct(np.asarray(raw["episode_index"])[is_start])
        clean["episode_index"] = np.cumsum(is_start, dtype=np.int64) - 1
        clean["frame_index"] = rows - np.maximum.accumulate(np.where(is_start, rows, 0))
        return clean

    def clean_rows(
        self, raw: Mapping[str, np.ndarray], task: Task | None, *, clip_actions: bool = False
    ) -> dict[str, np.ndarray]:
        """As `clean`, without the index columns: the rows need not be whole episodes."""
        self.check_present(raw, [self.names.get(name, name) for name in raw])
        clean = {
            column: self.clean_column(column, raw[column], task, clip_actions=clip_actions)
            for column in COLUMNS
        }
        rows = len(clean["observation"])
        for column in COLUMNS:
            self._check_length(column, len(clean[column]), rows)
        if rows == 0:
            raise DatasetError(f"{self.source}: zero rows; a dataset needs at least one transition")
        self.check_widths({column: clean[column].shape[1] for column in VECTOR_COLUMNS}, task)
        return clean

    def clean_column(
        self, column: str, values: np.ndarray, task: Task | None, *, clip_actions: bool = False
    ) -> np.ndarray:
        """Check and convert one of `COLUMNS`, or a part of it, as `clean` does."""
        if column in FLAG_COLUMNS:
            return self._flags(column, self._one_per_row(column, values))
        if column in VALUE_COLUMNS:
            several = column == "cost" and np.ndim(values) == 2 and np.shape(values)[1] > 1
            one_each = self._numeric if several else self._one_per_row
            clean = self._finite(column, one_each(column, values))
            if column == "cost" and (negative := clean < 0).any():
                row = int(np.argmax(negative.reshape(len(clean), -1).any(axis=1)))
                raise self.error(
                    "cost",
                    f"has the negative value {clean[row].min():g} in row {self.first_row + row}; "
                    f"{NEGATIVE_COST}",
                )
            return clean
        values = self._numeric(column, values)
        if values.ndim != 2:
            raise self.error(
                column,
                f"must have shape (rows, dimensions), not {values.shape}; flatten each row to one vector",
            )
        clean = self._finite(column, values)
        self._check_size(column, clean.shape[1], task)
        if column == "action" and task is not None:
            return self._actions_in_range(clean, task, clip_actions)
        return clean

    def check_present(self, columns: Collection[str], available: Sequence[str]) -> None:
        """Check that none of `COLUMNS` is missing; `available` is for the message, in the source's names."""
        missing = [self.names.get(column, column) for column in COLUMNS if column not in columns]
        if missing:
            are = f"column {missing[0]!r} is" if len(missing) == 1 else f"columns {list_names(missing)} are"
            raise DatasetError(f"{self.source}: {are} missing; the file has {list_names(available)}")

    def check_widths(self, widths: Mapping[str, int], task: Task | None) -> None:
        """Check the lengths of the vectors: of all `VECTOR_COLUMNS`, the task's where it is given."""
        for column, size in widths.items():
            self._check_size(column, size, task)
        if widths["next_observation"] != widths["observation"]:
            raise self.error(
                "next_observation",
                f"has {widths['next_observation']} dimensions, but {self._name('observation')} "
                f"has {widths['observation']}",
            )

    def check_ends(self, ends: np.ndarray, rows: int) -> None:
        """Check that there are episode ends (their row numbers, increasing), and that the last row is one."""
        names = f"{self._name('terminated')} nor {self._name('truncated')}"
        if len(ends) == 0:
            raise DatasetError(
                f"{self.source}: no episode ends: neither {names} is set in any of {rows} rows. "
                f"Set {self._name('truncated')} in the last row of every episode that was cut off"
            )
        if ends[-1] != rows - 1:
            raise DatasetError(
                f"{self.source}: the last episode (rows {int(ends[-1]) + 1} to {rows - 1}) has no end: "
                f"neither {names} is set in its last row. The file may be cut off; if the episode was "
                f"stopped there, set {self._name('truncated')} in that row"
            )

    def check_indices(
        self, raw: Mapping[str, np.ndarray], ends: np.ndarray, *, frame: int = 0, previous: int | None = None
    ) -> None:
        """Check that the index columns that `raw` has, or the same part of each, agree with the episode ends.

        `ends` is (N,) bool; `frame` is the first row's step in its episode, and `previous` the episode index
        of the row before it.
        """
        rows = np.arange(len(ends))
        is_start = np.concatenate([[frame == 0], ends[:-1]])
        if "episode_index" in raw:
            given = self._one_per_row("episode_index", raw["episode_index"])
            self._check_length("episode_index", len(given), len(ends))
            before = np.concatenate([[given[0] - 1 if previous is None else previous], given[:-1]])
            rule = "changes exactly where the row before has an episode end"
            self._must_equal("episode_index", given != before, is_start, rule, given)
        if "frame_index" in raw:
            frames = self._one_per_row("frame_index", raw["frame_index"])
            self._check_length("frame_index", len(frames), len(ends))
            last_start = np.maximum.accumulate(np.where(is_start, rows, -frame))
            rule = "counts the steps of each episode from 0"
            self._must_equal("frame_index", frames, rows - last_start, rule, frames)

    def check_distinct(self, episode_index: np.ndarray) -> None:
        """Check that no two episodes have the same index; `episode_index`: one value per episode."""
        if len(np.unique(episode_index)) != len(episode_index):
            raise self.error(
                "episode_index", "uses one index for two episodes; rows of an episode go together"
            )

    def _name(self, column: str) -> str:
        return repr(self.names.get(column, column))

    def _numeric(self, column: str, values: np.ndarray, kinds: str = "fiub") -> np.ndarray:
        values = np.asarray(values)
        if values.dtype.kind not in kinds:
            raise self.error(column, f"must hold numbers, not {values.dtype}")
        return values

    def _one_per_row(self, column: str, values: np.ndarray) -> np.ndarray:
        values = self._numeric(column, values)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise self.error(column, f"must have shape (rows,) or (rows, 1), not {values.shape}")
        return values

    def _finite(self, column: str, values: np.ndarray) -> np.ndarray:
        # A float64 too large for float32 becomes inf here and is caught below; so is inf - inf in the sum.
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.ascontiguousarray(values, dtype=np.float32)
            # The sum of finite float32 values is finite in float64: one cheap pass clears the usual case.
            total = values.sum(dtype=np.float64)
        if not np.isfinite(total):
            bad = ~np.isfinite(values)
            row = int(np.argmax(bad.reshape(len(values), -1).any(axis=1)))
            raise self.error(
                column,
                f"has {int(bad.sum())} values that are not finite (NaN, infinite or too large for float32), "
                f"first in row {self.first_row + row}: {values[row].tolist()}",
            )
        return values

    def _flags(self, column: str, values: np.ndarray) -> np.ndarray:
        if values.dtype == bool:
            return np.ascontiguousarray(values)
        bad = (values != 0) & (values != 1)  # NaN is neither, so it is caught here
        if bad.any():
            row = int(np.argmax(bad))
            raise self.error(
                column, f"must hold only 0 and 1, but row {self.first_row + row} holds {values[row]}"
            )
        return values == 1

    def _check_size(self, column: str, size: int, task: Task | None) -> None:
        if task is not None:
            expected = task.action_dim if column == "action" else task.observation_dim
            if size != expected:
                raise self.error(column, f"has {size} dimensions, but {task.name} has {expected}")
        if size == 0:
            raise self.error(column, "has 0 dimensions")

    def _actions_in_range(self, action: np.ndarray, task: Task, clip_actions: bool) -> np.ndarray:
        excess = np.abs(action).max(axis=1) - 1.0
        outside = excess > ACTION_TOLERANCE
        if outside.any() and not clip_actions:
            row = int(np.argmax(outside))
            raise self.error(
                "action",
                f"has {int(outside.sum())} rows outside [-1, 1], the action range of {task.name}, first in "
                f"row {self.first_row + row}: {action[row].tolist()}. Rescale the actions to [-1, 1]; if the "
                "simulator clipped them itself when it ran, load with clip_actions=True (--clip-actions)",
            )
        return np.clip(action, -1.0, 1.0) if (excess > 0).any() else action

    def _check_length(self, column: str, length: int, rows: int) -> None:
        if length != rows:
            raise self.error(column, f"has {length} rows, but {self._name('observation')} has {rows}")

    def _must_equal(
        self, column: str, given: np.ndarray, expected: np.ndarray, rule: str, shown: np.ndarray
    ) -> None:
        wrong = given != expected
        if wrong.any():
            row = int(np.argmax(wrong))
            number = self.first_row + row
            raise self.error(
                column, f"holds {shown[row]} in row {number}, but it {rule}; are the rows in order?"
            )
