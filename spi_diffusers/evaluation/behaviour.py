"""What the behaviour data itself reaches: the mark that a policy's figures are compared with."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.evaluation.metrics import EpisodeStatistics, check_cost_limit

if TYPE_CHECKING:
    from spi_diffusers.data.streaming import StreamedDataset
    from spi_diffusers.data.transitions import TransitionDataset


@dataclass(frozen=True)
class BehaviourRow:
    """What the dataset's own episodes reach, as a mark to compare a policy with at one cost limit.

    Attributes:
        task: DSRL's task name.
        cost_limit: limit on the cost return of an episode.
        episodes: number of episodes in the data.
        reward_mean: mean return of all episodes.
        reward_std: its spread over episodes (sample standard deviation).
        cost_mean: mean cost return of all episodes.
        cost_std: its spread over episodes.
        normalized_reward: mean return in DSRL's scale.
        normalized_cost: mean cost return over the limit.
        within_limit: share of the episodes that keep the limit.
        best_return: largest return among the episodes that keep the limit; None where none does.
        best_cost_return: cost return of that episode.
        best_normalized_reward: that return in DSRL's scale.
    """

    task: str
    cost_limit: float
    episodes: int
    reward_mean: float
    reward_std: float
    cost_mean: float
    cost_std: float
    normalized_reward: float
    normalized_cost: float
    within_limit: float
    best_return: float | None
    best_cost_return: float | None
    best_normalized_reward: float | None


def behaviour_rows(
    dataset: "TransitionDataset | StreamedDataset",
    cost_limits: Iterable[float],
    task: str | Task | None = None,
) -> list[BehaviourRow]:
    """Compute the behaviour data's own figures at each cost limit.

    Args:
        dataset: the data, of which only the episode table is used; its task gives the normalised figures.
        cost_limits: limits on the cost return of an episode.
        task: stands in where the dataset does not know its task.

    Returns:
        One row per limit, in the given order.

    Raises:
        ValueError: a negative limit, or a dataset without a task and none given.
    """
    known = dataset.task or task
    if known is None:
        raise ValueError(f"{dataset.source} does not say which task it belongs to: pass task=")
    task = get_task(known)
    returns = dataset.episodes.return_.cpu().numpy()
    cost_returns = dataset.episodes.cost_return.cpu().numpy()
    return [_row(task, returns, cost_returns, check_cost_limit(limit)) for limit in cost_limits]


def _row(task: Task, returns: np.ndarray, cost_returns: np.ndarray, cost_limit: float) -> BehaviourRow:
    reward, cost = EpisodeStatistics.of("return", returns), EpisodeStatistics.of("cost return", cost_returns)
    within = cost_returns <= cost_limit
    best = int(np.argmax(np.where(within, returns, -np.inf))) if within.any() else None
    return BehaviourRow(
        task=task.name,
        cost_limit=cost_limit,
        episodes=reward.count,
        reward_mean=reward.mean,
        reward_std=reward.std,
        cost_mean=cost.mean,
        cost_std=cost.std,
        normalized_reward=task.normalize_reward(reward.mean),
        normalized_cost=task.normalize_cost(cost.mean, cost_limit),
        within_limit=float(within.mean()),
        best_return=None if best is None else float(returns[best]),
        best_cost_return=None if best is None else float(cost_returns[best]),
        best_normalized_reward=None if best is None else task.normalize_reward(float(returns[best])),
    )
