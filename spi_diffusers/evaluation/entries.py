"""Entries: the outcome of one policy at one cost limit. Tables, plots and cards are made from them alone.

No torch is imported here.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from numbers import Real
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import AfterValidator, Field

from spi_diffusers.config.validation import (
    Count,
    Flag,
    NotNegative,
    Number,
    Positive,
    Share,
    ShareBetween,
    Text,
    Whole,
    settings,
)
from spi_diffusers.data.simulators import other_dynamics
from spi_diffusers.data.tasks import TASKS, Task
from spi_diffusers.evaluation import knows_limit
from spi_diffusers.messages import shown

#: What identifies an entry: a newer one with the same values replaces an older one.
KEY_FIELDS = ("task", "algorithm", "extraction", "cost_limit", "feedback", "risk", "train_seed")

EntryKey = tuple[str, str, str, float, bool, float, int]


def _known_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"task must be the full name of a DSRL task, got {shown(name)}")
    return name


def _known_source(source: dict[str, str]) -> dict[str, str]:
    if "id" not in source or not source.keys() & {"revision", "sha256"}:
        raise ValueError(f'dataset must have an "id" and a "revision" or "sha256", got {shown(source)}')
    return source


TaskName = Annotated[str, Field(strict=True), AfterValidator(_known_task)]
Source = Annotated[dict[str, str], AfterValidator(_known_source)]


class Record:
    """A dataclass that files hold: they may come from anywhere, so its fields are checked."""

    #: Whether a mapping may hold more than the fields.
    takes_more: ClassVar[bool] = False

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Make a record from what `to_dict` gave; ValueError names a field that is missing, unknown or of the
        wrong kind.
        """
        default = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]
        if not isinstance(values, Mapping):
            raise ValueError(f"must be an object with named fields, got {shown(values)}")
        missing = [name for name in default if name not in values and default[name] is MISSING]
        unknown = [name for name in values if name not in default and not cls.takes_more]
        for what, names in (("missing", missing), ("unknown", unknown)):
            if names:
                raise ValueError(f"{what} field{'s' * (len(names) > 1)} {', '.join(map(repr, names))}")
        return cls(**{name: values[name] for name in default if name in values})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, fields in the order of the class; those that may be left out are, where they
        say nothing.
        """
        default = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
        values = asdict(self)  # type: ignore[call-overload]
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if default[name] is MISSING or value != default[name]
        }


@settings(frozen=True)
class TrainInfo(Record):
    """Where the evaluated weights come from, as a policy's `train_info.json` says, which may say more.

    Attributes:
        algorithm: Name of the algorithm, e.g. "spi".
        train_seed: Seed of the training run.
        updates: Number of gradient updates.
        train_seconds: Wall-clock time of the training in seconds.
        dataset: What it was trained on: "id" (Hub id or name) and "revision" or "sha256".
        cost_margin: The pipeline's setting of that name, which the policy's folder holds beside the record.
    """

    algorithm: Text
    train_seed: Whole
    updates: Whole
    train_seconds: NotNegative
    dataset: Source
    cost_margin: Positive = 1.0

    takes_more = True


def cost_margin_of(settings: Mapping[str, Any]) -> float:
    """The `cost_margin` in a pipeline's settings or a `model_index.json`: 1 where they name none."""
    return settings.get("cost_margin", 1.0)


@settings(frozen=True)
class DivergedRun(Record):
    """A training run whose loss or weights were no longer finite. Listed so that averages can report it.

    `cost_limit` is the one that it was trained for, None if for none; `message` is what training said.
    """

    task: TaskName
    algorithm: Text
    cost_limit: NotNegative | None
    train_seed: Whole
    message: Text

    @property
    def key(self) -> tuple[str, str, float, int]:
        """What identifies it; sorting by it gives the order of results files."""
        limit = -1.0 if self.cost_limit is None else self.cost_limit
        return (self.task, self.algorithm, limit, self.train_seed)

    def concerns(self, entry: "EvaluationEntry") -> bool:
        """Whether an entry is of this very run, which then did not diverge after all."""
        same = (entry.task, entry.algorithm, entry.train_seed) == (self.task, self.algorithm, self.train_seed)
        return same and self.cost_limit in (None, entry.cost_limit)


