"""Offline calibration: what cost the extracted policy has, without ever running it.

The extracted policy is evaluated by least-squares temporal differences (LSTD-Q, Lagoudakis and Parr 2003)
on the critics' own last hidden layers. Closed form, so it needs no iterations, no step size and no seed of
its own; and as these weights are fitted after the policy is fixed, they do not share the head that the
policy was extracted to please.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.models import CostCalibration
from spi_diffusers.pipelines.extraction import extract_safe, group_means
from spi_diffusers.pipelines.spi_policy import SPIPolicyOutput, SPIPolicyPipeline
from spi_diffusers.progress import progress_bar

#: Episode costs the critic is held to at the knots, in units of cost.
DEFAULT_KNOTS = (2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
#: Transitions that the LSTD uses, and first observations of episodes over which the value is averaged.
NUM_TRANSITIONS, NUM_STARTS = 10_000, 300
#: A knot's realized rate is at most this factor of its allowed rate: corrections are capped at 4x, the range
#: in which estimates were checked. It is at least the allowed rate itself: a wrong estimate may cost reward,
#: but must not allow more than the user did.
MAX_CORRECTION = 4.0


def data_knots(cost_returns: Tensor) -> tuple[float, ...]:
    """Episode costs to calibrate at for data without a DSRL task, whose costs may be in any unit.

    Args:
        cost_returns: Cost of each episode of the data, shape (E,).

    Returns:
        Quantiles of the positive ones, increasing; empty where no episode costs anything.
    """
    positive = cost_returns[cost_returns > 0].double()
    if len(positive) == 0:
        return ()
    shares = torch.tensor([0.05, 0.1, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    found = torch.quantile(positive, shares).tolist()
    return tuple(sorted({float(f"{knot:.6g}") for knot in found}))


@dataclass(frozen=True)
class CalibrationReport:
    """The measured curve, for logs and plots.

    Attributes:
        allowed_costs: Episode cost the critic was held to at each knot.
        estimated_costs: Episode cost that the extracted policy is estimated to have.
    """

    allowed_costs: list[float]
    estimated_costs: list[float]


def solve_lstd(
    features: Tensor, next_features: Tensor, signal: Tensor, gamma: float, ridge: float = 0.1
) -> Tensor:
    """Weights theta of the value features @ theta of a policy, by LSTD.

    Solves mean[f (f - gamma f')^T] theta + ridge theta = mean[f x], the ridge sparing the last feature
    (the constant).

    Args:
        features: f of states and recorded actions, standardized, last column 1; shape (N, F), float64.
        next_features: f' of next states and the policy's actions, zero where the episode ended.
        signal: What is summed, here the cost, shape (N,).
        gamma: Discount factor.
        ridge: Strength of the regularization.

    Returns:
        Shape (F,).
    """
    count, size = features.shape
    matrix = features.T @ (features - gamma * next_features) / count
    penalty = torch.full((size,), ridge, dtype=features.dtype)
    penalty[-1] = 0.0
    return torch.linalg.solve(matrix + penalty.diag(), features.T @ signal.to(features.dtype) / count)


class _Features:
    """Standardized hidden activations of both critics, their inputs, and a constant.

    The first call's data set the mean and deviation that all calls standardize with.
    """

    def __init__(self, pipeline: SPIPolicyPipeline):
        self._pipeline = pipeline
        self._statistics: tuple[Tensor, Tensor] | None = None

    def __call__(self, observation: Tensor, action: Tensor) -> Tensor:
        """Features (N, F) of raw observations (N, O) and actions in the environment's range (N, A)."""
        pipeline = self._pipeline
        state = pipeline.normalizer(observation)
        config = pipeline.noise_model.config
        # Data without a DSRL task may hold actions that its environment clipped, as the sampler does too.
        action = pipeline.noise_model.from_environment_range(action).clamp(-1.0, 1.0)
        weight = torch.full((len(state),), 0.5) if config.use_safety_weight else None
        hidden = [
            twin
            for critic in (pipeline.safety_critic, pipeline.reward_critic)
            for twin in critic.features(state, action, weight)
        ]
        raw = torch.cat([*hidden, state, action], dim=-1).double()
        if self._statistics is None:
            self._statistics = raw.mean(dim=0), raw.std(dim=0) + 1e-3
        shift, scale = self._statistics
        standard = (raw - shift) / scale
        return torch.cat([standard, torch.ones(len(raw), 1, dtype=raw.dtype)], dim=-1)


@torch.no_grad()
def calibrate(
    pipeline: SPIPolicyPipeline,
    dataset: TransitionDataset,
    *,
    knots: Sequence[float] = DEFAULT_KNOTS,
    seed: int = 0,
    progress: bool = True,
) -> tuple[CostCalibration, CalibrationReport]:
    """Measure offline what episode cost results from holding the critic to an episode cost.

    Measured is the plain rule, a limit spread evenly over the episode, and it serves for that alone: where
    the running cost is fed back, the feedback corrects the critic.

    Args:
        pipeline: The trained policy; its own calibration, if any, is ignored.
        dataset: Transitions, best with episodes the networks were not trained on.
        knots: Episode costs to hold the critic to, increasing and positive.
        seed: Seed of the subsample and of the candidates.
        progress: Whether to show a progress bar.

    Returns:
        The calibration, and the measured curve.

    Raises:
        ValueError: If the pipeline does not know its episode length, the knots are not positive and
            increasing, or the estimates are not finite.
    """
    horizon = pipeline.config.max_episode_steps
    if horizon is None:
        raise ValueError("Calibration needs a pipeline that knows max_episode_steps.")
    allowed = torch.tensor(list(knots), dtype=torch.float32)
    if len(allowed) == 0 or not bool((allowed > 0).all() and (allowed.diff() > 0).all()):
        raise ValueError(f"knots must be positive and increasing, got {list(knots)}.")
    generator = torch.Generator().manual_seed(seed)
    transitions = dataset.transitions
    rows = torch.randperm(len(transitions), generator=generator)[:NUM_TRANSITIONS]
    batch = transitions.gather(rows)
    starts = (dataset.frame_index == 0).nonzero().squeeze(1)[:NUM_STARTS]
    first = transitions.gather(starts).observation

    bar = progress_bar(total=len(rows) + len(first), desc="calibrating", unit="obs", disable=not progress)
    next_candidates = _candidates(pipeline, batch.next_observation, generator, bar)
    first_candidates = _candidates(pipeline, first, generator, bar)
    bar.close()

    features = _Features(pipeline)
    now = features(batch.observation, batch.action)
    alive = (~batch.terminated).double().unsqueeze(-1)
    # With this discount the value of a steady cost rate is that of an episode: rate x horizon.
    gamma = 1.0 - 1.0 / horizon
    estimates = []
    for knot in knots:
        next_action = next_candidates.extract(knot / horizon)
        theta = solve_lstd(now, features(batch.next_observation, next_action) * alive, batch.cost, gamma)
        estimates.append(float((features(first, first_candidates.extract(knot / horizon)) @ theta).mean()))
    if not all(torch.isfinite(torch.tensor(estimates))):
        raise ValueError(f"The calibration's cost estimates are not finite: {estimates}.")

    realized = torch.tensor(estimates).clamp(allowed, allowed * MAX_CORRECTION)
    realized = realized.cummax(dim=0).values
    # Strictly increasing, so that the curve can be inverted; by shares where costs are so large that float32
    # would not hold a thousandth more.
    steps = torch.arange(1, len(knots) + 1)
    realized = realized + torch.maximum(1e-3 * steps, 1e-5 * steps * (realized > 1000.0) * realized)
    calibration = CostCalibration(num_knots=len(knots)).set_curve(allowed / horizon, realized / horizon)
    return calibration, CalibrationReport(list(knots), estimates)


@dataclass(frozen=True)
class _Candidates:
    """Candidates (N, C, A) of N observations, and what the critics say of them, each (N, C)."""

    actions: Tensor
    reward_values: Tensor
    safety_values: Tensor
    cost_rates: Tensor
    num_groups: int | None

    def extract(self, allowed_rate: float) -> Tensor:
        """The actions that the plain rule takes under an allowed cost rate, (N, A)."""
        feasible = group_means(self.cost_rates, self.num_groups) <= allowed_rate
        chosen = extract_safe(self.reward_values, self.safety_values, feasible, self.num_groups)
        return self.actions[torch.arange(len(self.actions)), chosen]


def _candidates(
    pipeline: SPIPolicyPipeline, observation: Tensor, generator: torch.Generator, bar: Any
) -> _Candidates:
    parts = []
    for chunk in observation.split(256):
        output = pipeline(chunk, extraction="safe", cost_limit=0.0, generator=generator)
        assert isinstance(output, SPIPolicyOutput)
        parts.append((output.candidates, output.reward_values, output.safety_values, output.cost_rates))
        bar.update(len(chunk))
    actions, rewards, safety, rates = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Candidates(actions, rewards, safety, rates, pipeline.num_groups)
