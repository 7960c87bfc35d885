"""An exported policy acts, by NumPy and ONNX Runtime only: no torch is imported here.

`spi export` writes the graph and, beside it, a contract that says what goes in and what comes out.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spi_diffusers.files import local_path, read_json, sha256_of
from spi_diffusers.pipelines.allowance import DEFAULT_RISK, cost_allowance
from spi_diffusers.pipelines.controller import SafeController
from spi_diffusers.pipelines.values import as_floats, check_batch, check_per_observation, shown

GRAPH_FILE, CONTRACT_FILE = "policy.onnx", "policy.json"
CONTRACT_VERSION = 1


@dataclass(frozen=True)
class ExportedOutput:
    """What an exported policy answers for B observations. What its kind of policy has not is None.

    Attributes:
        actions: In the environment's range, (B, A), or (A,) for one observation.
        safety_weight: Of the policy that acts, (B,).
        expected_return: Over the steps left, in units of reward, (B,).
        expected_cost: Over the steps left, in units of cost, (B,).
        cost_bound: The same with the margin for the risk, (B,).
        step_cost: What the action is expected to cost in this very step, (B,).
        feasible: Whether the policy of each safety weight fits into the budget, (B, N), the least safe first.
            Where none does, the safest acts.
        reward_value: With extraction "reward": Q^r of the action, (B,).
        safety_value: With extraction "reward": Q^c' of the action, (B,).
    """

    actions: np.ndarray
    safety_weight: np.ndarray | None = None
    expected_return: np.ndarray | None = None
    expected_cost: np.ndarray | None = None
    cost_bound: np.ndarray | None = None
    step_cost: np.ndarray | None = None
    feasible: np.ndarray | None = None
    reward_value: np.ndarray | None = None
    safety_value: np.ndarray | None = None


class ExportedPolicy:
    """A policy from a folder that `spi export` has written.

    Examples:
        >>> policy = ExportedPolicy("outputs/ballcircle-seed0/onnx")
        >>> controller = policy.controller(cost_limit=20)

    Args:
        folder: Holds `policy.onnx` and `policy.json`.
        threads: Of ONNX Runtime, on the CPU.

    Attributes:
        contract: What `policy.json` says: inputs, outputs, shapes, units, ranges, certificate.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: The contract is damaged, or of another graph.
        ImportError: ONNX Runtime is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError(
                f"exported policies need onnxruntime ({error}): pip install onnxruntime"
            ) from error
        folder = local_path(folder)
        self.contract = _read_contract(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        path = folder / GRAPH_FILE
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = self.contract["inputs"]
        self._names = [output.name for output in self._session.get_outputs()]
        there = {value.name for value in self._session.get_inputs()}
        if there != self._inputs.keys() or set(self._names) != self.contract["outputs"].keys():
            raise ValueError(
                f"{folder / CONTRACT_FILE}: does not name the inputs and outputs of {path.name}."
            )
        observation, action = self._inputs["observation"], self.contract["outputs"]["action"]
        self.observation_dim: int = observation["shape"][1]
        self.middle_action = _middle(action)
        low, high = observation.get("low"), observation.get("high")
        #: Between which observations, each (O,), those of the data lie, and a little more.
        self.support = (
            _bounds(low, -np.inf, self.observation_dim),
            _bounds(high, np.inf, self.observation_dim),
        )

    @property
    def max_episode_steps(self) -> int | None:
        """Steps of an episode, over which a limit counts."""
        steps: int | None = self.contract["max_episode_steps"]
        return steps

    def check_keeps_limits(self) -> None:
        """Raise ValueError if the policy cannot keep a limit."""
        if "cost_budget" not in self._inputs:
            raise ValueError(
                f"This graph holds extraction {self.contract['extraction']!r}, which takes no limit. Export "
                "with --extraction safe; the policy needs an evaluation critic for that."
            )

    def controller(
        self, cost_limit: float | np.ndarray, *, risk: float = DEFAULT_RISK, num_envs: int = 1, **options: Any
    ) -> SafeController:
        """The same as of the pipeline that was exported; arguments and errors as of [`SafeController`]."""
        if options.keys() & {"num_inference_steps", "generator", "fast"}:
            raise ValueError(
                "The denoising steps, or the student, are part of the graph, and safe extraction draws no "
                "noise: leave out num_inference_steps, generator and fast."
            )
        return SafeController(self, cost_limit, risk=risk, num_envs=num_envs, **options)

    def __call__(
        self,
        observation: Any,
        *,
        extraction: str | None = None,
        cost_limit: Any = None,
        cost_budget: Any = None,
        steps_left: Any = None,
        risk: float = DEFAULT_RISK,
        generator: np.random.Generator | int | None = None,
    ) -> ExportedOutput:
        """Choose actions.

        Args:
            observation: One observation (O,) or a batch (B, O), not normalized.
            extraction: By default, and only, the one that was exported.
            cost_limit: As in `SPIPolicyPipeline.__call__`, like the three that follow.
            cost_budget: As there.
            steps_left: As there.
            risk: As there.
            generator: Source of the noise, or a seed, where the graph has noise as an input.

        Raises:
            ValueError: An observation of another size, or with NaN; a limit or budget that is missing, out of
                its range, or that the graph does not take.
        """
        numbers = as_floats("observation", observation, kinds="biuf")
        check_batch(numbers, self.observation_dim)
        rows = np.atleast_2d(numbers)
        own = self.contract["extraction"]
        if extraction not in (None, own):
            raise ValueError(f"This graph holds extraction {own!r} only, got {shown(extraction)}.")
        feeds = {"observation": rows}

        def per_observation(name: str, value: Any) -> np.ndarray:
            given = as_floats(name, value)
            check_per_observation(name, given, len(rows))
            return np.ascontiguousarray(np.broadcast_to(given, len(rows)))

        if "cost_budget" in self._inputs:
            told = (cost_limit, cost_budget, steps_left, risk)
            _, allowance = cost_allowance(self.max_episode_steps, own, *told, per_observation)
            assert allowance is not None  # of safe extraction
            feeds |= {"cost_budget": allowance.budget, "steps_left": allowance.steps}
            feeds["risk"] = np.array(allowance.risk, dtype=np.float32)
        elif any(value is not None for value in (cost_limit, cost_budget, steps_left)):
            self.check_keeps_limits()
        if "noise" in self._inputs:
            shape = (len(rows), *self._inputs["noise"]["shape"][1:])
            feeds["noise"] = np.random.default_rng(generator).standard_normal(shape, dtype=np.float32)
        answer = self.run(feeds)
        actions = answer.pop("action")
        return ExportedOutput(actions=actions[0] if numbers.ndim == 1 else actions, **answer)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the graph gives for all of its inputs, by name; ValueError: one is missing or too many, or
        actions are not finite.
        """
        if feeds.keys() != self._inputs.keys():
            raise ValueError(f"The graph takes {', '.join(self._inputs)}; got {', '.join(feeds)}.")
        answer = dict(zip(self._names, self._session.run(self._names, dict(feeds)), strict=True))
        if not np.isfinite(answer["action"].sum()):
            raise ValueError("The graph gave actions that are not finite.")
        return answer

    def step_costs(self, observations: np.ndarray, output: ExportedOutput) -> np.ndarray:
        """What chosen actions are expected to cost in the very step, (B,), as the graph has said."""
        assert output.step_cost is not None  # of safe extraction
        return output.step_cost

    def __repr__(self) -> str:
        task, kind = self.contract["task"] or "an own task", self.contract["extraction"]
        kind += ", by the student" if self.contract.get("fast") else ""
        return f"ExportedPolicy({task}, extraction {kind!r}, takes {', '.join(self._inputs)})"


def _read_contract(folder: Path) -> dict[str, Any]:
    """The contract in a folder; ValueError: it is damaged, or not of the graph beside it."""
    path, graph = folder / CONTRACT_FILE, folder / GRAPH_FILE
    for file in (path, graph):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: is missing; `spi export` writes {GRAPH_FILE} and {CONTRACT_FILE}."
            )
    contract = read_json(path)
    version = contract.get("format_version")
    if version != CONTRACT_VERSION:
        raise ValueError(
            f"{path}: format_version must be {CONTRACT_VERSION}, got {shown(version)}; export the policy anew"
        )
    try:
        sha256 = contract["graph"]["sha256"]
        _ = contract["inputs"]["observation"]["shape"][1], contract["outputs"]["action"]["low"]
        is_whole = all(name in contract for name in ("task", "extraction", "max_episode_steps"))
    except (KeyError, IndexError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{path}: is no contract of an exported policy; export the policy anew.")
    if sha256_of(graph) != sha256:
        raise ValueError(
            f"{graph}: is not the graph that {CONTRACT_FILE} is about, by its SHA-256: one of the two was "
            "changed or is of another export. Export the policy anew."
        )
    return contract


def _bounds(values: Any, otherwise: float, size: int) -> np.ndarray:
    """One end of a range from JSON, where null stands for no bound, (size,)."""
    ends = [otherwise if value is None else value for value in values or [None] * size]
    return np.array(ends, dtype=np.float64)


def _middle(action: Mapping[str, Any]) -> np.ndarray:
    low, high = (np.array(action[end], dtype=np.float32) for end in ("low", "high"))
    middle: np.ndarray = low + np.float32(0.5) * (high - low)
    return middle
