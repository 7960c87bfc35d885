"""By how much an evaluation critic is off along recorded episodes, without a simulator.

With a fixed safety weight w, each step of an episode leaves a residual

    delta_t = x_t + (1 - terminated_t) (h - 1) Q_{h-1}(s_{t+1}, a', w) - h Q_h(s_t, a_t, w),   h = T - t,

with the action a' of the policy of w. A critic that is right leaves none on average, whatever policy has
recorded the episode.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.pipelines.extraction import policy_action

if TYPE_CHECKING:
    from spi_diffusers.pipelines import SPIPolicyPipeline

_BATCH = 8192


def recorded_actions(pipeline: "SPIPolicyPipeline", action: Tensor) -> Tensor:
    """Actions of the data as the networks see them, in [-1, 1], (B, A): as its environment clipped them."""
    return pipeline.noise_model.from_environment_range(action).clamp(-1.0, 1.0)


@torch.no_grad()
def step_residuals(
    pipeline: "SPIPolicyPipeline", data: TransitionDataset, rows: Tensor, weight: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals of single steps, in the data's units.

    Args:
        pipeline: A policy with an evaluation critic.
        data: Recorded episodes.
        rows: Rows of the data, (B,).
        weight: Safety weight w for each, (B,).
        steps: Steps h left at each, this one included, (B,).

    Returns:
        Residuals of the reward (B,), those of K costs (B, K), and the expected costs h Q_h(s_t, a_t, w),
        (B, K).
    """
    parts = zip(rows.split(_BATCH), weight.split(_BATCH), steps.float().split(_BATCH), strict=True)
    found = [_step_residuals(pipeline, data, *part) for part in parts]
    rewards, costs, expected = (torch.cat(values) for values in zip(*found, strict=True))
    return rewards, costs, expected


def _step_residuals(
    pipeline: Any, data: TransitionDataset, rows: Tensor, weight: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, critic = data.transitions.gather(rows), pipeline.evaluation_critic
    device = pipeline.normalizer.mean.device
    weight, steps = weight.to(device), steps.to(device)
    state, following = (
        pipeline.normalizer(observation.to(device))
        for observation in (batch.observation, batch.next_observation)
    )
    recorded = recorded_actions(pipeline, batch.action.to(device))
    action = policy_action(pipeline, following, weight)
    now = critic(state, recorded, weight, steps, return_dict=False)
    later = critic(following, action, weight, (steps - 1.0).clamp_min(1.0), return_dict=False)
    remaining = (~batch.terminated.to(device)).float() * (steps - 1.0)
    reward = batch.reward.to(device) + remaining * later[0] - steps * now[0]
    remaining, steps = remaining.unsqueeze(1), steps.unsqueeze(1)
    costs = batch.costs.to(device) + remaining * later[1] - steps * now[1]
    return reward.cpu(), costs.cpu(), (steps * now[1]).cpu()
