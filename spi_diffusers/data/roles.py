"""Which columns of a source hold what: by the names that were given, or by usual names.

The same for every source: tables, HDF5 files, NumPy archives, Minari and LeRobot datasets. Roles are decided
by names alone, before any value is read.
"""

import fnmatch
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spi_diffusers.data.columns import VECTOR_COLUMNS, DatasetError, list_names

# Usual names of columns in other logs. Ours comes first: where it is there, no other is looked for. A vector
# may also be spread over numbered columns (obs_0, obs_1 or state[0], state[1]) or the entries of a group
# (observations/joints, observations/speed).
_USUAL = {
    "observation": ("observations", "obs", "state", "states", "observation.state"),
    "next_observation": (
        "next_observations",
        "next_obs",
        "next_state",
        "next_states",
        "next.observation.state",
    ),
    "action": ("actions", "act"),
    "reward": ("rewards", "next.reward"),
    "cost": ("costs", "next.cost", "infos/cost", "info/cost"),
    "terminated": ("terminal", "terminals", "termination", "terminations", "next.terminated"),
    "truncated": ("timeout", "timeouts", "truncation", "truncations", "next.truncated"),
    "episode_index": ("episode", "episode_id", "episodes", "trajectory", "trajectory_id", "traj_id"),
}
_NUMBER = r"([._]?\[?)(\d+)(\]?)"  # behind the name of a vector that is spread over columns
_NEEDED = ("observation", "action", "reward", "cost")
# Flags of an ended episode that do not say whether the task ended it: done, is_done, next.done, infos/dones.
_DONE = re.compile(r"(.*[._/])?(is)?dones?", re.IGNORECASE)


@dataclass(frozen=True)
class ColumnNames:
    """Which columns of a source hold what.

    A vector is one column of lists (or an array with two dimensions), or several columns side by side: names
    or patterns such as `obs_*`, which stand for all columns that match, in natural order (`obs_2` before
    `obs_10`). What lies in groups is named by its path: `infos/cost`.

    What is None is looked for by its name here and by other usual names, such as `obs`, `state_0`,
    `rewards` or `timeouts`. `observation`, `action`, `reward` and `cost` must be there. Several costs are
    named as a vector is; each gets the name of its column.

    Attributes:
        observation: column(s) of the observation.
        action: column(s) of the action.
        reward: column of the reward.
        cost: column(s) of the cost, at least 0.
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
    cost: str | tuple[str, ...] | None = None
    next_observation: tuple[str, ...] | None = None
    terminated: str | None = None
    truncated: str | None = None
    episode: str | None = None


def column_option(role: str) -> str:
    """The option of `spi data convert` that names the column(s) of a role."""
    return f"--{word(role).replace('_', '-')}-column" + ("s" if role in VECTOR_COLUMNS else "")


def find_done(names: Sequence[str]) -> str | None:
    """The first column that says that an episode ended, but not whether the task ended it."""
    return next(filter(_DONE.fullmatch, names), None)


# ---- which columns


def choose_columns(source: str, there: Sequence[str], named: ColumnNames) -> dict[str, tuple[str, ...]]:
    """Find the column(s) of every role that a source has, by the names that were given, or by usual ones.

    DatasetError if needed ones are missing (all are named), ambiguous, or named for two roles.
    """
    given = {role: vars(named)[word(role)] for role in _USUAL}
    chosen: dict[str, tuple[str, ...]] = {}
    missing: list[str] = []
    unnamed: list[str] = []
    roles: dict[str, str] = {}  # of the columns that were taken
    for role in sorted(given, key=lambda role: given[role] is None):  # a named one is not found for others
        patterns = given[role]
        if patterns is None:
            found = _find(source, role, [name for name in there if name not in roles])
            if not found and role in _NEEDED:
                unnamed.append(f"the {word(role)} ({column_option(role)})")
        else:
            found = ()
            for pattern in (patterns,) if isinstance(patterns, str) else patterns:
                # A name that only looks like a pattern is a name; one value per row has no pattern.
                is_name = pattern in there or role not in (*VECTOR_COLUMNS, "cost")
                matches = [pattern] if is_name else fnmatch.filter(there, pattern)
                if not set(matches) & set(there):
                    missing.append(f"no column {pattern!r} for the {word(role)} ({column_option(role)})")
                    continue
                found += tuple(sorted((name for name in matches if name not in found), key=natural_order))
        for name in found:
            other = roles.setdefault(name, role)
            if other != role:
                first, second = (f"the {word(each)} ({column_option(each)})" for each in (other, role))
                raise DatasetError(
                    f"{source}: column {name!r} is taken both for {first} and for {second}; a column has "
                    "one role. Give each the columns of its own, by name where a pattern matches too many"
                )
        if found:
            chosen[role] = found
    if unnamed:
        missing.append(f"no column with a usual name for {', '.join(unnamed)}")
    if missing:
        raise DatasetError(
            f"{source}: has {'; '.join(missing)}; name one with that option (spi data convert). It has "
            f"{list_names(there)}"
        )
    _pair_entries(source, chosen, given)
    return chosen


def _find(source: str, role: str, there: Sequence[str]) -> tuple[str, ...]:
    """Find the column(s) of a role by their usual names; empty if there are none."""
    names = (role, *_USUAL[role])
    whole = [(name,) for name in names if name in there]
    spread = {name: _spread(name, there) for name in names} if role in VECTOR_COLUMNS else {}
    if whole and whole[0] == (role,) and not spread.get(role):
        return whole[0]
    found = whole + [group for groups in spread.values() for group in groups]
    if len(found) > 1:
        first, second = (", ".join(columns[:3]) for columns in found[:2])
        raise DatasetError(
            f"{source}: the {word(role)} may be column {first} or {second}; say which with "
            f"{column_option(role)} (spi data convert)"
        )
    if found and not whole:
        _check_consecutive(source, role, found[0])
    return found[0] if found else ()


def _spread(name: str, there: Sequence[str]) -> list[tuple[str, ...]]:
    """The columns that a vector may be spread over: numbered ones of each style, and those of a group."""
    numbered = re.compile(re.escape(name) + _NUMBER)
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for each in there:
        if match := numbered.fullmatch(each):
            groups[match[1], match[3]].append(each)
        elif each.startswith(f"{name}/") or ("." in name and each.startswith(f"{name}.")):  # LeRobot's dots
            groups[("/",)].append(each)
    return [tuple(sorted(group, key=natural_order)) for group in groups.values()]


def _number(name: str) -> int | None:
    """The number at the end of a column's name."""
    match = re.search(r"(\d+)\]?$", name)
    return int(match[1]) if match else None


