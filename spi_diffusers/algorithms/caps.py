"""CAPS, constraint-adaptive policy switching: heads from reward to safety, and the budget chooses.

Source: Chemingui et al., "Constraint-Adaptive Policy Switching for Offline Safe Reinforcement Learning"
(2025), on implicit Q-learning (Kostrikov et al. 2022), with the constants of the authors' code. Values of
reward and of cost are expectiles over the data's actions; each head imitates actions, weighed by what they
are better than these. What acts is `SwitchingActor`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spi_diffusers.algorithms.base import Algorithm, Batch, Metrics, PolicySizes
from spi_diffusers.algorithms.losses import td_loss, td_target
from spi_diffusers.algorithms.networks import Compute, CriticStack, Learner
from spi_diffusers.config.algorithm_settings import CAPSConfig
from spi_diffusers.models.mlp import joined, mlp
from spi_diffusers.models.switching_actor import SwitchingActor

#: Largest weight of an imitated action, as in the authors' code.
MAX_WEIGHT = 100.0


def expectile_loss(advantage: Tensor, expectile: float) -> Tensor:
    """|expectile - 1(u < 0)| u^2 of advantages u of any shape: above 0.5, values near the best action's."""
    return (expectile - (advantage < 0).float()).abs() * advantage.square()


def head_weights(advantage: Tensor, beta: float, cost_beta: float, num_heads: int) -> Tensor:
    """What each head weighs each action with.

    exp(beta A^r) for the first head k = 0 and exp(beta^c A^c) for the last, both at most `MAX_WEIGHT`; for
    those between the sum, with 2 k / (K - 1) on the latter.

    Args:
        advantage: A^r, and A^c that is positive where the action costs less, (2, B).
        beta: Inverse temperature of the reward's.
        cost_beta: Inverse temperature of the cost's.
        num_heads: K, at least 2.

    Returns:
        Shape (K, B).
    """
    reward, cost = (
        (factor * part).exp().clamp_max(MAX_WEIGHT)
        for factor, part in zip((beta, cost_beta), advantage, strict=True)
    )
    between = [reward + 2.0 * k / (num_heads - 1) * cost for k in range(1, num_heads - 1)]
    return torch.stack([reward, *between, cost])


class StateValues(nn.Module):
    """V^r and V^c, two MLPs."""

    def __init__(self, observation_dim: int, hidden_dims: list[int]):
        super().__init__()
        self.reward, self.cost = (mlp(observation_dim, *hidden_dims, 1) for _ in range(2))

    def forward(self, observation: Tensor) -> Tensor:
        """Both values, (2, B) float32, of observations (B, O)."""
        states = joined(self, observation)
        return torch.stack([self.reward(states), self.cost(states)]).squeeze(-1).float()


class CAPS(Algorithm):
    """CAPS in training.

    Args:
        config: Its settings.
        sizes: Sizes of the task.
        compute: Compute dtype, device and processes.
    """

    def __init__(self, config: CAPSConfig, sizes: PolicySizes, compute: Compute):
        self.config = config
        self.actor = SwitchingActor(
            observation_dim=sizes.observation_dim,
            action_dim=sizes.action_dim,
            num_heads=config.num_heads,
            hidden_dims=list(config.hidden_dims),
            gamma=config.gamma,
        ).to(compute.device)
        rate = config.learning_rate
        stack = CriticStack([self.actor.reward_critic, self.actor.cost_critic])
        values = StateValues(sizes.observation_dim, config.hidden_dims).to(compute.device)
        self._actor = Learner(self.actor.net, rate, compute)
        self._critics = Learner(stack, rate, compute, follows=True)
        self._values = Learner(values, rate, compute)
        self.learners = {"actor": self._actor, "critics": self._critics, "values": self._values}

    def advantages(self, batch: Batch) -> Tensor:
        """A^r = Q^r - V^r and A^c = V^c - Q^c of recorded actions, (2, B), by cautious target twins."""
        with torch.no_grad():
            reward, cost = self._critics.target_module(torch.cat([batch.observation, batch.action], dim=-1))
        reward_state, cost_state = self._values.module(batch.observation)
        return torch.stack([reward.amin(dim=0) - reward_state, cost_state - cost.amax(dim=0)])

    def critic_losses(self, batch: Batch, next_values: Tensor) -> Tensor:
        """Losses (2,) of Q^r and Q^c, of next states' values V^r and V^c (2, B)."""
        signals = torch.stack([self.config.reward_scale * batch.reward, batch.cost])
        target = td_target(signals, next_values, batch.terminated, self.config.gamma)
        values = self._critics.module(torch.cat([batch.observation, batch.action], dim=-1))
        return td_loss(values, target)

    def policy_losses(self, batch: Batch, advantage: Tensor) -> Tensor:
        """The weighed squared error of each head, (K,), of advantages (2, B).

        It is the likelihood of a Gaussian whose deviation stays 1, as it does in the authors' code.
        """
        config = self.config
        proposed = self.actor.proposals(self._actor.module(joined(self._actor.module, batch.observation)))
        error = (proposed - batch.action.unsqueeze(1)).square().sum(dim=-1)  # (B, K)
        weights = head_weights(advantage, config.beta, config.cost_beta, config.num_heads)
        return (weights * error.T).mean(dim=1)

    def learn(self, batch: Batch, noise: Mapping[str, Tensor]) -> Metrics:
        """One training step; returns metrics."""
        with torch.no_grad():
            next_values = self._values.module(batch.next_observation)
        advantage = self.advantages(batch)
        value_loss = expectile_loss(advantage, self.config.expectile).mean(dim=1)
        self._values.step(value_loss.sum())
        critic_loss = self.critic_losses(batch, next_values)
        self._critics.step(critic_loss.sum())
        policy_loss = self.policy_losses(batch, advantage.detach())
        self._actor.step(policy_loss.mean())
        self._critics.update_target(self.config.target_update_rate)
        names = ("reward", "cost")
        metrics = {f"critic/{name}_loss": critic_loss.detach()[i] for i, name in enumerate(names)}
        metrics |= {f"value/{name}_loss": value_loss.detach()[i] for i, name in enumerate(names)}
        return metrics | {f"policy/{name}_loss": policy_loss.detach()[-i] for i, name in enumerate(names)}
