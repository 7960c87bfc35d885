"""The columns of a transition table: their names, shapes and the checks that every source goes through.

Checks run once, on whole NumPy columns, before anything else is done with the data. Every failure is a
`DatasetError` that names the source, the column as the source calls it, and the first bad row.
"""

from collections.abc import Mapping

import numpy as np

from spi_diffusers.data.tasks import Task

#: The columns of a transition in their order in the parquet layout (DSRL calls them otherwise).
VECTOR_COLUMNS = ("observation", "next_observation", "action")
VALUE_COLUMNS = ("reward", "cost")
FLAG_COLUMNS = ("terminated", "truncated")
COLUMNS = VECTOR_COLUMNS + VALUE_COLUMNS + FLAG_COLUMNS
#: Bookkeeping columns: which episode a row belongs to, and which step of it the row is.
INDEX_COLUMNS = ("episode_index", "frame_index")

#: How far outside [-1, 1] an action of a DSRL task may lie (rounding); such values are clamped.
ACTION_TOLERANCE = 1e-3


class DatasetError(ValueError):
    """A dataset cannot be used; the message names the file, the column and the row."""


class ColumnChecker:
    """Turns raw columns of one source into clean ones, or says what is wrong with them.

    Args:
        source: what to call the source in messages (a path or a Hub id).
        names: how the source calls a column, where that differs from our name.
    """

    def __init__(self, source: str, names: Mapping[str, str] | None = None):
        self.source = source
        self.names = dict(names or {})

    def error(self, column: str, problem: str) -> DatasetError:
        """Make the error for a problem with a column."""
        return DatasetError(f"{self.source}: column {self.names.get(column, column)!r} {problem}")

    def clean(
        self, raw: Mapping[str, np.ndarray], task: Task | None, *, clip_actions: bool = False
    ) -> dict[str, np.ndarray]:
        """Check and convert all columns.

        Args:
            raw: arrays by our column names (`COLUMNS`, and `INDEX_COLUMNS` where the source has them).
                Vectors are (N, D); values and flags are (N,) or (N, 1), of any numeric or bool type.
            task: fixes the dimensions and the action range (-1 to 1), where given.
            clip_actions: clip actions outside that range instead of refusing them.

        Returns:
            Contiguous arrays: vectors (N, D) and values (N,) float32, flags (N,) bool, and
            `episode_index` (0, 1, ... in file order) and `frame_index`, (N,) int64.

        Raises:
            DatasetError: see the class.
        """
        for column in COLUMNS:
            if column not in raw:
                has = ", ".join(repr(self.names.get(name, name)) for name in raw) or "none"
                raise self.error(column, f"is missing; the file has {has}")
        clean: dict[str, np.ndarray] = {}
        for column in VECTOR_COLUMNS:
            clean[column] = self._vectors(column, raw[column])
        for column in VALUE_COLUMNS:
            clean[column] = self._finite(column, self._one_per_row(column, raw[column]))
        for column in FLAG_COLUMNS:
            clean[column] = self._flags(column, self._one_per_row(column, raw[column]))
        rows = len(clean["observation"])
        for column in COLUMNS:
            if len(clean[column]) != rows:
                raise self.error(
                    column, f"has {len(clean[column])} rows, but {self._name('observation')} has {rows}"
                )
        if rows == 0:
            raise DatasetError(f"{self.source}: zero rows; a dataset needs at least one transition")
        self._check_dimensions(clean, task)
        if (clean["cost"] < 0).any():
            row = int(np.argmax(clean["cost"] < 0))
            raise self.error("cost", f"has the negative value {clean['cost'][row]:g} in row {row}")
        if task is not None:
            clean["action"] = self._actions_in_range(clean["action"], task, clip_actions)
        clean["episode_index"], clean["frame_index"] = self._episodes(clean, raw)
        return clean

    def _name(self, column: str) -> str:
        return repr(self.names.get(column, column))

    def _numeric(self, column: str, values: np.ndarray, kinds: str = "fiub") -> np.ndarray:
        values = np.asarray(values)
        if values.dtype.kind not in kinds:
            raise self.error(column, f"must hold numbers, not {values.dtype}")
        return values

    def _vectors(self, column: str, values: np.ndarray) -> np.ndarray:
        values = self._numeric(column, values)
        if values.ndim != 2:
            raise self.error(
                column,
                f"must have shape (rows, dimensions), not {values.shape}; flatten each row to one vector",
            )
        return self._finite(column, values)

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
                f"first in row {row}: {values[row].tolist()}",
            )
        return values

    def _flags(self, column: str, values: np.ndarray) -> np.ndarray:
        if values.dtype == bool:
            return np.ascontiguousarray(values)
        bad = (values != 0) & (values != 1)  # NaN is neither, so it is caught here
        if bad.any():
            row = int(np.argmax(bad))
            raise self.error(column, f"must hold only 0 and 1, but row {row} holds {values[row]}")
        return values == 1

    def _check_dimensions(self, clean: Mapping[str, np.ndarray], task: Task | None) -> None:
        have = {column: clean[column].shape[1] for column in VECTOR_COLUMNS}
        expected: dict[str, int | None] = dict.fromkeys(VECTOR_COLUMNS)
        if task is not None:
            expected = {
                "observation": task.observation_dim,
                "next_observation": task.observation_dim,
                "action": task.action_dim,
            }
        for column, size in have.items():
            if expected[column] is not None and size != expected[column]:
                assert task is not None
                raise self.error(column, f"has {size} dimensions, but {task.name} has {expected[column]}")
            if size == 0:
                raise self.error(column, "has 0 dimensions")
        if have["next_observation"] != have["observation"]:
            raise self.error(
                "next_observation",
                f"has {have['next_observation']} dimensions, but {self._name('observation')} "
                f"has {have['observation']}",
            )

    def _actions_in_range(self, action: np.ndarray, task: Task, clip_actions: bool) -> np.ndarray:
        excess = np.abs(action).max(axis=1) - 1.0
        outside = excess > ACTION_TOLERANCE
        if outside.any() and not clip_actions:
            row = int(np.argmax(outside))
            raise self.error(
                "action",
                f"has {int(outside.sum())} rows outside [-1, 1], the action range of {task.name}, first in "
                f"row {row}: {action[row].tolist()}. Rescale the actions to [-1, 1]; if the simulator "
                "clipped them itself when it ran, load with clip_actions=True",
            )
        return np.clip(action, -1.0, 1.0) if (excess > 0).any() else action

    def _episodes(
        self, clean: Mapping[str, np.ndarray], raw: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        ends = clean["terminated"] | clean["truncated"]
        names = f"{self._name('terminated')} nor {self._name('truncated')}"
        if not ends.any():
            raise DatasetError(
                f"{self.source}: no episode ends: neither {names} is set in any of {len(ends)} rows. "
                f"Set {self._name('truncated')} in the last row of every episode that was cut off"
            )
        if not ends[-1]:
            first = int(np.flatnonzero(ends)[-1]) + 1
            raise DatasetError(
                f"{self.source}: the last episode (rows {first} to {len(ends) - 1}) has no end: neither "
                f"{names} is set in its last row. The file may be cut off; if the episode was stopped "
                f"there, set {self._name('truncated')} in that row"
            )
        starts = np.concatenate([[0], np.flatnonzero(ends)[:-1] + 1])
        lengths = np.diff(np.append(starts, len(ends)))
        episode_index = np.repeat(np.arange(len(starts), dtype=np.int64), lengths)
        frame_index = np.arange(len(ends), dtype=np.int64) - np.repeat(starts, lengths)
        if "episode_index" in raw:
            self._check_episode_index(raw["episode_index"], starts, len(ends))
        if "frame_index" in raw:
            given = self._one_per_row("frame_index", raw["frame_index"])
            self._must_equal("frame_index", given, frame_index, "counts the steps of each episode from 0")
        return episode_index, frame_index

    def _check_episode_index(self, values: np.ndarray, starts: np.ndarray, rows: int) -> None:
        given = self._one_per_row("episode_index", values)
        is_start = np.zeros(rows, dtype=np.int64)
        is_start[starts] = 1
        if len(given) == rows:
            changes = np.concatenate([[1], given[1:] != given[:-1]]).astype(np.int64)
        else:
            changes = given
        rule = "changes exactly where the row before has an episode end"
        self._must_equal("episode_index", changes, is_start, rule, given)
        if len(np.unique(given[starts])) != len(starts):
            raise self.error(
                "episode_index", "uses one index for two episodes; rows of an episode go together"
            )

    def _must_equal(
        self, column: str, given: np.ndarray, expected: np.ndarray, rule: str, shown: np.ndarray | None = None
    ) -> None:
        if len(given) != len(expected):
            raise self.error(
                column, f"has {len(given)} rows, but {self._name('observation')} has {len(expected)}"
            )
        wrong = given != expected
        if wrong.any():
            row = int(np.argmax(wrong))
            value = (given if shown is None else shown)[row]
            raise self.error(column, f"holds {value} in row {row}, but it {rule}; are the rows in order?")
