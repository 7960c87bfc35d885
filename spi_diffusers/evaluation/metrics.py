"""What an evaluation is boiled down to: one entry per (task, algorithm, extraction, cost limit, train seed).

Entries are all that tables, plots and cards are made from. No torch is imported here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

import numpy as np

from spi_diffusers.data.tasks import TASKS, Task

#: What identifies an entry: a newer one with the same values replaces an older one.
KEY_FIELDS = ("task", "algorithm", "extraction", "cost_limit", "feedback", "train_seed")

#: What an entry's extraction is where there is only one way to act, as with a baseline.
BASELINE_EXTRACTION = "policy"

EntryKey = tuple[str, str, str, float, bool, int]


@dataclass(frozen=True)
class TrainInfo:
    """Where the evaluated weights come from.

    Attributes:
        algorithm: name of the algorithm, e.g. "spi".
        train_seed: seed of the training run.
        updates: number of gradient updates.
        train_seconds: wall-clock time of the training in seconds.
        dataset: what it was trained on: "id" (Hub id or name) and "revision" or "sha256".
    """

    algorithm: str
    train_seed: int
    updates: int
    train_seconds: float
    dataset: Mapping[str, str]

    def __post_init__(self) -> None:
        _check_fields(self)

    @classmethod
    def from_dict(cls, values: Any) -> "TrainInfo":
        """Take it from the content of a policy's `train_info.json`, which may hold more.

        Raises:
            ValueError: not a mapping, a field is missing or of the wrong kind; the message names it.
        """
        known = [f.name for f in fields(cls)]
        _check_names(values, known, "train info")
        return cls(**{name: values[name] for name in known})


@dataclass(frozen=True)
class EvaluationEntry:
    """The outcome of one policy at one cost limit, over all evaluation episodes.

    Standard deviations are sample standard deviations over the episodes (divided by n - 1; 0 for a single
    episode).

    Attributes:
        task: DSRL's task name.
        algorithm: name of the algorithm.
        extraction: how the action was picked from the candidates: "safe", or "reward" (Eq. 12); "policy" for
            a baseline.
        cost_limit: limit on the cost return of an episode.
        feedback: whether the cost so far was fed back at every step.
        train_seed: seed of the training run.
        eval_seeds: seeds of the evaluation, `episodes / len(eval_seeds)` episodes each.
        episodes: number of episodes, over all evaluation seeds.
        updates: number of gradient updates in training.
        train_seconds: wall-clock time of the training in seconds.
        reward_mean: mean return.
        reward_std: standard deviation of the returns.
        cost_mean: mean cost return.
        cost_std: standard deviation of the cost returns.
        normalized_reward: mean return in DSRL's scale (`Task.normalize_reward`).
        normalized_cost: mean cost return over the limit (`Task.normalize_cost`); at most 1 is safe.
        within_limit: share of the episodes with cost return <= cost limit.
        steps_per_second: environment steps per second, policy included, all episodes stepped together.
        dataset: as in `TrainInfo`.
        versions: version by package.
    """

    task: str
    algorithm: str
    extraction: str
    cost_limit: float
    feedback: bool
    train_seed: int
    eval_seeds: tuple[int, ...]
    episodes: int
    updates: int
    train_seconds: float
    reward_mean: float
    reward_std: float
    cost_mean: float
    cost_std: float
    normalized_reward: float
    normalized_cost: float
    within_limit: float
    steps_per_second: float
    dataset: dict[str, str]
    versions: dict[str, str]

    def __post_init__(self) -> None:
        _check_fields(self)
        # One type per field, wherever the values come from (JSON knows no tuples, NumPy has its own numbers).
        object.__setattr__(self, "eval_seeds", tuple(int(seed) for seed in self.eval_seeds))
        for name in _INT_FIELDS:
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in _FLOAT_FIELDS:
            object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def from_episodes(
        cls,
        task: Task,
        returns: np.ndarray,
        cost_returns: np.ndarray,
        *,
        cost_limit: float,
        extraction: str,
        feedback: bool,
        eval_seeds: Sequence[int],
        steps_per_second: float,
        train_info: TrainInfo,
        versions: Mapping[str, str],
    ) -> "EvaluationEntry":
        """Boil the episodes of an evaluation down to an entry.

        Args:
            task: the task that was played; its constants give the normalised figures.
            returns: (B,) undiscounted returns.
            cost_returns: (B,) undiscounted cost returns.
            cost_limit: limit on the cost return of an episode.
            extraction: "safe" or "reward".
            feedback: whether the cost so far was fed back at every step.
            eval_seeds: seeds of the rollouts.
            steps_per_second: speed of the rollouts.
            train_info: where the weights come from.
            versions: version by package.

        Returns:
            The entry.

        Raises:
            ValueError: no episodes, arrays of different lengths, values that are not finite, or a
                negative cost limit.
        """
        reward, cost = (
            EpisodeStatistics.of("return", returns),
            EpisodeStatistics.of("cost return", cost_returns),
        )
        if reward.count != cost.count:
            raise ValueError(f"{reward.count} returns for {cost.count} cost returns: one of each per episode")
        return cls(
            task=task.name,
            algorithm=train_info.algorithm,
            extraction=extraction,
            cost_limit=cost_limit,
            feedback=feedback,
            train_seed=train_info.train_seed,
            eval_seeds=tuple(eval_seeds),
            episodes=reward.count,
            updates=train_info.updates,
            train_seconds=train_info.train_seconds,
            reward_mean=reward.mean,
            reward_std=reward.std,
            cost_mean=cost.mean,
            cost_std=cost.std,
            normalized_reward=task.normalize_reward(reward.mean),
            normalized_cost=task.normalize_cost(cost.mean, cost_limit),
            within_limit=float(np.mean(np.asarray(cost_returns) <= cost_limit)),
            steps_per_second=steps_per_second,
            dataset=dict(train_info.dataset),
            versions=dict(versions),
        )

    @classmethod
    def from_dict(cls, values: Any) -> "EvaluationEntry":
        """Make an entry from what `to_dict` gave.

        Raises:
            ValueError: not a mapping, a field is missing or unknown, or a value is of the wrong kind; the
                message names the field.
        """
        known = [f.name for f in fields(cls)]
        _check_names(values, known, "an entry")
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(f"unknown field{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, fields in the order of the class."""
        return {**asdict(self), "eval_seeds": list(self.eval_seeds)}

    @property
    def key(self) -> EntryKey:
        """The values of `KEY_FIELDS`; sorting by it gives the order of results files and tables."""
        return tuple(getattr(self, name) for name in KEY_FIELDS)


