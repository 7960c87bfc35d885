"""Behavior policies for data collection: PPO-Lagrangian, one network for several cost budgets.

The policy and both value functions see a one-hot of the budget that an episode is played under. Each budget
has a Lagrange multiplier of its own, so one training run covers the whole trade-off between reward and cost.
Libraries with PPO-Lagrangian train one policy per cost limit, and none that is kept up has a cost critic
conditioned on the budget; hence this file.

PPO: Schulman et al. 2017, arXiv:1707.06347. Lagrangian: Ray et al. 2019, "Benchmarking Safe Exploration".
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from spi_diffusers.collection.config import CollectConfig

GAE_LAMBDA = 0.95
CLIP_RATIO = 0.2
MAX_GRAD_NORM = 0.5
MAX_KL = 0.03


class BudgetNetworks(nn.Module):
    """A Gaussian policy, a reward value and a cost value, all conditioned on one of K budgets."""

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        num_budgets: int,
        hidden_dims: Sequence[int],
        initial_log_std: float = -0.5,
    ):
        super().__init__()
        self.num_budgets = num_budgets
        self.policy = _mlp(observation_dim + num_budgets, hidden_dims, action_dim, last_gain=0.01)
        self.log_std = nn.Parameter(torch.full((num_budgets, action_dim), initial_log_std))
        self.reward_value = _mlp(observation_dim + num_budgets, hidden_dims, 1, last_gain=1.0)
        self.cost_value = _mlp(observation_dim + num_budgets, hidden_dims, 1, last_gain=1.0)

    def inputs(self, observation: Tensor, budget: Tensor) -> Tensor:
        """Observation (..., O) and budget (...), int64, side by side: (..., O + K)."""
        one_hot = functional.one_hot(budget, self.num_budgets).to(observation.dtype)
        return torch.cat([observation, one_hot], dim=-1)

    def distribution(self, inputs: Tensor, budget: Tensor) -> torch.distributions.Normal:
        """The policy at `inputs(observation, budget)`; a mean and a deviation for every action component."""
        return torch.distributions.Normal(
            self.policy(inputs), self.log_std[budget].exp(), validate_args=False
        )

    def values(self, inputs: Tensor) -> Tensor:
        """Reward value and cost value at `inputs`, shape (2, ...)."""
        return torch.stack([self.reward_value(inputs), self.cost_value(inputs)]).squeeze(-1)


class RunningMoments:
    """Mean and variance of everything seen so far, component by component (Chan et al. 1979)."""

    def __init__(self, size: int):
        self.count = torch.tensor(1e-4, dtype=torch.float64)
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.variance = torch.ones(size, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in rows of shape (..., size)."""
        rows = rows.double().flatten(0, -2)
        count, mean, variance = len(rows), rows.mean(dim=0), rows.var(dim=0, correction=0)
        total = self.count + count
        delta = mean - self.mean
        between = delta.square() * self.count * count / total
        self.variance = (self.variance * self.count + variance * count + between) / total
        self.mean = self.mean + delta * count / total
        self.count = total

    @property
    def deviation(self) -> Tensor:
        """Standard deviation, shape (size,), at least 1e-4."""
        return self.variance.sqrt().clamp_min(1e-4)


@dataclass(frozen=True)
class Segment:
    """T steps of N environments, as the policy saw them; all tensors start with (T, N).

    Attributes:
        observation: Normalized, (T, N, O).
        next_observation: Normalized, (T, N, O): what the step led to, never the next episode's first one.
        action: As sampled, before clipping, (T, N, A).
        budget: Which budget the episode is played under, int64.
        signals: Scaled reward and cost, (T, N, 2).
        terminated: The task itself ended.
        ended: The episode ended, by itself or by the time limit.
    """

    observation: Tensor
    next_observation: Tensor
    action: Tensor
    budget: Tensor
    signals: Tensor
    terminated: Tensor
    ended: Tensor


