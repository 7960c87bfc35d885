"""What return and cost a policy will have under a limit, estimated on recorded episodes.

The policy decides anew at every step, by what is left of its limit. So it is played along the record: at
some steps of an episode it is asked in the recorded state, with what is left by then. What the evaluation
critic expects at the start is corrected, where another safety weight acts from a step on, by the difference
that it makes from there. What it earns and spends on the way, at the rates that are expected, decides what is
left, and is a second estimate. By how much the critic is off on these episodes, its residuals tell (see
`training.residuals`).
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spi_diffusers.data.costs import CostLimit
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.evaluation.assessment import COVERAGE, Estimate
from spi_diffusers.pipelines.values import without_one
from spi_diffusers.training.residuals import step_residuals

if TYPE_CHECKING:
    from spi_diffusers.pipelines import SPIPolicyPipeline

BOOTSTRAP = 1000
#: Decisions of an episode that is played along its record, at most.
DECISIONS = 40
#: Observations per call of the pipeline, which makes a candidate of each for every safety weight.
_OBSERVATIONS = 512


@dataclass(frozen=True)
class RecordPlay:
    """What is expected of E episodes under a limit; (1 + K, E) are of the return, then of K costs.

    Attributes:
        weight: Safety weight whose policy acts at the start, float32 (E,).
        at_start: Return and costs that are expected if it acts to the end, (1 + K, E).
        played: Return and costs with the decisions that follow, (1 + K, E).
        along: What it earns and spends at the expected rates until the record's end, (1 + K, E).
        feasible: Whether some policy fits into the limit at the start, (E,).
        least_bound: Smallest budgets that the safest policy fits into, (E, K).
        least_expected: Expected costs of the weights that cost least on average over the starts, (K,).
    """

    weight: Tensor
    at_start: np.ndarray
    played: np.ndarray
    along: np.ndarray
    feasible: np.ndarray
    least_bound: np.ndarray
    least_expected: np.ndarray


def play_on_record(
    pipeline: "SPIPolicyPipeline", data: TransitionDataset, limit: CostLimit, risk: float, seed: int
) -> RecordPlay:
    """Play a policy along recorded episodes, with `limit` for each. Where one has ended, nothing changes.

    The same seed at every limit: so what fits into one limit fits into a higher one.
    """
    horizon = int(pipeline.config.max_episode_steps)
    generator = torch.Generator().manual_seed(seed)
    episodes, count = data.episodes, data.num_episodes
    times = np.unique(np.linspace(0, horizon, min(horizon, DECISIONS) + 1).round().astype(np.int64)).tolist()
    limits = torch.tensor(limit, dtype=torch.float64).reshape(-1, 1)
    played, along = torch.zeros(2, 1 + len(limits), count, dtype=torch.float64)
    acts = torch.zeros(count, dtype=torch.int64)
    first: _Answer | None = None
    for step, following in itertools.pairwise(times):
        alive = torch.nonzero(episodes.length > step).flatten()
        if not len(alive):
            break
        observation = data.transitions.observation[episodes.start[alive] + step]
        left = (limits - along[1:, alive]).T
        answer = _ask(pipeline, observation, left, horizon - step, risk, generator)
        now = answer.expected_of(answer.chosen)
        # At the start nothing acted before.
        played[:, alive] += now if first is None else now - answer.expected_of(acts[alive])
        first = first or answer
        acts[alive] = answer.chosen
        along[:, alive] += now * (following - step) / (horizon - step)
    assert first is not None, "every episode has a first step"
    at_start = first.expected_of(first.chosen)
    return RecordPlay(
        weight=first.weights[first.chosen],
        at_start=at_start.numpy(),
        played=played.numpy(),
        along=along.numpy(),
        feasible=first.feasible.numpy(),
        least_bound=first.bound.numpy(),
        least_expected=first.expected[1:].mean(1).amin(1).numpy(),
    )


@dataclass(frozen=True)
class _Answer:
    """What a pipeline says in E states, of N safety weights `weights` (N,).

    `chosen` (E,) acts; `expected` (1 + K, E, N) return and costs; whether any is `feasible` (E,), and the
    `bound` of the safest one's costs (E, K).
    """

    weights: Tensor
    chosen: Tensor
    expected: Tensor
    feasible: Tensor
    bound: Tensor

    def expected_of(self, weight: Tensor) -> Tensor:
        """Return and costs of one weight for each state, by its index (E,): (1 + K, E)."""
        return self.expected[:, torch.arange(len(weight)), weight]


def _ask(
    pipeline: "SPIPolicyPipeline",
    observation: Tensor,
    budget: Tensor,
    steps_left: int,
    risk: float,
    generator: torch.Generator,
) -> _Answer:
    """Ask in states (E, O) with budgets (E, K), a part of them at a time."""
    parts = []
    for states, left in zip(observation.split(_OBSERVATIONS), budget.split(_OBSERVATIONS), strict=True):
        how: Any = {"cost_budget": without_one(left.float()), "steps_left": steps_left, "risk": risk}
        found: Any = pipeline(states, generator=generator, **how)
        shape = (*found.expected_returns.shape, left.shape[1])
        costs, bounds = found.expected_costs.view(shape), found.cost_bounds.view(shape)
        expected = torch.cat([found.expected_returns.unsqueeze(-1), costs], dim=-1).double()
        # What fits needs the safest policy to fit.
        parts.append((found.chosen, expected, found.feasible.any(1).double(), bounds[:, -1].double()))
    chosen, expected, feasible, bound = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
    weights = found.safety_weights[0].cpu()
    return _Answer(weights, chosen, expected.permute(2, 0, 1), feasible, bound)


def residual_sums(
    pipeline: "SPIPolicyPipeline", data: TransitionDataset, weights: list[Tensor]
) -> list[np.ndarray]:
    """Sums of the residuals of reward and costs along every episode, (1 + K, E), for each of some weights.

    Weights are (E,), one of every episode.
    """
    horizon = int(pipeline.config.max_episode_steps)
    # Limits that choose the same weight for an episode share its residuals.
    episode = torch.arange(data.num_episodes).repeat(len(weights))
    pairs, place = torch.stack([episode.float(), torch.cat(weights)], 1).unique(dim=0, return_inverse=True)
    episode = pairs[:, 0].long()
    rows, pair, step = data.episodes.rows(episode, longest=horizon)
    rewards, costs, _ = step_residuals(pipeline, data, rows, pairs[pair, 1], horizon - step)
    found = torch.cat([rewards.unsqueeze(1), costs], dim=1).double()
    sums = torch.zeros(len(pairs), found.shape[1], dtype=torch.float64).index_add_(0, pair, found)
    return [*sums[place].view(len(weights), data.num_episodes, -1).transpose(1, 2).numpy()]


def estimates(play: RecordPlay, residuals: np.ndarray, seed: int) -> tuple[Estimate, list[Estimate]]:
    """Return and costs of an episode, from residuals (1 + K, E): no cost is negative.

    The interval covers, over bootstrapped episodes, what is expected at the start, with the decisions that
    follow, and along the record, each more and less the mean residual: recorded episodes tell the size of the
    critic's error, but not its sign in the states that the policy will see. The mean is with the decisions
    that follow; of the cost it is that along the record where that is higher, to be on the safe side.
    """
    drawn = np.random.default_rng(seed).integers(residuals.shape[1], size=(BOOTSTRAP, residuals.shape[1]))
    found = []
    for which, residual in enumerate(residuals):
        off = np.abs(residual[drawn].mean(1))
        ways = [values[which][drawn].mean(1) for values in (play.at_start, play.played, play.along)]
        low = float(np.quantile(np.min(ways, axis=0) - off, (1 - COVERAGE) / 2))
        high = float(np.quantile(np.max(ways, axis=0) + off, (1 + COVERAGE) / 2))
        means = [float(values[which].mean()) for values in (play.played, play.along)]
        mean = means[0] if which == 0 else max(means)
        found.append((mean, min(low, mean), max(high, mean)))
    return Estimate(*found[0]), [Estimate(*(max(value, 0.0) for value in cost)) for cost in found[1:]]
