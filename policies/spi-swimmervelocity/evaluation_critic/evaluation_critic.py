"""Evaluation critic: what return and what cost the rest of an episode will have under a fixed policy.

This file is also shipped inside a policy's Hub repository, so it imports only torch and diffusers.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.activations import get_activation
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

#: Residuals are known for so many safety weights, numbers of steps left and levels, each from least to most.
NUM_WEIGHTS, NUM_STEPS, NUM_LEVELS = 11, 13, 64


@dataclass
class EvaluationCriticOutput(BaseOutput):
    """Output of [`EvaluationCritic`], per step: a mean over the steps that are left.

    Attributes:
        reward_rate: Expected reward per step, in the data's units, shape (B,).
        cost_rate: Expected cost per step, in the data's units, never negative, of each of K costs: (B, K).
    """

    reward_rate: Tensor
    cost_rate: Tensor


class EvaluationCritic(ModelMixin, ConfigMixin):
    """Reward and costs per step of the h steps that are left, from (s, a, w, h), undiscounted.

    Q_h(s, a, w) is the mean, over the next h steps, of what is expected if a is executed in s and the policy
    of the safety weight w acts after it. After an episode's end nothing happens. No rate leaves the range of
    what a single step of the data has, which keeps the recursion over many steps from diverging.

    By how much the cost of h steps was more than expected, in episodes of the data, is kept as `residuals`: a
    distribution for each of some weights and steps. `cost_bound` takes from it what must be added so that the
    cost is exceeded with a given probability only. `observed_range`, (2, O), holds the smallest and the
    largest normalized observation that it was fitted on: elsewhere nothing is known.

    Args:
        observation_dim: Size O of a (normalized) observation.
        action_dim: Size A of an action.
        max_episode_steps: Largest number T of steps left.
        reward_range: Smallest and largest reward of a step, with 0 between them, which follows an end.
        cost_high: Largest cost of a step. Of K costs a list, like `cost_mean` and `cost_unit`.
        reward_unit: Typical reward of a step, of which the network's output is a multiple.
        cost_mean: Mean cost of a step, the same.
        cost_unit: Typical size of a cost where there is one.
        cost_names: Names of the costs, if there are several.
        hidden_dims: Width of each hidden layer.
        activation: Name of a diffusers activation.

    Raises:
        ValueError: For sizes below one, bounds that are no range, or settings of different numbers of costs.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        max_episode_steps: int,
        reward_range: Sequence[float],
        cost_high: float | Sequence[float],
        reward_unit: float = 1.0,
        cost_mean: float | Sequence[float] = 1.0,
        cost_unit: float | Sequence[float] = 1.0,
        hidden_dims: Sequence[int] = (256, 256, 256),
        activation: str = "silu",
        cost_names: Sequence[str] | None = None,
    ):
        super().__init__()
        sizes = (observation_dim, action_dim, max_episode_steps, *hidden_dims)
        if min(sizes) < 1:
            raise ValueError(
                f"Sizes must be at least 1; got observation_dim={observation_dim}, action_dim={action_dim}, "
                f"max_episode_steps={max_episode_steps}, hidden_dims={list(hidden_dims)}."
            )
        highs, means, units = (_each(setting) for setting in (cost_high, cost_mean, cost_unit))
        names = ["cost"] if cost_names is None else list(cost_names)
        if not len(highs) == len(means) == len(units) == len(names) == len(set(names)):
            raise ValueError(
                "Several costs need a number and a name of its own for each; got cost_high="
                f"{cost_high}, cost_mean={cost_mean}, cost_unit={cost_unit}, cost_names={cost_names}."
            )
        is_range = len(reward_range) == 2 and reward_range[0] <= 0 <= reward_range[1]
        numbers = (*reward_range, *highs, reward_unit, *means, *units)
        if not (all(map(math.isfinite, numbers)) and is_range and min(highs) >= 0):
            raise ValueError(
                "An evaluation critic needs a reward_range about 0 and a cost_high that is not negative, all "
                f"finite; got {list(reward_range)} and {cost_high}."
            )
        if min(reward_unit, *means, *units) <= 0:
            raise ValueError(f"Units must be positive, got {reward_unit}, {cost_mean} and {cost_unit}.")
        # Of the steps left it sees `step_features`: a few steps more or less matter most at the end.
        widths = [observation_dim + action_dim + 1 + 3, *hidden_dims]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out, dtype=torch.float32), get_activation(activation)]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], 1 + len(names), dtype=torch.float32))
        # Of one cost without a dimension for the costs, as policies were saved before there were several.
        costs = () if len(names) == 1 else (len(names),)
        table = torch.zeros(*costs, NUM_WEIGHTS, NUM_STEPS, NUM_LEVELS, dtype=torch.float32)
        self.register_buffer("residuals", table)
        nothing = torch.zeros(2, observation_dim, dtype=torch.float32)
        self.register_buffer("observed_range", nothing)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "EvaluationCritic":
        """As in diffusers, but from safetensors only: it would fall back to a pickle."""
        return super().from_pretrained(*args, **{**kwargs, "use_safetensors": True})

    @property
    def cost_names(self) -> tuple[str, ...]:
        """Names of the K costs."""
        return tuple(self.config.cost_names or ("cost",))

    def residuals_of(self, cost: int) -> Tensor:
        """The residuals of one of the costs, a view."""
        return self.residuals.view(-1, NUM_WEIGHTS, NUM_STEPS, NUM_LEVELS)[cost]

    def per_cost(self, setting: str) -> Any:
        """`cost_high`, `cost_mean` or `cost_unit`: a number, or a tensor (K,) of several costs."""
        values = _each(self.config[setting])
        if len(values) == 1:
            return values[0]
        return torch.tensor(values, dtype=torch.float32, device=self.residuals.device)

    def forward(
        self,
        observation: Tensor,
        action: Tensor,
        safety_weight: Tensor,
        steps_left: Tensor,
        return_dict: bool = True,
    ) -> EvaluationCriticOutput | tuple[Tensor, Tensor]:
        """Expected reward and cost, per step.

        Args:
            observation: Normalized observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            safety_weight: Safety weight in [0, 1] of the policy that follows, shape (B,).
            steps_left: Steps over which to take the mean, this one included, >= 1, shape (B,).
            return_dict: Whether to return an [`EvaluationCriticOutput`] instead of a tuple.

        Returns:
            Reward rate (B,) and cost rates (B, K), float32.
        """
        rates = self.unbounded(observation, action, safety_weight, steps_left)
        reward_rate, cost_rate = self.within_bounds(*rates)
        if not return_dict:
            return reward_rate, cost_rate
        return EvaluationCriticOutput(reward_rate=reward_rate, cost_rate=cost_rate)

    def unbounded(
        self, observation: Tensor, action: Tensor, safety_weight: Tensor, steps_left: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, but for training: at a bound, a gradient would vanish."""
        weight = (2.0 * safety_weight - 1.0).unsqueeze(-1)
        parts = [observation, action, weight, self.step_features(steps_left)]
        dtype: Any = self.net[0].weight.dtype
        return self.in_units(self.net(torch.cat([part.to(dtype) for part in parts], dim=-1)).float())

    def step_features(self, steps_left: Tensor) -> Tensor:
        """What the network sees of the steps left (B,), (B, 3): share of an episode, logarithm, inverse."""
        steps = steps_left.float()
        longest = max(self.config.max_episode_steps, 2)
        return torch.stack([steps / longest, steps.log() / math.log(longest), 1.0 / steps], dim=-1)

    def in_units(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Reward rates (...) and cost rates (..., K) from multiples of the units, (..., 1 + K)."""
        return self.config.reward_unit * raw[..., 0], self.per_cost("cost_mean") * raw[..., 1:]

    def within_bounds(self, reward_rate: Tensor, cost_rate: Tensor) -> tuple[Tensor, Tensor]:
        """Rates no larger or smaller than a single step's of the data can be."""
        reward_rate = reward_rate.clamp(*self.config.reward_range)
        return reward_rate, cost_rate.clamp_min(0.0).clamp_max(self.per_cost("cost_high"))

    def residual_scale(self, cost: Tensor) -> Tensor:
        """What residuals of expected costs (B, K) are multiples of: sqrt(u (cost + u)) with u = `cost_unit`.

        The standard deviation of a number of costs of size u that come at random grows like that.
        """
        unit = self.per_cost("cost_unit")
        return (unit * (cost + unit)).sqrt()

    def step_position(self, steps_left: Tensor) -> Tensor:
        """Where a number of steps lies among those that residuals are known for, in [0, 12]: by its log."""
        longest = max(self.config.max_episode_steps, 2)
        return steps_left.float().clamp(1.0, float(longest)).log() * ((NUM_STEPS - 1) / math.log(longest))

    def cost_bound(self, cost: Tensor, safety_weight: Tensor, steps_left: Tensor, risk: float) -> Tensor:
        """Costs that are exceeded with a probability of `risk` only: any of K, each with risk / K at most.

        Args:
            cost: Expected costs of the steps left, shape (B, K).
            safety_weight: Safety weight of the policy that acts, shape (B,).
            steps_left: Shape (B,).
            risk: In (0, 1).

        Returns:
            Shape (B, K), at least the expected costs.
        """
        count = cost.shape[1]  # union bound
        level = (1.0 - risk / count) * NUM_LEVELS - 0.5
        if isinstance(level, Tensor):  # an input of an exported graph
            shares = _shares(level, NUM_LEVELS)
        else:
            shares = _level_shares(level).to(cost.device)
        by_weight = _shares(safety_weight.float() * (NUM_WEIGHTS - 1), NUM_WEIGHTS)
        by_steps = _shares(self.step_position(steps_left), NUM_STEPS)
        tables = [self.residuals_of(which).float() @ shares for which in range(count)]
        margin = torch.stack([((by_weight @ table) * by_steps).sum(dim=1) for table in tables], dim=1)
        # Where the cost was less than expected, that is not relied on.
        return cost + margin.clamp_min(0.0) * self.residual_scale(cost)


def _each(setting: float | Sequence[float]) -> list[float]:
    """A setting of one cost, or of several, as a list."""
    return list(setting) if isinstance(setting, Sequence) else [setting]


def _shares(position: Tensor, count: int) -> Tensor:
    """Shares (..., N) of N rows in what lies at a position in [0, N - 1], linear between two of them."""
    rows = torch.arange(count, dtype=position.dtype, device=position.device)
    return (1.0 - (position.clamp(0.0, count - 1.0).unsqueeze(-1) - rows).abs()).clamp_min(0.0)


@lru_cache(maxsize=16)
def _level_shares(level: float) -> Tensor:
    """Shares of the levels, (64,), on the CPU; a loop asks for the same risk at every step."""
    with torch.inference_mode(False):  # what is kept must serve calls with gradients, too
        return _shares(torch.tensor(level, dtype=torch.float32, device="cpu"), NUM_LEVELS)
