"""After training: the evaluation critic learns from the data what the finished policy earns and costs.

Fitted Q evaluation, with the number of steps left as an input instead of a discount:

    h Q_h(s, a, w) = x + (1 - terminated) (h - 1) Q_{h-1}(s', a', w),   a' the action of the safety weight w

for the reward and for the cost x of a transition. It needs no simulator, and no scale of the data. Then
episodes show by how much the cost that remains is more than expected, and how often.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spi_diffusers.algorithms.networks import polyak_update
from spi_diffusers.data.streaming import Dataset, sample_episodes
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.models.evaluation_critic import NUM_LEVELS, NUM_STEPS, NUM_WEIGHTS, EvaluationCritic
from spi_diffusers.pipelines.extraction import SAFETY_WEIGHT_GRID, policy_action
from spi_diffusers.pipelines.spi_policy import SPIPolicyPipeline
from spi_diffusers.progress import progress_bar
from spi_diffusers.training.residuals import recorded_actions, step_residuals

BATCH_SIZE = 256
LEARNING_RATE = 1e-3
TARGET_UPDATE_RATE = 0.05
MAX_GRAD_NORM = 10.0
#: Observations that the policies are asked about at once.
_PART = 1024
#: Part of the updates in which the number of steps grows from 2 to all: what happens in a few steps must be
#: known before what happens in many can be.
GROWTH_SHARE = 0.7
#: It is learned from whole episodes of at most so many transitions.
MAX_TRANSITIONS = 150_000
#: Residuals are learned from whole episodes of at most so many transitions.
RESIDUAL_TRANSITIONS = 30_000


def fit_evaluation_critic(
    pipeline: SPIPolicyPipeline,
    dataset: Dataset,
    *,
    updates: int,
    seed: int = 0,
    progress: bool = True,
) -> EvaluationCritic:
    """Evaluate a trained policy on data, for every safety weight and number of steps left.

    Args:
        pipeline: The policy, conditioned on a safety weight, whose `max_episode_steps` is known.
        dataset: Transitions, of which it sees whole episodes: at most `MAX_TRANSITIONS`, and no more than the
            updates can learn from. Units and bounds are of all.
        updates: Number of updates.
        seed: Decides weights and all randomness.
        progress: Whether to show a progress bar.

    Returns:
        The critic, on the CPU.

    Raises:
        ValueError: The episode length is not known, or a loss is no longer finite.
    """
    horizon = pipeline.config.max_episode_steps
    if horizon is None:
        raise ValueError("The evaluation critic needs a pipeline that knows max_episode_steps.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = _new_critic(pipeline, dataset, horizon)
    target = copy.deepcopy(critic)
    optimizer = torch.optim.Adam(critic.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    generator = torch.Generator().manual_seed(seed)
    bar = progress_bar(total=updates, desc="evaluating", unit=" updates", disable=not progress)
    bar.set_postfix_str("actions of all safety weights")
    # To compute the actions of more transitions would take longer than to learn from them.
    most = min(MAX_TRANSITIONS, updates * BATCH_SIZE // NUM_WEIGHTS)
    data = _Data(pipeline, sample_episodes(dataset, most, seed))
    for update in range(updates):
        longest = max(2, min(horizon, int(horizon * update / (GROWTH_SHARE * updates))))
        loss = _loss(critic, target, data.draw(longest, generator))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(critic.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        polyak_update(target.parameters(), critic.parameters(), TARGET_UPDATE_RATE)
        bar.update()
        if update % 500 == 0 or update + 1 == updates:
            bar.set_postfix_str(f"loss={loss.item():.3g}, steps={longest}")
            if not math.isfinite(loss.item()):
                raise ValueError(f"The evaluation critic's loss is {loss.item()} after {update + 1} updates.")
    bar.close()
    return target.eval()


def _new_critic(pipeline: SPIPolicyPipeline, dataset: Dataset, horizon: int) -> EvaluationCritic:
    network, units, episodes = pipeline.noise_model.config, Units.of(dataset), dataset.episodes
    mean_reward, *mean_costs = (
        float(sums.sum()) / len(dataset) for sums in (episodes.return_, *episodes.cost_returns.unbind(1))
    )
    lowest, highest = map(float, dataset.extremes["reward"])
    costliest = np.atleast_1d(dataset.extremes["cost"][1]).astype(float).tolist()
    several = len(mean_costs) > 1

    def each(values: Sequence[float]) -> Any:
        return list(values) if several else values[0]

    critic = EvaluationCritic(
        observation_dim=network.observation_dim,
        action_dim=network.action_dim,
        max_episode_steps=horizon,
        reward_range=[min(0.0, lowest), max(0.0, highest)],
        cost_high=each(costliest),
        reward_unit=units.reward,
        cost_mean=each([mean or 1.0 for mean in mean_costs]),
        cost_unit=each(units.costs),
        hidden_dims=list(network.hidden_dims),
        activation=network.activation,
        cost_names=list(dataset.cost_names) if several else None,
    )
    # It starts from the data's mean rates for any number of steps. From zero, what happens in many steps
    # would be underestimated for as long as it has not come through.
    with torch.no_grad():
        critic.net[-1].weight.zero_()
        critic.net[-1].bias[0] = mean_reward / critic.config.reward_unit
        critic.net[-1].bias[1:] = torch.tensor([float(mean > 0) for mean in mean_costs])
        seen = torch.from_numpy(np.stack(dataset.extremes["observation"])).float()
        critic.observed_range.copy_(pipeline.normalizer(seen))
    return critic


@dataclass(frozen=True)
class _Batch:
    """Transitions (B, ...), with K costs (B, K), a safety weight and a number of steps left (B,) for each."""

    observation: Tensor
    action: Tensor
    next_observation: Tensor
    next_action: Tensor
    reward: Tensor
    costs: Tensor
    alive: Tensor
    safety_weight: Tensor
    steps: Tensor


class _Data:
    """The dataset as the critic sees it: observations normalized, actions in [-1, 1].

    How the policies of all safety weights go on after each transition, (N, 11, A), is computed once: a
    transition is drawn many times.
    """

    def __init__(self, pipeline: SPIPolicyPipeline, dataset: TransitionDataset):
        data = dataset.transitions
        self._columns = {
            "observation": pipeline.normalizer(data.observation),
            "action": recorded_actions(pipeline, data.action),
            "next_observation": pipeline.normalizer(data.next_observation),
            "reward": data.reward.float(),
            "costs": data.costs.float(),
            "alive": (~data.terminated).float(),
        }
        self._grid = torch.tensor(SAFETY_WEIGHT_GRID, dtype=torch.float32)
        self._next_action = torch.stack([self._actions(pipeline, weight) for weight in self._grid], dim=1)

    @torch.no_grad()
    def _actions(self, pipeline: SPIPolicyPipeline, weight: Tensor) -> Tensor:
        parts = self._columns["next_observation"].split(_PART)
        return torch.cat([policy_action(pipeline, part, weight.expand(len(part))) for part in parts])

    def draw(self, longest: int, generator: torch.Generator) -> _Batch:
        """A batch with safety weights of the grid, and 1 to `longest` steps left."""
        rows = torch.randint(len(self._columns["reward"]), (BATCH_SIZE,), generator=generator)
        policies = torch.randint(len(self._grid), (BATCH_SIZE,), generator=generator)
        steps = torch.randint(1, longest + 1, (BATCH_SIZE,), generator=generator).float()
        columns = {name: column[rows] for name, column in self._columns.items()}
        following = self._next_action[rows, policies]
        return _Batch(**columns, next_action=following, safety_weight=self._grid[policies], steps=steps)


def _loss(
    critic: EvaluationCritic,
    target: EvaluationCritic,
    batch: _Batch,
) -> Tensor:
    """Squared errors of what is predicted now against what happened, and is predicted of the rest."""
    weight, steps = batch.safety_weight, batch.steps
    with torch.no_grad():
        following = (batch.next_observation, batch.next_action, weight, (steps - 1.0).clamp_min(1.0))
        later = target(*following, return_dict=False)
        remaining = batch.alive * (steps - 1.0)
        reward_target = (batch.reward + remaining * later[0]) / steps
        cost_target = (batch.costs + remaining.unsqueeze(1) * later[1]) / steps.unsqueeze(1)
    rates = critic.unbounded(batch.observation, batch.action, weight, steps)
    return rates_loss(critic, rates, (reward_target, cost_target), steps)


def rates_loss(
    critic: EvaluationCritic, rates: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], steps: Tensor
) -> Tensor:
    """Squared errors of reward rates (...) and cost rates (..., K) over the steps left, in the data's units.

    A single step costs 0 or about a `cost_unit`, many of them nearly their mean: the cost's errors count by
    the variance that costs at random would have.
    """
    config = critic.config
    reward_loss = functional.mse_loss(rates[0] / config.reward_unit, targets[0] / config.reward_unit)
    mean, clumping = critic.per_cost("cost_mean"), np.divide(config.cost_unit, config.cost_mean)
    variance = 1.0 + torch.as_tensor(clumping, dtype=torch.float32) * steps.unsqueeze(-1).reciprocal()
    cost_loss = (((rates[1] - targets[1]) / mean).square() / variance).sum(dim=-1).mean()
    return reward_loss + cost_loss


@torch.no_grad()
def learn_residuals(pipeline: SPIPolicyPipeline, dataset: TransitionDataset, *, seed: int = 0) -> None:
    """Fill the critic's `residuals` from episodes: how far the cost to come was above what was expected.

    From a step on, that is the sum of the residuals of the rest of the episode, here in multiples of
    `residual_scale`. Each safety weight and number of steps left has a distribution of its own.

    Args:
        pipeline: A policy with an evaluation critic, which is changed.
        dataset: Episodes, at best ones that training has not seen.
        seed: Decides which episodes are taken of a large dataset.

    Raises:
        ValueError: The residuals are not finite.
    """
    critic: Any = pipeline.evaluation_critic
    horizon = critic.config.max_episode_steps
    order = torch.randperm(dataset.num_episodes, generator=torch.Generator().manual_seed(seed))
    rows, episode, step = dataset.episodes.rows(
        dataset.episodes.within(order, RESIDUAL_TRANSITIONS), longest=horizon
    )
    steps = horizon - step
    place = critic.step_position(steps).round().long()
    levels = (torch.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS
    for index, weight in enumerate(torch.linspace(0.0, 1.0, NUM_WEIGHTS).tolist()):
        _, cost, expected = step_residuals(pipeline, dataset, rows, torch.full((len(rows),), weight), steps)
        if not math.isfinite(float(cost.double().sum())):
            raise ValueError(f"The evaluation critic's residuals at safety weight {weight} are not finite.")
        # Sums from each step to its episode's end: what is left of the running total.
        running = cost.double().cumsum(0)  # (N, K)
        ends = running[episode.bincount().cumsum(0) - 1][episode]
        excess = (ends - running + cost).float() / critic.residual_scale(expected)
        for knot in range(NUM_STEPS):
            # The knots around it where no episode has so many steps left.
            near = (place - knot).abs()
            found = excess[near == near.min()]
            for which, values in enumerate(found.unbind(1)):
                critic.residuals_of(which)[index, knot] = torch.quantile(values, levels)
