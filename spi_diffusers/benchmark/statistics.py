"""Statistics over training seeds and tasks: means, probability of improvement, performance profile.

After R. Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS
2021), with percentile intervals from resampling the seeds of every task by themselves. Where tasks have
different numbers of seeds, every task weighs alike. Of rewards there is an interquartile mean, too; of costs
there is none, as it would leave out the worst.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spi_diffusers.evaluation.entries import DivergedRun, EvaluationEntry
from spi_diffusers.evaluation.summary import keeps_limit

CONFIDENCE = 0.95
RESAMPLES = 2000
_SEED = 0  # the same results file gives the same intervals


@dataclass(frozen=True)
class ScoreStatistic:
    """One score of an algorithm over tasks and training seeds; every task weighs alike.

    Attributes:
        mean: Mean of the tasks' means.
        seed_std: Mean of the tasks' sample deviations over seeds, where there are several; else None.
        iqm: Interquartile mean over all (task, seed) scores.
        interval: 95% bootstrap interval of `iqm`; tasks with a single seed add no spread to it. None if no
            task has several seeds.
        mean_interval: 95% bootstrap interval of `mean`; None likewise.
    """

    mean: float
    seed_std: float | None
    iqm: float
    interval: tuple[float, float] | None
    mean_interval: tuple[float, float] | None


@dataclass(frozen=True)
class AlgorithmStatistics:
    """An algorithm's results on several tasks, at one limit each; every task weighs alike.

    Attributes:
        algorithm: Name of the algorithm.
        tasks: The tasks, sorted.
        seeds: Fewest and most training seeds of a task, without those that diverged.
        single_seed_tasks: Number of tasks with one seed only; they add nothing to deviations and intervals.
        diverged: Training runs on these tasks that diverged; the figures leave them out.
        reward: Normalized reward.
        cost: Normalized cost.
        within_limit: Share of all episodes with a cost within the limit.
        safe_tasks: Number of tasks with a mean normalized cost of at most 1.
        worst_reward: Lowest normalized reward of a (task, seed).
        worst_cost: Highest normalized cost of a (task, seed).
        updates: Fewest and most training updates.
        train_seconds: Wall-clock time of a training in seconds.
    """

    algorithm: str
    tasks: tuple[str, ...]
    seeds: tuple[int, int]
    single_seed_tasks: int
    diverged: int
    reward: ScoreStatistic
    cost: ScoreStatistic
    within_limit: float
    safe_tasks: int
    worst_reward: float
    worst_cost: float
    updates: tuple[int, int]
    train_seconds: float


def interquartile_mean(values: Sequence[float] | np.ndarray, axis: int = -1) -> np.ndarray | float:
    """Mean of the middle half, without lowest and highest quarter (rounded down)."""
    from scipy.stats import trim_mean

    if np.size(values) == 0:
        raise ValueError("the interquartile mean of no values is not defined.")
    return trim_mean(values, 0.25, axis=axis)


def bootstrap_interval(
    groups: Sequence[Sequence[float] | np.ndarray], *, mean_of_groups: bool = False
) -> tuple[float, float] | None:
    """Percentile bootstrap interval over seeds, stratified by task.

    `groups` are the scores of the seeds, one sequence per task; each is resampled by itself, and a single
    score stays as it is. The statistic is the interquartile mean of all scores, or with `mean_of_groups` the
    mean of the groups' means. None if no group has several scores.
    """
    from scipy.stats import bootstrap

    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    several = [array for array in arrays if len(array) > 1]
    single = [array for array in arrays if len(array) == 1]
    if not several:
        return None

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        shape = samples[0].shape[:-1]
        everything = [*samples, *(np.broadcast_to(array, (*shape, 1)) for array in single)]
        if mean_of_groups:
            return np.mean([sample.mean(axis=axis) for sample in everything], axis=0)
        return np.asarray(interquartile_mean(_alike(everything), axis=axis))

    found = bootstrap(
        tuple(several),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        batch=256,
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def score_statistic(groups: Sequence[Sequence[float]]) -> ScoreStatistic:
    """Summarize the scores of seeds, one sequence per task; ValueError without any, or for an empty one."""
    if not groups or not all(len(group) for group in groups):
        raise ValueError("need at least one task, and at least one seed of every task.")
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    spreads = [np.std(array, ddof=1) for array in arrays if len(array) > 1]
    return ScoreStatistic(
        mean=float(np.mean([np.mean(group) for group in groups])),
        seed_std=float(np.mean(spreads)) if spreads else None,
        iqm=float(interquartile_mean(_alike(arrays))),
        interval=bootstrap_interval(groups),
        mean_interval=bootstrap_interval(groups, mean_of_groups=True),
    )


def _alike(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Scores of several tasks side by side, along the last axis, repeated until all have equally many."""
    most = math.lcm(*(group.shape[-1] for group in groups))
    return np.concatenate([np.repeat(group, most // group.shape[-1], axis=-1) for group in groups], axis=-1)


def algorithm_statistics(
    entries: Iterable[EvaluationEntry], diverged: Sequence[DivergedRun] = ()
) -> AlgorithmStatistics:
    """Summarize the entries of one algorithm, which may differ in task and training seed only.

    ValueError without entries, or for several algorithms, extractions, risks, limits of a task, or a seed
    twice.
    """
    entries = sorted(entries, key=lambda entry: entry.key)
    if not entries:
        raise ValueError("no entries to take together.")
    if len({(entry.algorithm, entry.extraction, entry.feedback, entry.risk) for entry in entries}) > 1:
        raise ValueError("entries of several algorithms, extractions or risks cannot be taken together.")
    by_task: dict[str, list[EvaluationEntry]] = {}
    for entry in entries:
        by_task.setdefault(entry.task, []).append(entry)
    for task, group in by_task.items():
        if len({entry.cost_limit for entry in group}) > 1:
            raise ValueError(f"{task}: entries of several limits cannot be taken together.")
        if len({entry.train_seed for entry in group}) < len(group):
            raise ValueError(f"{task}: a training seed occurs twice.")

    def scores(name: str) -> list[list[float]]:
        return [[getattr(entry, name) for entry in group] for group in by_task.values()]

    def ends(values: Iterable[int]) -> tuple[int, int]:
        values = list(values)
        return min(values), max(values)

    algorithm, costs = entries[0].algorithm, scores("normalized_cost")
    counts = [len(cost) for cost in costs]
    limits: dict[str, Any] = {task: group[0].cost_limit for task, group in by_task.items()}
    lost = [diverged_of(diverged, task, algorithm, limit) for task, limit in limits.items()]
    return AlgorithmStatistics(
        algorithm=algorithm,
        tasks=tuple(by_task),
        seeds=ends(counts),
        single_seed_tasks=counts.count(1),
        diverged=sum(lost),
        reward=score_statistic(scores("normalized_reward")),
        cost=score_statistic(costs),
        within_limit=float(np.mean([within_limit(group) for group in by_task.values()])),
        safe_tasks=sum(keeps_limit(float(np.mean(cost))) for cost in costs),
        worst_reward=min(entry.normalized_reward for entry in entries),
        worst_cost=max(entry.normalized_cost for entry in entries),
        updates=ends(entry.updates for entry in entries),
        train_seconds=float(np.mean([np.mean(seconds) for seconds in scores("train_seconds")])),
    )


def diverged_of(runs: Iterable[DivergedRun], task: str, algorithm: str, limit: float) -> int:
    """Number of an algorithm's runs on a task, for this cost limit or for none, that diverged."""
    return sum(
        (run.task, run.algorithm) == (task, algorithm) and run.cost_limit in (None, limit) for run in runs
    )


def within_limit_interval(entries: Sequence[EvaluationEntry]) -> tuple[float, float]:
    """95% interval of `within_limit` (Clopper and Pearson), by the episodes of these very policies."""
    from scipy.stats import binomtest

    episodes = sum(entry.episodes for entry in entries)
    within = round(within_limit(entries) * episodes)
    interval = binomtest(within, episodes).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Improvement:
    """How likely a training of one algorithm is better than one of another, on a task drawn at random.

    Attributes:
        probability: Mean over the tasks of the share of pairs of seeds in which it is; a tie counts half.
        interval: 95% bootstrap interval; None if no task has several seeds of either.
        tasks: Number of tasks.
    """

    probability: float
    interval: tuple[float, float] | None
    tasks: int


def improvement(
    groups: Sequence[tuple[Sequence[EvaluationEntry], Sequence[EvaluationEntry]]],
) -> Improvement:
    """Compare two algorithms by the entries of each, a pair for each task.

    A training that keeps the limit is better than one that does not, by DSRL's rule; of two that keep it the
    one with more reward, of two that do not the one with less cost. ValueError without a task, or entries.
    """
    if not groups or not all(first and second for first, second in groups):
        raise ValueError("need entries of both on at least one task.")
    wins = []
    for first, second in groups:
        merits = [np.array([_merit(entry) for entry in group]) for group in (first, second)]
        # Merits are compared field by field: the first one that differs decides.
        difference = np.sign(merits[0][:, None] - merits[1][None])
        decided = np.take_along_axis(difference, np.argmax(difference != 0, axis=2)[..., None], axis=2)
        wins.append((1.0 + decided[..., 0]) / 2.0)
    interval = None
    if any(win.size > 1 for win in wins):
        random, resampled = np.random.default_rng(_SEED), np.zeros(RESAMPLES)
        for win in wins:
            rows, columns = (random.integers(size, size=(RESAMPLES, size)) for size in win.shape)
            resampled += win[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2)) / len(wins)
        tail = (1.0 - CONFIDENCE) / 2.0
        low, high = np.quantile(resampled, [tail, 1.0 - tail]).round(9)
        interval = float(low), float(high)
    return Improvement(float(np.mean([win.mean() for win in wins])), interval, len(wins))


def _merit(entry: EvaluationEntry) -> tuple[float, float]:
    if keeps_limit(entry.normalized_cost):
        return 1.0, entry.normalized_reward
    return 0.0, -entry.normalized_cost


def performance_profile(groups: Sequence[Sequence[EvaluationEntry]], rewards: np.ndarray) -> np.ndarray:
    """Share of an algorithm's trainings that keep the limit and earn at least so much, (N,).

    Args:
        groups: Its entries, a sequence for each task; every task weighs alike.
        rewards: Normalized rewards, (N,).
    """
    shares = []
    for group in groups:
        earned = np.array([e.normalized_reward if keeps_limit(e.normalized_cost) else -np.inf for e in group])
        shares.append((earned[:, None] >= rewards).mean(axis=0))
    return np.mean(shares, axis=0)


def within_limit(entries: Sequence[EvaluationEntry]) -> float:
    """Share of the episodes of several seeds with a cost within the limit."""
    return float(np.average([e.within_limit for e in entries], weights=[e.episodes for e in entries]))
