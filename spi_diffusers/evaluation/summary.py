"""Entries of several training seeds taken together, and the behavior data's own figures."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from spi_diffusers.data.costs import CostLimit
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.evaluation import knows_limit
from spi_diffusers.evaluation.entries import (
    EntryKey,
    EpisodeStatistics,
    EvaluationEntry,
    check_cost_limit,
    describe_key,
    each,
    one_or_all,
)

if TYPE_CHECKING:
    from spi_diffusers.data.streaming import Dataset


@dataclass(frozen=True)
class SeedStatistic:
    """One figure over training seeds; every seed weighs alike.

    `std` is the sample standard deviation over all episodes of all seeds, `seed_std` that of the seeds' means
    (None for a single seed), `worst` the worst seed's mean: the lowest reward, the highest cost.
    """

    mean: float
    std: float
    seed_std: float | None
    worst: float

    @property
    def spread(self) -> float:
        """`seed_std` where there are several seeds, which is what a comparison rests on, else `std`."""
        return self.std if self.seed_std is None else self.seed_std

    def shown(self, digits: int = 2, mark: str = " ±") -> str:
        """The mean with its spread, with as many decimals, for tables."""
        return f"{shown(self.mean, digits)}{mark}{shown(self.spread, digits)}"


@dataclass(frozen=True)
class SeedSummary:
    """Entries that differ in the training seed only, taken together; fields as in `EvaluationEntry`.

    Of several costs, `costs` has one statistic for each, and `cost` is the one with the largest normalized
    mean. `episodes` counts those of all seeds, of which `within_limit` is a share; `steps_per_second` is a
    mean over the seeds.
    """

    task: str
    algorithm: str
    extraction: str
    cost_limit: CostLimit
    feedback: bool
    risk: float | None
    train_seeds: tuple[int, ...]
    episodes: int
    episodes_per_seed: tuple[int, ...]
    reward: SeedStatistic
    cost: SeedStatistic
    normalized_reward: SeedStatistic
    normalized_cost: SeedStatistic
    within_limit: float
    steps_per_second: float
    cost_names: tuple[str, ...] = ()
    costs: tuple[SeedStatistic, ...] = ()
    within_each: tuple[float, ...] = ()

    @property
    def each_cost(self) -> tuple[SeedStatistic, ...]:
        """The statistic of each cost."""
        return self.costs or (self.cost,)

    @property
    def is_safe(self) -> bool:
        """DSRL's rule: normalized cost at most 1 on average."""
        return keeps_limit(self.normalized_cost.mean)

    @property
    def told_limit(self) -> bool:
        """Whether the policy was told the cost limit."""
        return knows_limit(self.extraction)


def spread_over(summaries: Iterable[SeedSummary]) -> str:
    """What the `spread` of several summaries is over, in words."""
    several = {len(summary.train_seeds) > 1 for summary in summaries}
    if len(several) > 1:
        return "training seeds, or over episodes where there is one seed"
    return "training seeds" if True in several else "episodes"


def keeps_limit(normalized_cost: float) -> bool:
    """DSRL's rule: at most 1; the last bits of a mean, which depend on how it was computed, do not count."""
    return round(float(normalized_cost), 9) <= 1.0


def shown_share(share: float) -> str:
    """A share in percent, halves rounded up, and never rounded to none or all where that is not so."""
    for digits in (0, 1, 2):
        text = shown(100 * share, digits)
        if float(text) not in (0.0, 100.0) or share in (0.0, 1.0):
            break
    return f"{text}%"


def shown(value: float, digits: int = 2) -> str:
    """A figure with as many decimals as tables show, halves rounded up, the same however it was computed.

    A mean of 0.895 may be off in its last bit, and would be 0.89 in one table and 0.90 in another.
    """
    if not abs(value) < 1e12:  # of a limit of next to nothing; all its digits would fill the table
        return f"{float(value):.3g}"
    exact = Decimal(repr(round(float(value), 9)))
    return str(exact.quantize(Decimal((0, (1,), -digits)), ROUND_HALF_UP, Context(prec=40)))


def shown_range(counts: Iterable[int]) -> str:
    """The smallest and the largest of some counts, once where all are the same; 0 where there are none."""
    found = list(counts) or [0]
    low, high = min(found), max(found)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def summarize_seeds(entries: Iterable[EvaluationEntry]) -> list[SeedSummary]:
    """Take together entries that differ in the training seed only, sorted by the rest of their key.

    ValueError: two entries have the same key, so that a seed would count twice.
    """
    groups: dict[tuple[Any, ...], list[EvaluationEntry]] = {}
    seen: set[EntryKey] = set()
    for entry in entries:
        if entry.key in seen:
            raise ValueError(f"two entries have the key {describe_key(entry.key)}")
        seen.add(entry.key)
        groups.setdefault(entry.key[:-1], []).append(entry)
    return [_summarize(sorted(groups[key], key=lambda entry: entry.key)) for key in sorted(groups)]


