"""What actions are: the range that a source states or its values show; discrete ones are refused."""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from spi_diffusers.data.columns import ACTION_TOLERANCE, DatasetError
from spi_diffusers.documents import parse_json
from spi_diffusers.messages import shown

#: Key of the range in the metadata of a parquet file.
_KEY = b"action_range"
#: Columns of integers with no more values than this are taken for discrete actions.
_FEW = 32


class ActionRange(NamedTuple):
    """Smallest and largest action of an environment, one number per dimension each."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def to_metadata(self) -> dict[bytes, bytes]:
        """What `from_metadata` reads again."""
        return {_KEY: json.dumps(self._asdict()).encode()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None, source: str) -> "ActionRange | None":
        """The range in a parquet file's metadata, if it is there; DatasetError for one that is damaged."""
        text = (metadata or {}).get(_KEY)
        if text is None:
            return None
        try:
            read = parse_json(text)
            return cls(*(tuple(float(bound) for bound in read[name]) for name in cls._fields))
        except (ValueError, TypeError, KeyError) as error:
            raise DatasetError(f"{source}: the range of actions in its metadata is {shown(text)}") from error

    def check(self, source: str, action_dim: int) -> None:
        """Refuse, by DatasetError, a range that cannot be that of actions of this size."""
        sizes = (len(self.low), len(self.high))
        ordered = all(map(math.isfinite, self.low + self.high)) and all(
            low < high for low, high in zip(self.low, self.high, strict=False)
        )
        if sizes != (action_dim, action_dim) or not ordered:
            raise DatasetError(
                f"{source}: states the range {shown(list(self.low))} to {shown(list(self.high))} of its "
                f"actions, which needs {action_dim} finite numbers each, the first below the second"
            )


def seen_range(low: np.ndarray, high: np.ndarray) -> ActionRange:
    """The range that actions from `low` to `high`, (A,) each, are taken to have.

    A dimension within [-1, 1] keeps that, any other has what was seen; one that never changes lies in the
    middle.
    """
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    margin = np.where(low == high, np.maximum(np.abs(low), 1.0), 0.0)
    usual = np.maximum(np.abs(low), np.abs(high)) <= 1.0 + ACTION_TOLERANCE
    low, high = np.where(usual, -1.0, low - margin), np.where(usual, 1.0, high + margin)
    return ActionRange(tuple(low.tolist()), tuple(high.tolist()))


class IntegerActions:
    """The values of action columns that are typed as integers, as far as they are few."""

    def __init__(self) -> None:
        self._values: dict[str, set[int]] = {}
        self._others: set[str] = set()

    def add(self, column: str, values: np.ndarray) -> None:
        """Take in a column, or a part of it, with the type that the source gives it."""
        if values.dtype.kind not in "iub":
            self._others.add(column)
        elif column not in self._others:
            self._values.setdefault(column, set()).update(np.unique(values)[: _FEW + 1].tolist())
            if len(self._values[column]) > _FEW:
                self._others.add(column)

    def check(self, source: str) -> None:
        """Refuse discrete actions, by DatasetError."""
        for column in sorted(self._values.keys() - self._others):
            values = sorted(self._values[column])
            few = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
            raise DatasetError(
                f"{source}: column {column!r} is typed as integers and has {len(values)} values ({few}): "
                "discrete actions, which no algorithm here takes. If they are numbers of a continuous "
                "action, write them as floats (1.0)"
            )
