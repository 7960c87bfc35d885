"""What a controller asks of a policy beside its actions.

Shipped as a part of `pipeline.py`, so it needs only torch and NumPy.
"""

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from spi_diffusers.pipelines.allowance import DEFAULT_RISK
from spi_diffusers.pipelines.checks import as_batch, without_autocast
from spi_diffusers.pipelines.controller import SafeController
from spi_diffusers.pipelines.values import without_one

#: Part of the width of the data by which an observation may lie outside of it, and the least such distance,
#: in standard deviations.
SUPPORT_SLACK = 0.1


class ControlledPolicy:
    """Mixed into the pipeline; `spi_diffusers.runtime` has the same for a policy that was exported."""

    config: Any
    noise_model: Any
    normalizer: Any
    evaluation_critic: Any
    student: Any

    def controller(
        self,
        cost_limit: Any,
        *,
        risk: float = DEFAULT_RISK,
        num_envs: int = 1,
        **options: Any,
    ) -> SafeController:
        """What keeps count of cost and steps in a loop, and learns from episodes that are over.

        Args:
            cost_limit: Cost that an episode may have; a number, or one for each environment. Of K > 1 costs
                (K,), (N, K), or a dict by `cost_names`.
            risk: Share of the episodes that may exceed it, in (0, 1).
            num_envs: Number of environments side by side.
            **options: The others of [`SafeController`], which explains all of them.
        """
        return SafeController(self, cost_limit, risk=risk, num_envs=num_envs, **options)

    def check_keeps_limits(self) -> None:
        """Raise ValueError if the policy cannot keep a limit."""
        if self.evaluation_critic is None:
            raise ValueError("This policy has no evaluation critic, so it cannot keep a limit.")

    @property
    def cost_names(self) -> tuple[str, ...]:
        """Names of the costs that a limit is for; a policy of one cost has "cost"."""
        return ("cost",) if self.evaluation_critic is None else tuple(self.evaluation_critic.cost_names)

    @property
    def max_episode_steps(self) -> int | None:
        """Steps of an episode."""
        return cast("int | None", self.config.max_episode_steps)

    @property
    def middle_action(self) -> Tensor:
        """The middle of the environment's range, (A,)."""
        nothing = torch.zeros(self.noise_model.config.action_dim, device=self.normalizer.mean.device)
        return cast(Tensor, self.noise_model.to_environment_range(nothing))

    @property
    def support(self) -> tuple[np.ndarray, np.ndarray]:
        """Between which observations, each (O,), those of the data lie, and a little more."""
        normalizer = self.normalizer
        low, high = self.evaluation_critic.observed_range.double().cpu().numpy()
        if not (low.any() or high.any()):  # fitted on no data
            return np.full_like(low, -np.inf), np.full_like(high, np.inf)
        slack = np.maximum(SUPPORT_SLACK * (high - low), SUPPORT_SLACK)
        low, high, clip = low - slack, high + slack, normalizer.config.clip
        # The policy sees nothing of how far beyond the clip a number lies.
        low, high = np.where(low <= -clip, -np.inf, low), np.where(high >= clip, np.inf, high)
        mean, std = (part.double().cpu().numpy() for part in (normalizer.mean, normalizer.std))
        return mean + std * low, mean + std * high

    @torch.no_grad()
    @without_autocast
    def step_costs(self, observations: np.ndarray, output: Any) -> Tensor:
        """What chosen actions are expected to cost in the very step, (B,); of K > 1 costs (B, K).

        Args:
            observations: What the policy acted on, (B, O) or (O,), not normalized.
            output: What it answered.
        """
        rows = torch.arange(len(output.chosen), device=output.chosen.device)
        actions = self.noise_model.from_environment_range(output.candidates[rows, output.chosen])
        weights = output.safety_weights[rows, output.chosen]
        states, _, _ = as_batch(observations, observations.shape[-1], output.chosen.device)
        states, step = self.normalizer(states), torch.ones_like(weights)
        costs: Tensor = self.evaluation_critic(states, actions, weights, step, return_dict=False)[1]
        return cast(Tensor, without_one(costs))