def _summarize(entries: list[EvaluationEntry]) -> SeedSummary:
    first, task, count = entries[0], get_task(entries[0].task), sum(entry.episodes for entry in entries)
    limits = each(first.cost_limit)
    reward = _seed_statistic(entries, "reward", worst=min)
    costs = [_seed_statistic(entries, "cost", which, worst=max) for which in range(len(limits))]
    normalized = [
        _rescale(cost, functools.partial(task.normalize_cost, cost_limit=limit))
        for cost, limit in zip(costs, limits, strict=True)
    ]

    worst = max(range(len(costs)), key=lambda which: normalized[which].mean)

    def mean(shares: Iterable[float]) -> float:
        return sum(share * entry.episodes for share, entry in zip(shares, entries, strict=True)) / count

    return SeedSummary(
        task=first.task,
        algorithm=first.algorithm,
        extraction=first.extraction,
        cost_limit=first.cost_limit,
        feedback=first.feedback,
        risk=first.risk,
        train_seeds=tuple(entry.train_seed for entry in entries),
        episodes=count,
        episodes_per_seed=tuple(entry.episodes for entry in entries),
        reward=reward,
        cost=costs[worst],
        normalized_reward=_rescale(reward, task.normalize_reward),
        normalized_cost=normalized[worst],
        within_limit=mean(entry.within_limit for entry in entries),
        steps_per_second=sum(entry.steps_per_second for entry in entries) / len(entries),
        cost_names=first.cost_names,
        costs=tuple(costs) if len(costs) > 1 else (),
        within_each=tuple(map(mean, zip(*(entry.within_each for entry in entries), strict=True))),
    )


def _seed_statistic(
    entries: list[EvaluationEntry], name: str, which: int = 0, *, worst: Callable[[list[float]], float]
) -> SeedStatistic:
    """Of the reward, or of one of the costs."""
    means, stds = (
        [each(getattr(entry, f"{name}_{figure}"))[which] for entry in entries] for figure in ("mean", "std")
    )
    over_seeds = EpisodeStatistics.of(name, means)
    # The spread over all episodes: squares about the mean of all of them, within and between the seeds.
    counts = [entry.episodes for entry in entries]
    center = sum(n * mean for n, mean in zip(counts, means, strict=True)) / sum(counts)
    squares = sum(
        (entry.episodes - 1) * std**2 + entry.episodes * (mean - center) ** 2
        for entry, mean, std in zip(entries, means, stds, strict=True)
    )
    std = math.sqrt(squares / (sum(counts) - 1)) if sum(counts) > 1 else 0.0
    seed_std = over_seeds.std if len(means) > 1 else None
    return SeedStatistic(over_seeds.mean, std, seed_std, worst(means))


def _rescale(statistic: SeedStatistic, normalize: Callable[[float], float]) -> SeedStatistic:
    """Put a figure into another scale; spreads take the scale's slope, not its offset."""
    slope = normalize(1.0) - normalize(0.0)
    return SeedStatistic(
        normalize(statistic.mean),
        statistic.std * slope,
        None if statistic.seed_std is None else statistic.seed_std * slope,
        normalize(statistic.worst),
    )


@dataclass(frozen=True)
class BehaviorRow:
    """What the dataset's own episodes reach, as a baseline for policies at one cost limit.

    Of several costs, limit and cost figures are tuples; `normalized_cost` is the largest.

    Means and spreads are over all episodes; `best_...` is of the largest return among those that keep the
    limit, None where none does.
    """

    task: str
    cost_limit: CostLimit
    episodes: int
    reward_mean: float
    reward_std: float
    cost_mean: CostLimit
    cost_std: CostLimit
    normalized_reward: float
    normalized_cost: float
    within_limit: float
    best_return: float | None
    best_cost_return: CostLimit | None
    best_normalized_reward: float | None


def behavior_rows(
    dataset: "Dataset",
    cost_limits: Iterable[CostLimit],
    task: str | Task | None = None,
) -> list[BehaviorRow]:
    """The behavior data's own figures at each cost limit, in the given order; only its episode table is used.

    `task` stands in where the dataset does not know its task. ValueError: a negative limit, or no task.
    """
    known = dataset.task or task
    if known is None:
        raise ValueError(f"{dataset.source} does not say which task it belongs to: pass task=")
    task = get_task(known)
    returns = dataset.episodes.return_.cpu().numpy()
    cost_returns = dataset.episodes.cost_returns.cpu().numpy()
    return [_row(task, returns, cost_returns, check_cost_limit(limit)) for limit in cost_limits]


def _row(task: Task, returns: np.ndarray, cost_returns: np.ndarray, cost_limit: CostLimit) -> BehaviorRow:
    """Of returns (E,) and cost returns (E, K)."""
    reward, limits = EpisodeStatistics.of("return", returns), each(cost_limit)
    costs = [EpisodeStatistics.of("cost return", values) for values in cost_returns.T]
    within = (cost_returns <= np.array(limits)).all(axis=1)
    best = int(np.argmax(np.where(within, returns, -np.inf))) if within.any() else None
    return BehaviorRow(
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
        within_limit=float(within.mean()),
        best_return=None if best is None else float(returns[best]),
        best_cost_return=None if best is None else one_or_all(cost_returns[best].tolist()),
        best_normalized_reward=None if best is None else task.normalize_reward(float(returns[best])),
    )