@dataclass(frozen=True)
class EpisodeStatistics:
    """Mean and spread over episodes.

    Attributes:
        count: number of episodes.
        mean: their mean.
        std: their sample standard deviation (n - 1), 0 for a single one.
    """

    count: int
    mean: float
    std: float

    @classmethod
    def of(cls, name: str, values: Any) -> "EpisodeStatistics":
        """Compute them in float64.

        Args:
            name: what the values are, for messages.
            values: (B,) numbers.

        Raises:
            ValueError: not one-dimensional, empty, or not finite.
        """
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or len(array) == 0:
            raise ValueError(f"need one {name} per episode and at least one episode, got shape {array.shape}")
        if not np.isfinite(array).all():
            episode = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"the {name} of episode {episode} is {array[episode]}")
        std = float(array.std(ddof=1)) if len(array) > 1 else 0.0
        return cls(len(array), float(array.mean()), std)


def check_cost_limit(cost_limit: Any) -> float:
    """Turn a cost limit into a float.

    Raises:
        ValueError: not a finite number of at least 0.
    """
    if not _is_number(cost_limit) or cost_limit < 0:
        raise ValueError(
            f"a cost limit must be a finite number of at least 0 (cost per episode), got {cost_limit!r}"
        )
    return float(cost_limit)


def describe_key(key: EntryKey) -> str:
    """An entry's key for messages, e.g. "task=..., algorithm=..., ..."."""
    return ", ".join(f"{name}={value}" for name, value in zip(KEY_FIELDS, key, strict=True))


def _check_names(values: Any, known: list[str], what: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} must be an object with named fields, got {values!r}")
    missing = [name for name in known if name not in values]
    if missing:
        raise ValueError(f"missing field{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}")


def _check_fields(record: "TrainInfo | EvaluationEntry") -> None:
    for field in fields(record):
        kind, is_valid = _FIELD_CHECKS[field.name]
        value = getattr(record, field.name)
        if not is_valid(value):
            raise ValueError(f"field {field.name!r} must be {kind}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


def _is_strings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(x, str) for pair in value.items() for x in pair)


def _is_source(value: Any) -> bool:
    return _is_strings(value) and "id" in value and ("revision" in value or "sha256" in value)


# How a value must look, in words and as a check: results files may come from anywhere.
_NAME = ("a non-empty string", lambda value: isinstance(value, str) and value != "")
_NUMBER = ("a finite number", _is_number)
_NOT_NEGATIVE = ("a finite number of at least 0", lambda value: _is_number(value) and value >= 0)
_SEED = ("an integer of at least 0", _is_count)
_FIELD_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "task": ("the full name of a DSRL task", lambda value: isinstance(value, str) and value in TASKS),
    "algorithm": _NAME,
    "extraction": _NAME,
    "cost_limit": _NOT_NEGATIVE,
    "feedback": ("true or false", lambda value: isinstance(value, bool)),
    "train_seed": _SEED,
    "eval_seeds": (
        "a non-empty list of seeds (integers of at least 0)",
        lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_count, value)),
    ),
    "episodes": ("an integer of at least 1", lambda value: _is_count(value) and value > 0),
    "updates": _SEED,
    "train_seconds": _NOT_NEGATIVE,
    "reward_mean": _NUMBER,
    "reward_std": _NOT_NEGATIVE,
    "cost_mean": _NOT_NEGATIVE,
    "cost_std": _NOT_NEGATIVE,
    "normalized_reward": _NUMBER,
    "normalized_cost": _NOT_NEGATIVE,
    "within_limit": ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "steps_per_second": _NOT_NEGATIVE,
    "dataset": ('an object with "id" and "revision" or "sha256" (strings)', _is_source),
    "versions": ("an object of strings", _is_strings),
}
_INT_FIELDS = ("train_seed", "episodes", "updates")
_FLOAT_FIELDS = tuple(f.name for f in fields(EvaluationEntry) if f.type in (float, "float"))
assert tuple(_FIELD_CHECKS) == tuple(f.name for f in fields(EvaluationEntry))