@settings(frozen=True)
class EvaluationEntry(Record):
    """The outcome of one policy at one cost limit, over all evaluation episodes.

    Standard deviations are sample standard deviations over the episodes (divided by n - 1; 0 for a single
    episode).

    Attributes:
        task: DSRL's task name.
        algorithm: Name of the algorithm.
        extraction: By what the action was chosen: "safe", or "reward" (Eq. 12); "policy" for a baseline.
        cost_limit: Limit on the cost return of an episode.
        feedback: Whether the cost so far was fed back at every step.
        train_seed: Seed of the training run.
        eval_seeds: Seeds of the evaluation, `episodes / len(eval_seeds)` episodes each.
        episodes: Number of episodes, over all evaluation seeds.
        updates: Number of gradient updates in training.
        train_seconds: Wall-clock time of the training in seconds.
        reward_mean: Mean return.
        reward_std: Standard deviation of the returns.
        cost_mean: Mean cost return.
        cost_std: Standard deviation of the cost returns.
        normalized_reward: Mean return in DSRL's scale (`Task.normalize_reward`).
        normalized_cost: Mean cost return over the limit (`Task.normalize_cost`); at most 1 is safe.
        within_limit: Share of the episodes with cost return <= cost limit.
        steps_per_second: Environment steps per second, policy included, all episodes stepped together.
        dataset: As in `TrainInfo`.
        versions: Version by package.
        risk: Share of the episodes that the policy was told may exceed the limit. None where it was told no
            limit, and in results of policies that kept limits by an older method, which knew no risk.
        cost_margin: As in `TrainInfo`.
    """

    task: TaskName
    algorithm: Text
    extraction: Text
    cost_limit: NotNegative
    feedback: Flag
    train_seed: Whole
    eval_seeds: Annotated[tuple[Whole, ...], Field(min_length=1)]
    episodes: Count
    updates: Whole
    train_seconds: NotNegative
    reward_mean: Number
    reward_std: NotNegative
    cost_mean: NotNegative
    cost_std: NotNegative
    normalized_reward: Number
    normalized_cost: NotNegative
    within_limit: Share
    steps_per_second: NotNegative
    dataset: Source
    versions: dict[str, str]
    risk: ShareBetween | None = None
    cost_margin: Positive = 1.0

    @classmethod
    def from_episodes(
        cls,
        task: Task,
        returns: np.ndarray,
        cost_returns: np.ndarray,
        *,
        cost_limit: float,
        train_info: TrainInfo,
        **how: Any,
    ) -> "EvaluationEntry":
        """Summarize the episodes of an evaluation, returns and cost returns (B,), undiscounted, in an entry.

        `how` has its `extraction`, `feedback`, `eval_seeds`, `steps_per_second`, `versions` and `risk`.
        ValueError: no episodes, arrays of different lengths, values that are not finite, or a negative cost
        limit.
        """
        reward = EpisodeStatistics.of("return", returns)
        cost = EpisodeStatistics.of("cost return", cost_returns)
        if reward.count != cost.count:
            raise ValueError(f"{reward.count} returns for {cost.count} cost returns: one of each per episode")
        return cls(
            task=task.name,
            cost_limit=cost_limit,
            episodes=reward.count,
            reward_mean=reward.mean,
            reward_std=reward.std,
            cost_mean=cost.mean,
            cost_std=cost.std,
            normalized_reward=task.normalize_reward(reward.mean),
            normalized_cost=task.normalize_cost(cost.mean, cost_limit),
            within_limit=float(np.mean(np.asarray(cost_returns) <= cost_limit)),
            **asdict(train_info),
            **how,
        )

    @property
    def key(self) -> EntryKey:
        """The values of `KEY_FIELDS`, 0 for no risk; sorting by it gives the order of results files and
        tables.
        """
        key: Any = tuple(getattr(self, name) if name != "risk" else self.risk or 0.0 for name in KEY_FIELDS)
        return key

    @property
    def dynamics(self) -> str:
        """Who simulated it otherwise than the task is defined; see `other_dynamics`."""
        return other_dynamics(TASKS[self.task].simulator, self.versions)

    @property
    def told_limit(self) -> bool:
        """Whether the policy was told the cost limit."""
        return knows_limit(self.extraction)

    @property
    def is_at_usual_risk(self) -> bool:
        """Whether it was played at the risk that a pipeline takes by itself, as suites are, or at none."""
        from spi_diffusers.pipelines.allowance import DEFAULT_RISK

        return self.risk in (None, DEFAULT_RISK)


@dataclass(frozen=True)
class EpisodeStatistics:
    """Number, mean and sample standard deviation (n - 1; 0 for a single one) of figures of episodes."""

    count: int
    mean: float
    std: float

    @classmethod
    def of(cls, name: str, values: Any) -> "EpisodeStatistics":
        """Compute them in float64 from (B,) values; ValueError (with the name) if there are none or they are
        not finite.
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
    """Turn a cost limit into a float; ValueError if it is not a finite number of at least 0."""
    is_number = isinstance(cost_limit, Real) and not isinstance(cost_limit, bool)
    if not is_number or not math.isfinite(cost_limit) or cost_limit < 0:
        raise ValueError(
            f"a cost limit must be a finite number of at least 0 (cost per episode), got {shown(cost_limit)}"
        )
    return float(cost_limit)


def describe_key(key: EntryKey) -> str:
    """An entry's key for messages, e.g. "task=..., algorithm=..., ..."."""
    return ", ".join(f"{name}={value}" for name, value in zip(KEY_FIELDS, key, strict=True))
