"""Extraction: which candidate is taken, by the paper's rule or under a cost limit.

Shipped as a part of `pipeline.py`, so it needs only torch and NumPy.
"""

from typing import Any, cast

import torch
from torch import Tensor

from spi_diffusers.pipelines.allowance import CostAllowance
from spi_diffusers.pipelines.values import as_number, without_one

#: The safety weights whose policies safe extraction chooses from.
SAFETY_WEIGHT_GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: Candidates with extraction "reward", where the caller names no number; and at most.
NUM_CANDIDATES, MAX_CANDIDATES = 50, 100_000

#: What N policies expect in each of B states, per step: the reward (B, N) and K costs (B, N, K).
Rates = tuple[Tensor, Tensor]


def extract_reward(reward_values: Tensor) -> Tensor:
    """Eq. 12: the candidate with the highest Q^r. (B, N) -> (B,)."""
    return reward_values.argmax(dim=1)


def extract_safe(returns: Tensor, costs: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
    """The policy with the highest return among those whose cost fits; where none fits, the safest one.

    A policy fits only if all safer ones fit as well: one that is predicted to cost less than a safer one is
    one that the critic is wrong about. For the same reason the safest one is the last, not the one with the
    least predicted cost. Nothing fits into a budget that is spent, whatever costs are predicted. Of several
    costs each must fit.

    Args:
        returns: Expected return of each of N policies over the steps left, shape (B, N), by safety weight.
        costs: K costs that each exceeds with the probability of the risk only, shape (B, N, K).
        budget: Costs that may still be caused, shape (B, K).

    Returns:
        Index of the chosen policy, shape (B,); and which ones fit, shape (B, N).
    """
    budget = budget.unsqueeze(1)
    fits = ((costs <= budget) & (budget > 0)).all(dim=2)
    misfits = (~fits).int().cumsum(dim=1)
    feasible = fits & (misfits == misfits[:, -1:])
    best = torch.where(feasible, returns, -torch.inf).argmax(dim=1)
    return torch.where(feasible.any(dim=1), best, costs.shape[1] - 1), feasible


def repeated(values: Tensor, count: int) -> Tensor:
    """Each of B rows `count` times in a row, (B count, ...); `repeat_interleave` takes longer."""
    return values.unsqueeze(1).expand(-1, count, *values.shape[1:]).flatten(0, 1)


def _tiled(weights: Tensor, batch: int) -> Tensor:
    """All of (N,) for each of B states, (B N,); `repeat` takes longer."""
    return weights.expand(batch, -1).flatten()


def policy_action(pipeline: Any, states: Tensor, weight: Tensor) -> Tensor:
    """How the policies of safety weights (B,) act in normalized states (B, O): actions in [-1, 1], (B, A)."""
    # Only a scheduler that draws noise in its own steps needs it.
    generator = torch.Generator().manual_seed(0)
    return pipeline.noise_model.sample(
        pipeline.scheduler, states, weight, generator=generator, temperature=0.0
    )


def candidate_weights(
    conditioned: bool,
    extraction: str,
    safety_weight: float | None,
    num_candidates: int | None,
    device: torch.device,
) -> tuple[Tensor | None, int]:
    """The safety weight of each candidate (N,), None for a model that is not conditioned; and N.

    Raises:
        ValueError: A weight or a number of candidates does not apply, or is out of its range.
    """
    count = NUM_CANDIDATES
    if num_candidates is not None:
        count = as_number("num_candidates", num_candidates, 1, MAX_CANDIDATES, whole=True)
    if not conditioned:
        if safety_weight is not None:
            raise ValueError("This policy was trained without a safety weight; do not pass one.")
        return None, count
    if safety_weight is not None:
        safety_weight = as_number("safety_weight", safety_weight, 0, 1)
    if extraction == "safe":
        if num_candidates is not None:
            raise ValueError(
                "Safe extraction has one candidate for each safety weight: num_candidates is for "
                "extraction='reward'."
            )
        grid = SAFETY_WEIGHT_GRID if safety_weight is None else (safety_weight,)
        return torch.tensor(grid, dtype=torch.float32, device=device), len(grid)
    # The paper weighs both critics; without further notice, equally.
    weight = 0.5 if safety_weight is None else safety_weight
    return torch.full((count,), float(weight), dtype=torch.float32, device=device), count


def paper_values(
    pipeline: Any, states: Tensor, candidates: Tensor, weights: Tensor | None
) -> dict[str, Tensor]:
    """Q^r and Q^c' of candidates (M, A) in normalized states (M, O), the lower twin of each, (M,)."""
    (rewards,) = pipeline.reward_critic(states, candidates, weights, return_dict=False)
    (safeties,) = pipeline.safety_critic(states, candidates, weights, return_dict=False)
    reward_values, safety_values = (twins.amin(dim=0).float() for twins in (rewards, safeties))
    return {"reward_values": reward_values * pipeline.config.reward_unit, "safety_values": safety_values}


def value_policies(
    pipeline: Any,
    states: Tensor,
    weights: Tensor,
    allowance: CostAllowance,
    num_inference_steps: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Rates]:
    """What the policies of N safety weights do in B states, and what the evaluation critic expects of them.

    Args:
        pipeline: A policy with an evaluation critic.
        states: Normalized, (B, O).
        weights: Safety weights, (N,).
        allowance: Of what the rest of the B episodes may cost, the steps.
        num_inference_steps: Denoising steps.
        generator: For schedulers that draw noise in their own steps.

    Returns:
        Actions in [-1, 1] (B, N, A), and what they expect.
    """
    count = len(weights)
    tiled, rows = _tiled(weights, states.shape[0]), repeated(states, count)
    actions = pipeline.noise_model.sample(
        pipeline.scheduler, rows, tiled, num_inference_steps, generator, temperature=0.0
    )
    actions = actions.view(-1, count, actions.shape[1])
    return actions, expected_rates(pipeline, states, actions, weights, _known_steps(pipeline, allowance))


def expected_rates(pipeline: Any, states: Tensor, actions: Tensor, weights: Tensor, steps: Tensor) -> Rates:
    """What the evaluation critic expects over the steps left (B,), of states (B, O), actions (B, N, A) and
    safety weights (N,).
    """
    count = len(weights)
    rows = repeated(states, count), actions.flatten(0, 1)
    tiled = _tiled(weights, states.shape[0]), repeated(steps, count)
    reward, costs = pipeline.evaluation_critic(*rows, *tiled, return_dict=False)
    return reward.view(-1, count), costs.view(-1, count, costs.shape[1])


def student_values(pipeline: Any, states: Tensor, allowance: CostAllowance) -> tuple[Tensor, Rates]:
    """As `value_policies`, by the student."""
    critic, steps = pipeline.evaluation_critic, _known_steps(pipeline, allowance)
    actions, raw = pipeline.student(states, critic.step_features(steps), return_dict=False)
    return actions, critic.within_bounds(*critic.in_units(raw))


def value_policies_fast(
    pipeline: Any, states: Tensor, weights: Tensor, allowance: CostAllowance
) -> tuple[Tensor, Rates, Tensor]:
    """As `value_policies`, by the student where it knows its way about, and by its teacher elsewhere.

    It was distilled on observations in the range of the data, and on no more steps than an episode has.

    Returns:
        As `value_policies`; and which of the states were left to the student, (B,).
    """
    actions, rates = student_values(pipeline, states, allowance)
    low, high = pipeline.evaluation_critic.observed_range
    known = ((states >= low) & (states <= high)).all(dim=1)
    known &= allowance.steps <= pipeline.config.max_episode_steps
    if not bool(known.all()):
        strange = ~known
        rest = CostAllowance(allowance.budget[strange], allowance.steps[strange], allowance.risk)
        taught, expected = value_policies(pipeline, states[strange], weights, rest)
        for values, teachers in zip((actions, *rates), (taught, *expected), strict=True):
            values[strange] = teachers
    return actions, rates, known


def choose_within(
    pipeline: Any, weights: Tensor, rates: Rates, allowance: CostAllowance
) -> tuple[Tensor, dict[str, Tensor]]:
    """Choose among the policies of N safety weights for each of B states by what is expected of them.

    Args:
        pipeline: A policy with an evaluation critic.
        weights: Safety weights, (N,).
        rates: What they expect.
        allowance: What the rest of the B episodes may cost.

    Returns:
        The chosen ones (B,), and what is expected of all, each (B, N); of several costs (B, N, K).
    """
    critic, steps = pipeline.evaluation_critic, allowance.steps.view(-1, 1)
    returns, costs = rates[0] * steps, rates[1] * steps.unsqueeze(2)
    batch, count, kinds = costs.shape
    known = repeated(_known_steps(pipeline, allowance), count)
    # Every step decides anew, and one that errs is enough for an episode: half the risk for each.
    bounds = critic.cost_bound(costs.flatten(0, 1), _tiled(weights, batch), known, allowance.risk / 2)
    bounds = bounds.view(-1, count, kinds) * pipeline.config.cost_margin
    chosen, feasible = extract_safe(returns, bounds, allowance.budget)
    return chosen, {
        "expected_returns": returns,
        "expected_costs": without_one(costs),
        "cost_bounds": without_one(bounds),
        "feasible": feasible,
    }


def _known_steps(pipeline: Any, allowance: CostAllowance) -> Tensor:
    """Steps left, (B,); a caller may go on for longer than any episode of the data."""
    return cast(Tensor, allowance.steps.clamp_max(float(pipeline.config.max_episode_steps)))
