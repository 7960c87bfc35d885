"""What the rest of an episode may cost, from what a caller says of it.

Shipped as a part of `pipeline.py`, and used where there is no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spi_diffusers.pipelines.values import as_number, shown

EXTRACTIONS = ("reward", "safe")
#: Share of episodes that may exceed the limit, where the caller names none.
DEFAULT_RISK = 0.05


@dataclass(frozen=True)
class CostAllowance:
    """What the rest of an episode may cost, in arrays or tensors.

    Attributes:
        budget: Costs that may still be caused, (B, K); from a caller with one cost alone (B,).
        steps: Steps over which they may be, shape (B,).
        risk: Probability with which any of them may be exceeded.
    """

    budget: Any
    steps: Any
    risk: float


def check_risk(risk: Any) -> float:
    """A share of the episodes in (0, 1); ValueError: it is none."""
    number = float(as_number("risk", risk, 0, 1, below=True))
    if number == 0:
        raise ValueError("risk must lie above 0: no estimate from data excludes that a limit is exceeded.")
    return number


def cost_allowance(
    max_episode_steps: int | None,
    extraction: str | None,
    cost_limit: Any,
    cost_budget: Any,
    steps_left: Any,
    risk: Any,
    per_observation: Callable[[str, Any], Any],
    per_cost: Callable[[str, Any], Any] | None = None,
) -> tuple[str, CostAllowance | None]:
    """Which extraction applies, and for the safe one what the rest of the episode may cost.

    A limit alone is taken for the budget of a whole episode that starts at every step anew: the cost so far
    is not known.

    Args:
        max_episode_steps: Of the policy.
        extraction: As in `SPIPolicyPipeline.__call__`, like the four after it.
        cost_limit: As `per_cost` takes it, or None.
        cost_budget: The same.
        steps_left: A number, one per observation, or None.
        risk: A number.
        per_observation: Makes of a name and a number, or one per observation, float32: (), (1,) or (B,).
        per_cost: Makes of a name and what it is for each of K costs float32, (K,) to (B, K); by default, for
            one cost, as `per_observation`.

    Raises:
        ValueError: The arguments do not go together, or one is out of range.
    """
    if extraction is None:
        extraction = "reward" if cost_limit is None and cost_budget is None else "safe"
    if extraction not in EXTRACTIONS:
        raise ValueError(f"extraction must be one of {EXTRACTIONS}, got {shown(extraction)}.")
    if (cost_budget is None) != (steps_left is None):
        raise ValueError("cost_budget and steps_left (in the episode) must be given together.")
    if cost_budget is not None and cost_limit is not None:
        raise ValueError(
            "Pass cost_budget (what is left of the limit) with steps_left, or cost_limit alone where the "
            "cost so far is not known; not both."
        )
    risk, per_cost = check_risk(risk), per_cost or per_observation
    if cost_limit is not None:
        budget = per_cost("cost_limit", cost_limit)
        if bool((budget < 0).any()):
            raise ValueError(f"cost_limit must not be negative, got {shown(cost_limit)}.")
        if max_episode_steps is None:
            raise ValueError(
                "This policy does not know its task's episode length: pass cost_budget and steps_left "
                "instead of cost_limit."
            )
        steps = per_observation("max_episode_steps", max_episode_steps)
    elif cost_budget is not None:
        budget = per_cost("cost_budget", cost_budget)
        steps = per_observation("steps_left", steps_left)
        if bool((steps < 1).any()):
            raise ValueError(f"steps_left must be at least 1, got {shown(steps_left)}.")
    if extraction == "reward":
        return extraction, None
    if cost_limit is None and cost_budget is None:
        raise ValueError("extraction='safe' needs cost_limit, or cost_budget with steps_left.")
    return extraction, CostAllowance(budget, steps, risk)
