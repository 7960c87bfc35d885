"""Entries: the outcome of one policy at one cost limit. Tables, plots and cards are made from them alone.

No torch is imported here.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from numbers import Real
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field

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
    listed,
    settings,
)
from spi_diffusers.data.costs import CostLimit
from spi_diffusers.data.simulators import other_dynamics
from spi_diffusers.data.tasks import TASKS, Task
from spi_diffusers.evaluation import knows_limit
from spi_diffusers.messages import shown, shown_limit

#: What identifies an entry: a newer one with the same values replaces an older one.
KEY_FIELDS = ("task", "algorithm", "extraction", "cost_limit", "feedback", "risk", "train_seed")

EntryKey = tuple[str, str, str, tuple[float, ...], bool, float, int]


def _known_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"task must be the full name of a DSRL task, got {shown(name)}")
    return name


def _known_source(source: dict[str, str]) -> dict[str, str]:
    if "id" not in source or not source.keys() & {"revision", "sha256"}:
        raise ValueError(f'dataset must have an "id" and a "revision" or "sha256", got {shown(source)}')
    return source


#: A figure of one cost; one for each of several costs.
PerCost = NotNegative | Annotated[tuple[NotNegative, ...], Field(min_length=2), BeforeValidator(listed)]
CostNames = Annotated[tuple[Text, ...], BeforeValidator(listed)]
TaskName = Annotated[str, Field(strict=True), AfterValidator(_known_task)]
Source = Annotated[dict[str, str], AfterValidator(_known_source)]


def each(per_cost: Any) -> tuple[Any, ...]:
    """A figure of each cost, of what holds one of one cost as it is."""
    return tuple(per_cost) if isinstance(per_cost, tuple | list) else (per_cost,)


def one_or_all(figures: Iterable[Any]) -> Any:
    """The inverse of `each`."""
    found = tuple(figures)
    return found if len(found) > 1 else found[0]


def cost_p90(costs: np.ndarray) -> list[float]:
    """The smallest cost that 90% of the episodes stay within, of each of K costs (K, B)."""
    return np.quantile(costs, 0.9, axis=1, method="inverted_cdf").tolist()


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
        extraction: By what the action was chosen: "safe", or "reward" (Eq. 12); "policy" for a baseline,
            "limit" for one that is told the limit.
        cost_limit: Limit on the cost return of an episode; of several costs one for each, like `cost_mean`
            and `cost_std`.
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
        normalized_cost: Mean cost return over the limit (`Task.normalize_cost`); at most 1 is safe. Of
            several costs the largest.
        within_limit: Share of the episodes with cost return <= cost limit, for all costs.
        steps_per_second: Environment steps per second, policy included, all episodes stepped together.
        dataset: As in `TrainInfo`.
        versions: Version by package.
        risk: Share of the episodes that the policy was told may exceed the limit. None where it was told no
            limit, and in results of policies that kept limits by an older method, which knew no risk.
        cost_margin: As in `TrainInfo`.
        cost_names: Names of the costs, if there are several.
        within_each: Share of the episodes within the limit of each of several costs.
        cost_p90: The smallest cost return that 90% of the episodes stay within; results of earlier versions
            lack this and the next.
        cost_worst: The largest cost return.
    """

    task: TaskName
    algorithm: Text
    extraction: Text
    cost_limit: PerCost
    feedback: Flag
    train_seed: Whole
    eval_seeds: Annotated[tuple[Whole, ...], Field(min_length=1)]
    episodes: Count
    updates: Whole
    train_seconds: NotNegative
    reward_mean: Number
    reward_std: NotNegative
    cost_mean: PerCost
    cost_std: PerCost
    normalized_reward: Number
    normalized_cost: NotNegative
    within_limit: Share
    steps_per_second: NotNegative
    dataset: Source
    versions: dict[str, str]
    risk: ShareBetween | None = None
    cost_margin: Positive = 1.0
    cost_names: CostNames = ()
    within_each: Annotated[tuple[Share, ...], BeforeValidator(listed)] = ()
    cost_p90: PerCost | None = None
    cost_worst: PerCost | None = None

    @classmethod
    def from_episodes(
        cls,
        task: Task,
        returns: np.ndarray,
        cost_returns: np.ndarray,
        *,
        cost_limit: CostLimit,
        train_info: TrainInfo,
        **how: Any,
    ) -> "EvaluationEntry":
        """Summarize the episodes of an evaluation, returns (B,) and cost returns (B,), undiscounted.

        Of several costs, cost returns are (B, K), and there are as many limits. `how` has its `extraction`,
        `feedback`, `eval_seeds`, `steps_per_second`, `versions` and `risk`, and `cost_names`. ValueError: no
        episodes, arrays of different lengths, values that are not finite, or a negative cost limit.
        """
        reward = EpisodeStatistics.of("return", returns)
        of_costs, limits = np.atleast_2d(np.asarray(cost_returns).T), each(cost_limit)  # (K, B)
        costs = [EpisodeStatistics.of("cost return", values) for values in of_costs]
        if reward.count != costs[0].count:
            raise ValueError(
                f"{reward.count} returns for {costs[0].count} cost returns: one of each per episode"
            )
        kept = np.less_equal(of_costs, np.array(limits)[:, None])
        return cls(
            task=task.name,
            cost_limit=cost_limit,
            episodes=reward.count,
            reward_mean=reward.mean,
            reward_std=reward.std,
            cost_mean=one_or_all(cost.mean for cost in costs),
            cost_std=one_or_all(cost.std for cost in costs),
            normalized_reward=task.normalize_reward(reward.mean),
            normalized_cost=max(
                task.normalize_cost(cost.mean, limit) for cost, limit in zip(costs, limits, strict=True)
            ),
            within_limit=float(np.mean(kept.all(axis=0))),
            within_each=tuple(kept.mean(axis=1).tolist()) if len(limits) > 1 else (),
            cost_p90=one_or_all(cost_p90(of_costs)),
            cost_worst=one_or_all(of_costs.max(axis=1).tolist()),
            **asdict(train_info),
            **how,
        )

    @property
    def key(self) -> EntryKey:
        """The values of `KEY_FIELDS`, 0 for no risk; sorting by it gives the order of results files and
        tables.
        """
        own = {"risk": self.risk or 0.0, "cost_limit": each(self.cost_limit)}
        key: Any = tuple(own[name] if name in own else getattr(self, name) for name in KEY_FIELDS)
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


def check_cost_limit(cost_limit: Any) -> CostLimit:
    """Turn a cost limit into a float, that of several costs into a tuple; ValueError if one is not a finite
    number of at least 0.
    """
    if isinstance(cost_limit, tuple | list):
        return tuple(check_cost_limit(limit) for limit in cost_limit)  # type: ignore[misc]
    is_number = isinstance(cost_limit, Real) and not isinstance(cost_limit, bool)
    if not is_number or not math.isfinite(cost_limit) or cost_limit < 0:
        raise ValueError(
            f"a cost limit must be a finite number of at least 0 (cost per episode), got {shown(cost_limit)}"
        )
    return float(cost_limit)


def describe_key(key: EntryKey) -> str:
    """An entry's key for messages, e.g. "task=..., algorithm=..., ..."."""
    named = dict(zip(KEY_FIELDS, key, strict=True))
    return ", ".join(
        f"{name}={shown_limit(value) if name == 'cost_limit' else value}" for name, value in named.items()
    )
