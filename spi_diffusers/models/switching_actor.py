"""CAPS's policy: several heads, of which the remaining budget chooses at each step."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from spi_diffusers.models.actors import _Actor
from spi_diffusers.models.critics import TwinCritic
from spi_diffusers.models.mlp import joined, mlp


class SwitchingActor(_Actor, ModelMixin):  # diffusers looks for ModelMixin in a component's module
    """CAPS's policy (Chemingui et al. 2025): of K proposed actions the best whose cost to go fits the budget.

    Args:
        observation_dim: Size O of a (normalized) observation.
        action_dim: Size A of an action.
        num_heads: Number K of heads on one trunk; the first earns most, the last costs least.
        hidden_dims: Width of each hidden layer, of the trunk and of the critics.
        gamma: Discount factor of the cost critic.

    Raises:
        ValueError: For sizes below one, fewer than two heads, or a discount outside [0, 1).
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        num_heads: int = 2,
        hidden_dims: Sequence[int] = (256, 256),
        gamma: float = 0.99,
    ):
        super().__init__()
        if num_heads < 2:
            raise ValueError(f"num_heads must be at least 2, got {num_heads}.")
        if not 0 <= gamma < 1:
            raise ValueError(f"gamma must be in [0, 1), got {gamma}.")
        self.net = mlp(observation_dim, *hidden_dims, num_heads * action_dim)
        self.reward_critic, self.cost_critic = (
            TwinCritic(
                observation_dim=observation_dim,
                action_dim=action_dim,
                hidden_dims=list(hidden_dims),
                activation="relu",
                use_safety_weight=False,
            )
            for _ in range(2)
        )

    def proposals(self, raw: Tensor) -> Tensor:
        """What the heads propose, in [-1, 1], (B, K, A) float32, from the network's output (B, K A)."""
        return raw.float().tanh().unflatten(1, (self.config.num_heads, -1))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (B, K, A), their Q^r and Q^c (B, K), each the cautious twin, of observations (B, O)."""
        actions = self.proposals(self.net(joined(self.net, observation)))
        size, number, _ = actions.shape
        pairs = (observation.repeat_interleave(number, dim=0), actions.flatten(0, 1))
        reward = self.reward_critic(*pairs).values.amin(dim=0)
        cost = self.cost_critic(*pairs).values.amax(dim=0)
        return actions, reward.view(size, number), cost.view(size, number)

    def threshold(self, budget: Tensor, steps_left: Tensor) -> Tensor:
        """Discounted cost of a budget b >= 0 spent evenly: b / h (1 - gamma^h) / (1 - gamma), (B,) each.

        A budget that is overdrawn counts as 0.
        """
        gamma = self.config.gamma
        return budget.clamp_min(0.0) / steps_left * (1.0 - gamma**steps_left) / (1.0 - gamma)

    @torch.no_grad()
    def act(self, observation: Tensor, budget: Tensor, steps_left: Tensor) -> Tensor:
        """Actions in [-1, 1], (B, A): the highest Q^r of those with Q^c within; if none is, the lowest Q^c.

        Args:
            observation: Normalized, (B, O).
            budget: Cost that the rest of the episode may have, (B,).
            steps_left: Steps of the rest of the episode, at least 1, (B,).
        """
        actions, reward, cost = self(observation)
        fits = cost <= self.threshold(budget, steps_left).unsqueeze(1)
        chosen = torch.where(
            fits.any(dim=1), reward.masked_fill(~fits, -torch.inf).argmax(dim=1), cost.argmin(dim=1)
        )
        return actions[torch.arange(len(chosen), device=chosen.device), chosen]
