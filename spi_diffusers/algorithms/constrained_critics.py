"""The critics that BCQ-Lag, BEAR-Lag and CPQ share: reward and cost, all networks in one batched pass."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spi_diffusers.algorithms.base import Batch, PolicySizes
from spi_diffusers.algorithms.bellman import critic_loss, td_target
from spi_diffusers.algorithms.cost_threshold import cost_threshold
from spi_diffusers.algorithms.critic_stack import CriticStack
from spi_diffusers.algorithms.learner import Learner
from spi_diffusers.config.algorithms import ConstrainedConfig
from spi_diffusers.models.critics import TwinCritic

#: Rows of one pass without gradients. Larger passes get their memory from the system anew each time, which
#: takes as long as the arithmetic.
_ROWS_PER_PASS = 512


def soft_clipped_value(values: Tensor, weight: float, *, pessimistic: str = "low") -> Tensor:
    """BCQ's value of an action from several critics: w * the worse twin + (1 - w) * the better twin.

    With several pairs of twins, a twin's value is first the worst over the pairs. For rewards the worse side
    is the lower one; for costs it is the higher one. Source: Fujimoto et al. (2019), equation 13.

    Args:
        values: P pairs of twins, shape (P, 2, ...).
        weight: w, 0.75 in BCQ; 1 is clipped double Q-learning.
        pessimistic: Which side is the worse: "low" or "high".

    Returns:
        Shape (...).
    """
    if pessimistic == "low":
        twins = values.amin(dim=0)
        return weight * twins.amin(dim=0) + (1.0 - weight) * twins.amax(dim=0)
    twins = values.amax(dim=0)
    return weight * twins.amax(dim=0) + (1.0 - weight) * twins.amin(dim=0)


def make_critics(config: ConstrainedConfig, sizes: PolicySizes) -> list[TwinCritic]:
    """Fresh critics of one signal, as many pairs of twins as configured."""
    return [
        TwinCritic(
            observation_dim=sizes.observation_dim,
            action_dim=sizes.action_dim,
            hidden_dims=list(config.hidden_dims),
            activation="relu",
            use_safety_weight=False,
        )
        for _ in range(config.critic_pairs)
    ]


class ConstrainedCritics:
    """P pairs of twin critics for the reward, and as many for the cost, with their targets.

    Args:
        config: Discount, learning rate, and how values are learned.
        sizes: The cost limit and the length of an episode, for the threshold.
        reward: Reward critics Q^r, trained in place.
        cost: Cost critics Q^c, as many.
        dtype: Compute dtype.
        reduce_gradients: Averages gradients over processes, in place.

    Attributes:
        threshold: Largest discounted cost that keeps the limit.
        learner: All critics in training.
    """

    def __init__(
        self,
        config: ConstrainedConfig,
        sizes: PolicySizes,
        reward: Sequence[TwinCritic],
        cost: Sequence[TwinCritic],
        *,
        dtype: torch.dtype = torch.float32,
        reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
    ):
        self.config = config
        horizon = "finite" if config.benchmark_targets else "infinite"
        self.threshold = cost_threshold(sizes.cost_limit, sizes.max_episode_steps, config.gamma, horizon)
        self._cost_side = "low" if config.benchmark_targets else "high"
        stack = CriticStack([*reward, *cost])
        for layer in stack.net:
            if isinstance(layer, nn.ReLU):
                layer.inplace = True  # fresh memory for activations takes longer than computing them
        self.learner = Learner(
            stack,
            config.learning_rate,
            dtype,
            target_update_rate=config.target_update_rate,
            reduce_gradients=reduce_gradients,
        )

    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds."""
        assert self.learner.target is not None
        return {"critics": self.learner.master, "target_critics": self.learner.target}

    @torch.no_grad()
    def candidate_values(self, observation: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Soft-clipped target values of N candidate actions per state.

        Args:
            observation: Shape (B, O).
            candidates: Shape (B, N, A).

        Returns:
            Q^r and Q^c, each of shape (B, N).
        """
        size, number, _ = candidates.shape
        repeated = observation.unsqueeze(1).expand(-1, number, -1)
        inputs = torch.cat([repeated, candidates], dim=-1).flatten(0, 1)
        target = self.learner.target_module
        values = torch.cat([target(rows) for rows in inputs.split(_ROWS_PER_PASS)], dim=2)
        reward, cost = self._split(values)
        weight = self.config.soft_clip_weight
        reward_value = soft_clipped_value(reward, weight)
        cost_value = soft_clipped_value(cost, weight, pessimistic=self._cost_side)
        return reward_value.view(size, number), cost_value.view(size, number)

    def values(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Q^r and Q^c of every critic in training, each (P, 2, B), of (B, O) and (B, A)."""
        return self._split(self.learner.module(torch.cat([observation, action], dim=-1)))

    def policy_values(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The worst Q^r and the worst Q^c of one action per state, each (B,), for the action to climb."""
        reward, cost = self.values(observation, action)
        cost = cost.flatten(0, 1)
        cost_value = cost.amax(dim=0) if self._cost_side == "high" else cost.amin(dim=0)
        return reward.flatten(0, 1).amin(dim=0), cost_value

    def update(
        self, batch: Batch, reward_value: Tensor, cost_value: Tensor, penalty: Tensor | float = 0.0
    ) -> dict[str, Tensor]:
        """One step of all critics.

        Args:
            batch: Transitions.
            reward_value: Q^r of the next states, shape (B,).
            cost_value: Q^c of the next states, shape (B,).
            penalty: Added to the loss; a scalar made from `values`.

        Returns:
            Metrics, detached.
        """
        config = self.config
        ended, cost_ended = batch.terminated, batch.terminated
        if config.benchmark_targets:
            ended, cost_ended = ended | batch.truncated, torch.zeros_like(ended)
        reward_target = td_target(config.reward_scale * batch.reward, reward_value, ended, config.gamma)
        cost_target = td_target(batch.cost, cost_value, cost_ended, config.gamma)
        reward, cost = self.values(batch.observation, batch.action)
        # One loss per pair of twins.
        reward_loss, cost_loss = (
            critic_loss(reward, reward_target).sum(),
            critic_loss(cost, cost_target).sum(),
        )
        self.learner.step(reward_loss + cost_loss + penalty)
        return {
            "critic/reward_loss": reward_loss.detach(),
            "critic/cost_loss": cost_loss.detach(),
            "critic/reward_value": reward.detach().mean(),
            "critic/cost_value": cost.detach().mean(),
        }

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values (2 P, 2, B, 1) of the stack as reward and cost, each (P, 2, B)."""
        reward, cost = values.squeeze(-1).split(self.config.critic_pairs)
        return reward, cost
