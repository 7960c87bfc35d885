"""Transitions from the columns of a source, once it is known which of them hold what (`roles.py`)."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np

from spi_diffusers.data.actions import ActionRange, IntegerActions
from spi_diffusers.data.arrow import column_to_numpy, is_list
from spi_diffusers.data.columns import COLUMNS, VECTOR_COLUMNS, ColumnChecker, DatasetError
from spi_diffusers.data.memory import check_size
from spi_diffusers.data.roles import ColumnNames, choose_columns, find_done
from spi_diffusers.data.tasks import Task
from spi_diffusers.data.transitions import TransitionDataset

if TYPE_CHECKING:
    import pyarrow as pa

#: A column as it was read: an array, or a column of an Arrow table.
Values: TypeAlias = Union[np.ndarray, "pa.ChunkedArray"]


@dataclass(frozen=True)
class SourceTable:
    """A table in a source, such as a file: what its columns are called, and how some of them are read.

    Attributes:
        source: what to call it in messages.
        names: of all columns.
        read: gives the columns with some of these names.
        is_episode: whether it is one episode, where nothing else tells.
        size: bytes of memory that some of them will take, by what the file says, as far as not read yet.
        action_range: of the actions with usual names, where the source states it.
        cost_names: of the costs in the column with the usual name, where the source states them.
    """

    source: str
    names: Sequence[str]
    read: Callable[[list[str]], Mapping[str, Values]]
    is_episode: bool = False
    size: Callable[[list[str]], int] = lambda wanted: 0
    action_range: ActionRange | None = None
    cost_names: tuple[str, ...] | None = None


def dataset_from_tables(
    tables: Sequence[SourceTable],
    source: str,
    named: ColumnNames | None = None,
    task: Task | None = None,
    *,
    clip_actions: bool = False,
) -> TransitionDataset:
    """Make the dataset of one or several tables with the same columns.

    No episode reaches from one table into the next. A missing `next_observation` is derived, with a warning,
    see `derive_next_observation`.

    Raises:
        DatasetError: columns are missing, ambiguous or named for two roles, nothing tells where episodes end,
            the columns do not fit into memory together, or do not pass the checks of
            `TransitionDataset.from_columns`.
    """
    named = named or ColumnNames()
    chosen = [_choose(table, named) for table in tables]
    check_size(source, sum(table.size(_flat(roles)) for table, roles in zip(tables, chosen, strict=True)))
    raws: list[dict[str, np.ndarray]] = []
    names: dict[str, str] = {}
    episodes, integers = 0, IntegerActions()
    for table, roles in zip(tables, chosen, strict=True):
        _check_ends(table, roles, warn=not raws)
        raw, table_names = _read_roles(table, roles, integers)
        if raws:
            _must_agree(table.source, raw, tables[0].source, raws[0])
        if len(tables) > 1:  # a single one is checked as a whole, below
            checker = ColumnChecker(table.source, table_names)
            raw |= {
                name: checker.clean_column(name, raw[name], task, clip_actions=clip_actions)
                for name in COLUMNS
                if name in raw
            }
            checker.check_ends(np.flatnonzero(raw["terminated"] | raw["truncated"]), len(raw["reward"]))
            if "episode_index" in raw:
                raw["episode_index"] = raw["episode_index"] + episodes
                episodes = int(raw["episode_index"].max(initial=episodes)) + 1
        raws.append(raw)
        names = names or table_names
    if task is None:  # tasks have continuous ones
        integers.check(source)
    if len(raws) == 1:
        joined = raws[0]
    else:
        joined = {name: np.concatenate([raw[name] for raw in raws]) for name in raws[0]}
    if "next_observation" not in joined:
        stand_in = {**joined, "next_observation": joined["observation"]}
        clean = ColumnChecker(source, names).clean(stand_in, task, clip_actions=clip_actions)
        joined, cut_off = derive_next_observation(clean)
        warnings.warn(
            f"{source}: has no column of the next observation; took the following row of each episode. "
            f"Nothing follows the last row of {cut_off} truncated episodes: it is kept with its cost, as if "
            "its step had led to its own observation",
            stacklevel=2,
        )
    return TransitionDataset.from_columns(
        joined,
        task=task,
        source=source,
        names=names,
        clip_actions=clip_actions,
        action_range=tables[0].action_range if named.action is None else None,
        cost_names=(tables[0].cost_names if named.cost is None else None) or _cost_names(joined, chosen[0]),
    )


def _cost_names(columns: Mapping[str, np.ndarray], chosen: Mapping[str, tuple[str, ...]]) -> list[str] | None:
    """What several costs are called: as their columns, or by number where one column holds them."""
    names = chosen["cost"]
    if len(names) > 1:
        return list(names)
    width = columns["cost"].shape[1] if columns["cost"].ndim > 1 else 1
    return [f"{names[0]}_{number}" for number in range(width)]


def derive_next_observation(columns: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Fill in `next_observation` where a file has none, from the row that follows in the same episode.

    The last row of an episode has no following row, so its own observation stands in. Where the episode
    terminated, the bootstrap is cut and the value is never used. Where it was truncated, it stands for what
    followed, which is a step off; without the row its cost would be missing, and a step of the episode.

    Returns:
        The columns with the new one, and the number of truncated episodes.
    """
    terminated, truncated = columns["terminated"], columns["truncated"]
    observation = columns["observation"]
    following = np.concatenate([observation[1:], observation[-1:]])
    new = {name: columns[name] for name in COLUMNS}
    new["next_observation"] = np.where((terminated | truncated)[:, None], observation, following)
    return new, int((truncated & ~terminated).sum())


