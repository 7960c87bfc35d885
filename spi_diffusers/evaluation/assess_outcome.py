"""What return and cost a policy will have under a limit, estimated on recorded episodes.

The policy decides anew at every step, by what is left of its limit. So it is played along the record: at
some steps of an episode it is asked in the recorded state, with what is left by then; until the next one it
is taken to earn and to spend at the mean rates that its evaluation critic expects of the safety weight that
acts. By how much the critic is off on these episodes, its residuals tell (see `training.residuals`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.evaluation.assessment import COVERAGE, Estimate
from spi_diffusers.training.residuals import step_residuals

if TYPE_CHECKING:
    from spi_diffusers.pipelines import SPIPolicyPipeline

BOOTSTRAP = 1000
#: Decisions of an episode that is played along its record, at most.
DECISIONS = 40
#: Observations per call of the pipeline, which makes a candidate of each for every safety weight.
_OBSERVATIONS = 512


@dataclass(frozen=True)
class Outcome:
    """What is expected of E episodes under a limit; all but the last are (E,).

    Attributes:
        weight: Safety weight whose policy acts at the start, float32.
        at_start: Return and cost that are expected if it acts to the end, (2, E).
        played: Return and cost along the record, (2, E).
        feasible: Whether some policy fits into the limit at the start.
        least_bound: Smallest budget that the safest policy fits into.
        least_expected: Expected cost of the weight that costs least on average over the starts.
    """

    weight: Tensor
    at_start: np.ndarray
    played: np.ndarray
    feasible: np.ndarray
    least_bound: np.ndarray
    least_expected: float


def play_on_record(
    pipeline: "SPIPolicyPipeline", data: TransitionDataset, limit: float, risk: float, seed: int
) -> Outcome:
    """Play a policy along recorded episodes, with `limit` for each.

    The same seed at every limit: so what fits into one limit fits into a higher one.
    """
    horizon = int(pipeline.config.max_episode_steps or 0)
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    times = np.unique(np.linspace(0, horizon, min(horizon, DECISIONS) + 1).round().astype(np.int64))
    played = torch.zeros(2, data.num_episodes, dtype=torch.float64)
    first: dict[str, Tensor] = {}
    for step, following in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        observation = data.transitions.observation[_rows_at(data, step, rng)]
        asked = _ask(pipeline, observation, limit - played[1], horizon - step, risk, generator)
        first = first or asked
        played += asked["expected"] * (following - step) / (horizon - step)
    numbers = {name: value.double().numpy() for name, value in first.items()}
    return Outcome(
        weight=first["weight"],
        at_start=numbers["expected"],
        played=played.numpy(),
        feasible=numbers["feasible"],
        least_bound=numbers["bound"],
        least_expected=float(numbers["by_weight"].mean(0).min()),
    )


def _rows_at(data: TransitionDataset, step: int, rng: np.random.Generator) -> Tensor:
    """The row of every episode at a step, (E,): where one has ended, another's that has not, or its last."""
    episodes = data.episodes
    there = torch.nonzero(episodes.length > step).flatten()
    rows = episodes.start + (episodes.length - 1).clamp_max(step)
    if len(there):
        others = there[torch.from_numpy(rng.integers(len(there), size=data.num_episodes))]
        rows = torch.where(episodes.length > step, rows, episodes.start[others] + step)
    return rows


def _ask(
    pipeline: "SPIPolicyPipeline",
    observation: Tensor,
    budget: Tensor,
    steps_left: int,
    risk: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """What acts in states (E, O) with budgets (E,), and what is expected of it over the steps left."""
    parts: dict[str, list[Tensor]] = {}
    for states, left in zip(observation.split(_OBSERVATIONS), budget.split(_OBSERVATIONS), strict=True):
        how: Any = {"cost_budget": left.float(), "steps_left": steps_left, "risk": risk}
        found: Any = pipeline(states, generator=generator, **how)
        acts = found.chosen.unsqueeze(1)
        expected = [value.gather(1, acts).T for value in (found.expected_returns, found.expected_costs)]
        batch = {
            "weight": found.safety_weights.gather(1, acts).squeeze(1),
            "expected": torch.cat(expected),
            "feasible": found.feasible.any(1).float(),
            "bound": found.cost_bounds[:, -1],  # what fits needs the safest policy to fit
            "by_weight": found.expected_costs,
        }
        for name, value in batch.items():
            parts.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values, dim=1 if name == "expected" else 0) for name, values in parts.items()}


def residual_sums(
    pipeline: "SPIPolicyPipeline", data: TransitionDataset, weights: list[Tensor]
) -> list[np.ndarray]:
    """Sums of the residuals of reward and of cost along every episode, (2, E), for each of some weights.

    Weights are (E,), one of every episode.
    """
    horizon = int(pipeline.config.max_episode_steps or 0)
    # Limits that choose the same weight for an episode share its residuals.
    episode = torch.arange(data.num_episodes).repeat(len(weights))
    pairs, place = torch.stack([episode.float(), torch.cat(weights)], 1).unique(dim=0, return_inverse=True)
    episode = pairs[:, 0].long()
    rows, pair, step = data.episodes.rows(episode, longest=horizon)
    rewards, costs, _ = step_residuals(pipeline, data, rows, pairs[pair, 1], horizon - step)
    sums = torch.zeros(len(pairs), 2, dtype=torch.float64)
    sums.index_add_(0, pair, torch.stack([rewards, costs], 1).double())
    return [*sums[place].view(len(weights), data.num_episodes, 2).transpose(1, 2).numpy()]


def estimates(outcome: Outcome, residuals: np.ndarray, seed: int) -> tuple[Estimate, Estimate]:
    """Return and cost of an episode, from residuals (2, E): no cost is negative.

    The interval covers, over bootstrapped episodes, what is expected with and without the decisions after
    the start, each more and less the mean residual: recorded episodes tell the size of the critic's error,
    but not its sign in the states that the policy will see.
    """
    drawn = np.random.default_rng(seed).integers(residuals.shape[1], size=(BOOTSTRAP, residuals.shape[1]))
    found = []
    for at_start, played, residual in zip(outcome.at_start, outcome.played, residuals, strict=True):
        off = np.abs(residual[drawn].mean(1))
        either = np.stack([values[drawn].mean(1) for values in (at_start, played)])
        low = float(np.quantile(either.min(0) - off, (1 - COVERAGE) / 2))
        high = float(np.quantile(either.max(0) + off, (1 + COVERAGE) / 2))
        mean = float(played.mean())
        found.append((mean, min(low, mean), max(high, mean)))
    return Estimate(*found[0]), Estimate(*(max(value, 0.0) for value in found[1]))
