"""Safe extraction: what a step may cost, and which candidate is taken under it.

Shipped as a part of `pipeline.py`, so it needs only torch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spi_diffusers.pipelines.checks import per_observation, shown

SAFETY_WEIGHT_GRID = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


EXTRACTIONS = ("reward", "safe")
SELECTIONS = ("candidate", "weight")


#: How much faster than evenly a budget may be spent when the limit is known too. Without a bound, what a
#: careful policy has saved would be thrown away in the last steps, for little reward.
PACE_HEADROOM = 1.5


def extract_reward(reward_values: Tensor) -> Tensor:
    """Eq. 12: the candidate with the highest Q^r. (B, N) -> (B,)."""
    return reward_values.argmax(dim=1)


def extract_safe(
    reward_values: Tensor, safety_values: Tensor, feasible: Tensor, num_groups: int | None = None
) -> Tensor:
    """The feasible candidate with the highest Q^r; where none is feasible, the one with the highest Q^c'.

    With groups, the group with the highest mean Q^r among those that are feasible, and its first candidate.

    Args:
        reward_values: Shape (B, N).
        safety_values: Shape (B, N).
        feasible: Shape (B, N), bool; with groups, the same for all candidates of a group.
        num_groups: Number of groups of equally many candidates side by side.

    Returns:
        Index of the chosen candidate, shape (B,).
    """
    if num_groups is None:
        best = torch.where(feasible, reward_values, -torch.inf).argmax(dim=1)
    else:
        size = reward_values.shape[1] // num_groups
        means = reward_values.unflatten(1, (num_groups, size)).mean(dim=2)
        best = torch.where(feasible[:, ::size], means, -torch.inf).argmax(dim=1) * size
    return torch.where(feasible.any(dim=1), best, safety_values.argmax(dim=1))


def group_means(values: Tensor, num_groups: int | None) -> Tensor:
    """Every candidate's mean over its group, (B, N) -> (B, N); without groups, the values themselves."""
    if num_groups is None:
        return values
    groups = values.unflatten(1, (num_groups, -1))
    return groups.mean(dim=2, keepdim=True).expand_as(groups).flatten(1)


@dataclass(frozen=True)
class CostAllowance:
    """What a step may cost.

    Attributes:
        rate: Cost per step to hold the critic's predictions to, shape (B,).
        recovery: Cost that even the safest way on from a candidate may still have, shape (B,); None where
            the running cost is not fed back.
    """

    rate: Tensor
    recovery: Tensor | None


def cost_allowance(
    config: Any,
    calibration: Any | None,
    extraction: str | None,
    cost_limit: Any,
    cost_budget: Any,
    steps_left: Any,
    batch: int,
    device: torch.device,
) -> tuple[str, CostAllowance | None]:
    """Which extraction applies, and for the safe one what a step may cost.

    Args:
        config: Settings of the pipeline.
        calibration: The pipeline's, or None.
        extraction: As in `SPIPolicyPipeline.__call__`, like the three after it.
        cost_limit: A number, one per observation, or None.
        cost_budget: The same.
        steps_left: The same.
        batch: Number B of observations.
        device: Where to put the allowance.

    Raises:
        ValueError: The arguments do not go together, or one is out of range.
    """
    if extraction is None:
        extraction = "reward" if cost_limit is None and cost_budget is None else "safe"
    if extraction not in EXTRACTIONS:
        raise ValueError(f"extraction must be one of {EXTRACTIONS}, got {shown(extraction)}.")
    if (cost_budget is None) != (steps_left is None):
        raise ValueError("cost_budget and steps_left (in the episode) must be given together.")
    even_rate = None
    if cost_limit is not None:
        limit = per_observation("cost_limit", cost_limit, batch, device)
        if bool((limit < 0).any()):
            raise ValueError(f"cost_limit must not be negative, got {shown(cost_limit)}.")
        if config.max_episode_steps is None:
            raise ValueError(
                "This policy does not know its task's episode length: pass cost_budget and steps_left "
                "instead of cost_limit."
            )
        even_rate = limit / config.max_episode_steps
    if extraction == "reward":
        return extraction, None
    if cost_budget is None:
        if even_rate is None:
            raise ValueError("extraction='safe' needs cost_limit, or cost_budget with steps_left.")
        return extraction, CostAllowance(even_rate if calibration is None else calibration(even_rate), None)
    budget = per_observation("cost_budget", cost_budget, batch, device)
    steps = per_observation("steps_left", steps_left, batch, device)
    if bool((steps < 1).any()):
        raise ValueError(f"steps_left must be at least 1, got {shown(steps_left)}.")
    reserve = config.budget_reserve
    if config.reserve_decay:
        reserve = reserve * (steps / config.max_episode_steps).clamp_max(1.0) ** config.reserve_decay
    left = (budget - reserve).clamp_min(0.0)
    rate = left / steps
    if even_rate is not None:
        rate = torch.minimum(rate, PACE_HEADROOM * even_rate)
    return extraction, CostAllowance(rate, left)