def _choose(table: SourceTable, named: ColumnNames) -> dict[str, tuple[str, ...]]:
    chosen = choose_columns(table.source, table.names, named)
    if "frame_index" in table.names:
        chosen.setdefault("frame_index", ("frame_index",))
    return chosen


def _flat(chosen: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [name for names in chosen.values() for name in names]


def _check_ends(table: SourceTable, chosen: Mapping[str, tuple[str, ...]], *, warn: bool) -> None:
    """Refuse a table that does not tell where episodes end, or has a flag that may say that the task did it.

    `warn` is off where it has been warned of the same before.
    """
    if not table.is_episode and not chosen.keys() & {"terminated", "truncated", "episode_index"}:
        done = find_done(table.names)
        hint = "" if done is None else f" Column {done!r} may be one of these: say which."
        raise DatasetError(
            f"{table.source}: nothing tells where an episode ends; name the column that holds the "
            "episode's number (--episode-column), or those of its ends (--terminated-column, "
            f"--truncated-column).{hint}"
        )
    taken = _flat(chosen)
    done = find_done([name for name in table.names if name not in taken])
    ends_known = table.is_episode or chosen.keys() & {"truncated", "episode_index"}
    if done is None or ("terminated" in chosen and ends_known):
        return
    if done != "next.done":
        raise DatasetError(
            f"{table.source}: column {done!r} may say that the task itself ended (--terminated-column "
            f"{done}) or that the episode was cut off (--truncated-column {done}); say which (spi data "
            "convert)"
        )
    if warn:  # LeRobot's: the last step of an episode
        warnings.warn(
            f"{table.source}: column 'next.done' tells that an episode ended, not whether the task ended it: "
            "every end is taken as truncated. If the task ended there, say --terminated-column next.done",
            stacklevel=3,
        )


def _read_roles(
    table: SourceTable, chosen: Mapping[str, tuple[str, ...]], integers: IntegerActions
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The values of each role, with the ends of all episodes, and what the source calls it."""
    values = table.read(_flat(chosen))
    raw: dict[str, np.ndarray] = {}
    names: dict[str, str] = {}
    for role, columns in chosen.items():
        names[role] = ", ".join(columns[:3]) + (", ..." if len(columns) > 3 else "")
        if role in VECTOR_COLUMNS or (role == "cost" and _is_vector(columns, values)):
            pieces = [_vector(table.source, name, values[name]) for name in columns]
            if role == "action":
                for name, piece in zip(columns, pieces, strict=True):
                    integers.add(name, piece)
            raw[role] = _side_by_side(table.source, columns, pieces)
        elif role == "episode_index":
            raw[role] = _number_episodes(table.source, columns[0], values[columns[0]])
        else:
            raw[role] = _one_each(table.source, columns[0], values[columns[0]])
    rows = len(raw["reward"])
    raw.setdefault("terminated", np.zeros(rows, dtype=bool))
    if "truncated" not in raw:
        raw["truncated"] = np.zeros(rows, dtype=bool)
        if ("episode_index" in raw or table.is_episode) and rows:
            number = raw.get("episode_index", np.zeros(rows))
            checker = ColumnChecker(table.source, names)
            terminated = checker.clean_column("terminated", raw["terminated"], None)
            if len(number) == len(terminated) == rows:  # else refused by the checks of all columns
                raw["truncated"] = np.append(np.diff(number) != 0, True) & ~terminated
    return raw, names


def _is_vector(columns: Sequence[str], values: Mapping[str, Values]) -> bool:
    """Whether columns hold several numbers per row."""
    first = values[columns[0]]
    return len(columns) > 1 or (first.ndim > 1 if isinstance(first, np.ndarray) else is_list(first.type))


def _vector(source: str, name: str, values: Values) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        values = column_to_numpy(values, name, source, vector=is_list(values.type))
    return values[:, None] if values.ndim == 1 else values


def _side_by_side(source: str, names: Sequence[str], pieces: list[np.ndarray]) -> np.ndarray:
    if len(pieces) == 1:
        return pieces[0]  # with no copy; the checks see to its shape
    for name, piece in zip(names, pieces, strict=True):
        if piece.ndim != 2 or piece.dtype.kind not in "fiub":
            shape = f"{piece.dtype} of shape {piece.shape}"
            raise DatasetError(
                f"{source}: column {name!r} must hold a number or a vector per row, not {shape}"
            )
        if len(piece) != len(pieces[0]):
            raise DatasetError(
                f"{source}: column {name!r} has {len(piece)} rows, but {names[0]!r} has {len(pieces[0])}"
            )
    return np.concatenate(pieces, axis=1)


def _one_each(source: str, name: str, values: Values) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    return column_to_numpy(values, name, source, vector=False)


def _number_episodes(source: str, name: str, values: Values) -> np.ndarray:
    """Number the episodes 0, 1, ... by first appearance; (N,) int64."""
    import pyarrow as pa

    if isinstance(values, np.ndarray):
        flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        column = pa.chunked_array([pa.array(flat)]) if flat.ndim == 1 else None
    else:
        column = values
    if column is None or pa.types.is_nested(column.type):
        kind = values.shape if isinstance(values, np.ndarray) else values.type
        raise DatasetError(f"{source}: column {name!r} must hold one number or name per row, not {kind}")
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no rows
        return np.zeros(0, dtype=np.int64)
    if column.null_count:
        raise DatasetError(f"{source}: column {name!r} has {column.null_count} missing values")
    encoded = column.dictionary_encode()
    numbers = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    # Also missing: a text that is empty, as in a CSV file, and NaN, as pandas writes it.
    blank = [
        i for i, value in enumerate(encoded.dictionary.to_pylist()) if value in ("", b"") or value != value
    ]
    if len(rows := np.flatnonzero(np.isin(numbers, blank))):
        raise DatasetError(
            f"{source}: column {name!r} has {len(rows)} missing values, the first in row {rows[0]}"
        )
    return numbers


def _must_agree(
    source: str, raw: Mapping[str, np.ndarray], first_source: str, first: Mapping[str, np.ndarray]
) -> None:
    """Refuse files whose columns are not the same."""
    for role in (*first, *raw):
        if (role in first) != (role in raw):
            has, lacks = (first_source, source) if role in first else (source, first_source)
            raise DatasetError(
                f"{lacks}: has no column of the {role.replace('_', ' ')}, which {has} has; files that "
                "are converted together need the same columns"
            )
    for role in (*VECTOR_COLUMNS, "cost"):
        if role in raw and raw[role].shape[1:] != first[role].shape[1:]:
            ours, theirs = (each[role].shape[1] if each[role].ndim > 1 else 1 for each in (raw, first))
            name = role.replace("_", " ")
            raise DatasetError(f"{source}: the {name} has {ours} dimensions, but {theirs} in {first_source}")