def advantages(signal: Tensor, value: Tensor, next_value: Tensor, segment: Segment, gamma: float) -> Tensor:
    """Generalized advantage estimates (arXiv:1506.02438), shape (T, N).

    A termination cuts the bootstrap; a time limit does not, and neither goes beyond its episode.
    """
    delta = signal + gamma * next_value.masked_fill(segment.terminated, 0.0) - value
    result = torch.empty_like(delta)
    running = torch.zeros_like(delta[0])
    for step in reversed(range(len(delta))):
        running = delta[step] + gamma * GAE_LAMBDA * running.masked_fill(segment.ended[step], 0.0)
        result[step] = running
    return result


def combined_advantage(reward: Tensor, cost: Tensor, multiplier: Tensor) -> Tensor:
    """(A_r - lambda A_c) / (1 + lambda), both advantages standardized first; all of shape (M,)."""
    reward = (reward - reward.mean()) / reward.std().clamp_min(1e-6)
    cost = (cost - cost.mean()) / cost.std().clamp_min(1e-6)
    return (reward - multiplier * cost) / (1.0 + multiplier)


def ppo_loss(ratio: Tensor, advantage: Tensor) -> Tensor:
    """The clipped surrogate objective, negated; shapes (M,)."""
    clipped = ratio.clamp(1.0 - CLIP_RATIO, 1.0 + CLIP_RATIO)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()


def ppo_update(
    networks: BudgetNetworks,
    optimizer: torch.optim.Optimizer,
    segment: Segment,
    multipliers: Tensor,
    config: CollectConfig,
    generator: torch.Generator,
) -> None:
    """Improve policy and values in place on one segment; `multipliers` are those of every budget, (K,).

    The passes over the segment end early when the policy has moved far enough.
    """
    with torch.no_grad():
        inputs = networks.inputs(segment.observation, segment.budget)
        next_inputs = networks.inputs(segment.next_observation, segment.budget)
        log_prob = networks.distribution(inputs, segment.budget).log_prob(segment.action).sum(-1).flatten()
        value, next_value = networks.values(inputs), networks.values(next_inputs)
        estimates = [
            advantages(segment.signals[..., i], value[i], next_value[i], segment, config.gamma)
            for i in range(2)
        ]
        targets = torch.stack([estimates[i] + value[i] for i in range(2)]).flatten(1)
        budget = segment.budget.flatten()
        advantage = combined_advantage(estimates[0].flatten(), estimates[1].flatten(), multipliers[budget])
        inputs, action = inputs.flatten(0, 1), segment.action.flatten(0, 1)
    parameters = list(networks.parameters())
    for _ in range(config.epochs):
        for rows in torch.randperm(len(budget), generator=generator).split(config.minibatch_size):
            policy = networks.distribution(inputs[rows], budget[rows])
            log_ratio = policy.log_prob(action[rows]).sum(-1) - log_prob[rows]
            loss = ppo_loss(log_ratio.exp(), advantage[rows])
            loss = loss + 0.5 * (networks.values(inputs[rows]) - targets[:, rows]).square().mean(-1).sum()
            loss = loss - config.entropy_weight * policy.entropy().sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimizer.step()
        if float((log_ratio.detach().exp() - 1 - log_ratio.detach()).mean()) > MAX_KL:
            break


def update_multiplier(multiplier: float, cost_return: float, target: float, config: CollectConfig) -> float:
    """Dual ascent on one budget's multiplier, in shares of the target so that one rate serves every target.

    `cost_return` is the average of recent episodes under this budget. The result lies in [0, max_multiplier]:
    beyond that a policy forgets the reward.
    """
    excess = (cost_return - target) / max(target, 10.0)
    step = config.multiplier_rate * min(max(excess, -1.0), 2.0)
    return min(max(multiplier + step, 0.0), config.max_multiplier)


def _mlp(width_in: int, hidden_dims: Sequence[int], width_out: int, last_gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([width_in, *hidden_dims]):
        layers += [_orthogonal(nn.Linear(before, after), math.sqrt(2)), nn.Tanh()]
    return nn.Sequential(*layers, _orthogonal(nn.Linear(hidden_dims[-1], width_out), last_gain))


def _orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
