"""Whether an exported graph acts as the pipeline that it was made from."""

from typing import Any

import numpy as np
import torch

from spi_diffusers.deployment.graph import Decision
from spi_diffusers.evaluation import FAST, knows_limit
from spi_diffusers.pipelines.values import to_numpy
from spi_diffusers.runtime import ExportedPolicy

#: Observations of each kind that are compared, in batches of so many: one of each, and of several sizes.
COUNT, BATCHES = 1000, (1, 2, 97, 200, 300, 400)
#: In at least this share the same candidate must act.
SAME_CHOICE = 0.9990
#: By how much actions may differ, as a share of half the environment's range.
ACTION_TOLERANCE = 1e-5
#: The same of predicted returns and costs, as a share of their largest.
VALUE_TOLERANCE = 1e-4
#: Random observations are drawn with so many times the standard deviation of the data.
_SPREAD = 1.5


class ExportError(ValueError):
    """A policy cannot be exported; the message says what differs, or what cannot be represented."""


def random_observations(pipeline: Any, seed: int = 0) -> np.ndarray:
    """Observations somewhat wider spread than the data, float32 (1000, O)."""
    mean, std = (to_numpy(part) for part in (pipeline.normalizer.mean, pipeline.normalizer.std))
    normal = np.random.default_rng(seed).standard_normal((COUNT, len(mean)), dtype=np.float32)
    drawn: np.ndarray = mean + _SPREAD * std * normal
    return drawn


def check_parity(
    decision: Decision, policy: ExportedPolicy, observations: dict[str, np.ndarray], seed: int = 0
) -> dict[str, Any]:
    """Compare an exported policy with its pipeline.

    Args:
        decision: What the graph was made from.
        policy: The graph.
        observations: What to act on, (1000, O), by where they come from.
        seed: Decides budgets, steps left, risks and noise.

    Returns:
        How many observations were compared, in which share of them the same candidate acted, and by how much
        the actions of these differed at most, as a share of half the range.

    Raises:
        ExportError: The graph acts otherwise.
    """
    rng, same, off, compared = np.random.default_rng(seed), [], 0.0, []
    action = policy.contract["outputs"]["action"]
    half_range = np.subtract(action["high"], action["low"]) / 2
    if decision.extraction == FAST:
        observations = {name: _by_student(decision.pipeline, rows) for name, rows in observations.items()}
    for rows in observations.values():
        for part in np.split(rows, np.cumsum(BATCHES)[:-1]):
            if not len(part):
                continue
            feeds, expected = _expected(decision, part, rng)
            answer = policy.run({"observation": part, **feeds})
            off_here = (np.abs(answer["action"] - expected["action"]) / half_range).max(axis=1)
            if knows_limit(decision.extraction):
                alike = answer["safety_weight"] == expected["safety_weight"]
            else:  # nothing names the candidate
                alike = off_here <= ACTION_TOLERANCE
            same += alike.tolist()
            off = max(off, float(off_here[alike].max(initial=0.0)))
            compared.append((answer, expected, alike))
    share = float(np.mean(same))
    if share < SAME_CHOICE or off > ACTION_TOLERANCE:
        raise ExportError(
            f"the graph does not act as the pipeline: the same candidate in {share:.2%} of {len(same)} "
            f"observations (at least {SAME_CHOICE:.1%} are needed), actions up to {off:.1e} of half the "
            f"range apart (at most {ACTION_TOLERANCE:.0e}). Nothing was written"
        )
    for answer, expected, alike in compared:
        _check_values(answer, expected, alike)
    return {
        "observations": {name: len(rows) for name, rows in observations.items()},
        "same_choice": share,
        "largest_action_difference": off,
    }


def _by_student(pipeline: Any, rows: np.ndarray) -> np.ndarray:
    """The observations that the pipeline leaves to its student, as the graph does with all."""
    output = pipeline(rows, cost_budget=0.0, steps_left=1, fast=True)
    kept: np.ndarray = rows[to_numpy(output.by_student)]
    return kept


def _expected(
    decision: Decision, rows: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs of the graph beside the observations (B, O), and what the pipeline itself answers to them."""
    pipeline, batch = decision.pipeline, len(rows)
    if knows_limit(decision.extraction):
        steps = rng.integers(1, pipeline.config.max_episode_steps + 1, batch).astype(np.float32)
        risk = float(rng.choice([0.01, 0.05, 0.2, 0.5]))
        told = {"steps_left": steps, "risk": risk, "fast": decision.extraction == FAST}
        bounds = to_numpy(pipeline(rows, cost_budget=0.0, **told).cost_bounds)
        low, high = bounds.min(axis=1), bounds.max(axis=1)
        # From where nothing fits to where everything does, whatever the costs are.
        budget = (low + rng.uniform(-0.2, 1.2, batch) * (high - low)).astype(np.float32)
        output = pipeline(rows, cost_budget=budget, **told)
        picked = np.arange(batch), to_numpy(output.chosen)
        expected = {
            "action": output.actions,
            "safety_weight": to_numpy(output.safety_weights)[picked],
            "expected_return": to_numpy(output.expected_returns)[picked],
            "expected_cost": to_numpy(output.expected_costs)[picked],
            "cost_bound": to_numpy(output.cost_bounds)[picked],
            "step_cost": to_numpy(pipeline.step_costs(rows, output)),
        }
        feeds = {"steps_left": steps, "risk": np.array(risk, np.float32), "cost_budget": budget}
        return feeds, expected
    seed, shape = int(rng.integers(2**31)), decision.noise_shape
    if decision.extraction == "policy":
        feeds = {} if shape is None else {"noise": to_numpy(_normal(seed, (batch, *shape)))}
        return feeds, {"action": pipeline(rows, generator=seed)}
    output = pipeline(rows, extraction="reward", generator=seed)
    picked = np.arange(batch), to_numpy(output.chosen)
    assert shape is not None  # candidates are denoised from it
    steps_first = _normal(seed, (shape[0], batch * shape[1], shape[2])).view(shape[0], batch, *shape[1:])
    expected = {
        "action": output.actions,
        "reward_value": to_numpy(output.reward_values)[picked],
        "safety_value": to_numpy(output.safety_values)[picked],
    }
    return {"noise": np.ascontiguousarray(to_numpy(steps_first.transpose(0, 1)))}, expected


def _normal(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The noise that a pipeline draws with a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _check_values(answer: dict[str, np.ndarray], expected: dict[str, np.ndarray], alike: np.ndarray) -> None:
    for name in expected.keys() - {"action", "safety_weight"}:
        value, own = answer[name][alike], expected[name][alike]
        if np.abs(value - own).max(initial=0.0) > VALUE_TOLERANCE * np.abs(own).max(initial=0.0):
            raise ExportError(f"the graph's {name} is not the pipeline's. Nothing was written")