def _check_consecutive(source: str, role: str, names: Sequence[str]) -> None:
    """Refuse numbered columns of a vector of which one is missing, or is there twice."""
    numbers = [_number(name) for name in names]
    first = numbers[0]
    if first is None or "/" in names[0]:
        return
    if first > 1 or numbers != list(range(first, first + len(numbers))):
        raise DatasetError(
            f"{source}: the numbered columns of the {word(role)} must count on from 0 or 1, but are "
            f"{list_names(names)}; a column may be missing. If not, name them with {column_option(role)} "
            "(spi data convert)"
        )


def _entry(role: str, name: str) -> int | str | None:
    """Which of a vector's columns one with a usual name is: its number, or its path in its group.

    None for a whole vector, and for a column with a name of its own.
    """
    usual = max(filter(name.startswith, (role, *_USUAL[role])), key=len, default=name)
    rest = name.removeprefix(usual)
    if match := re.fullmatch(_NUMBER, rest):
        return int(match[2])
    return rest[1:] if rest[:1] in ("/", ".") else None


def _pair_entries(source: str, chosen: dict[str, tuple[str, ...]], given: Mapping[str, object]) -> None:
    """Give an observation that was named the next observation of the same entries, in the same order.

    DatasetError if one of the two was found with other entries than the other one has.
    """
    first, second = chosen.get("observation", ()), chosen.get("next_observation", ())
    wanted = [_entry("observation", name) for name in first]
    there = {_entry("next_observation", name): name for name in second}
    named = [given[role] is not None for role in ("observation", "next_observation")]
    if not second or all(named) or None in wanted or None in there:
        return
    if named[0] and there.keys() >= set(wanted):
        chosen["next_observation"] = tuple(there[entry] for entry in wanted)
    elif wanted != list(there):
        raise DatasetError(
            f"{source}: the observation has the columns {list_names(first)}, the next observation "
            f"{list_names(second)}; both need the same ones, in the same order. Name both with "
            f"{column_option('observation')} and {column_option('next_observation')} (spi data convert)"
        )


def word(role: str) -> str:
    """What messages and options call a role."""
    return role.removesuffix("_index")


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """A key that sorts names with numbers in them by these numbers: obs_2 before obs_10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]
