"""Exporting a policy: the graph, its check against the pipeline, and the contract beside it."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spi_diffusers import __version__
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.streaming import sample_episodes
from spi_diffusers.deployment.graph import OPSET, Decision, make_decision, write_graph
from spi_diffusers.deployment.parity import COUNT, check_parity, random_observations
from spi_diffusers.evaluation import FAST, knows_limit
from spi_diffusers.evaluation.assess import find_data
from spi_diffusers.evaluation.certificate import own_certificate, weights_sha256
from spi_diffusers.files import (
    INDEX_FILE,
    PolicyError,
    check_new_folder,
    find_policy_folder,
    folder_aside,
    local_path,
    read_json,
    sha256_of,
    to_json,
)
from spi_diffusers.pipelines.extraction import SAFETY_WEIGHT_GRID
from spi_diffusers.pipelines.loading import load_pipeline
from spi_diffusers.pipelines.values import to_numpy
from spi_diffusers.runtime import CONTRACT_FILE, CONTRACT_VERSION, GRAPH_FILE, ExportedPolicy

#: The folder that is written, in that of the policy or of its run.
EXPORT_FOLDER = "onnx"
#: Recorded observations are drawn from so many transitions at most.
_MAX_TRANSITIONS = 20_000
_MEANINGS = {
    "safety_weight": "of the policy that acts, 0 to 1; 1 is the safest",
    "expected_return": "over the steps left, in units of reward",
    "expected_cost": "over the steps left, in units of cost",
    "cost_bound": "the same with the margin for the risk; fits if it is at most cost_budget",
    "step_cost": "what the action is expected to cost in this very step, in units of cost",
    "feasible": "whether the policy of each safety weight fits; where none does, the safest acts",
    "reward_value": "Q^r of the action, discounted, in units of reward",
    "safety_value": "Q^c' of the action, discounted",
}


def export(
    policy: str | os.PathLike[str],
    output_dir: str | os.PathLike[str] | None = None,
    *,
    extraction: str | None = None,
    dataset: Any = None,
) -> Path:
    """Write a policy's whole decision as an ONNX graph, with a contract, once both are seen to act alike.

    Examples:
        >>> folder = export("outputs/ballcircle-seed0")
        >>> controller = ExportedPolicy(folder).controller(cost_limit=20)

    Args:
        policy: Folder of a policy, or of its run.
        output_dir: Where to write: a new folder, or that of an older export. By default `onnx` in the
            policy's folder.
        extraction: "safe", "fast" (the same by the policy's student) or "reward" for SPI's policies; by
            default "safe", if the policy can.
        dataset: Where recorded observations are taken from, as `load_transitions` takes it; by default what
            the policy was trained on. Without it only random observations are compared, as the contract says.

    Returns:
        The folder with `policy.onnx` and `policy.json`.

    Raises:
        ExportError: Graph and pipeline do not act alike. Nothing is written, as with all others.
        ValueError: The graph cannot represent the policy, or the data has other observations.
        FileNotFoundError: There is no such policy.
        FileExistsError: There are other files where it would be written.
        ImportError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(f'exporting needs onnx ({error}): pip install "spi-diffusers[onnx]"') from error
    folder = find_policy_folder(policy)
    target = local_path(policy) / EXPORT_FOLDER if output_dir is None else local_path(output_dir)
    is_replaced = _is_export(target)
    if not is_replaced:
        check_new_folder(target)
    pipeline: Any = load_pipeline(folder)
    decision = make_decision(pipeline, extraction)
    observations = {"random": random_observations(pipeline), **_recorded(pipeline, dataset)}
    with folder_aside(target, replace=is_replaced) as aside:
        write_graph(decision, aside / GRAPH_FILE)
        contract = _contract(decision, folder, sha256_of(aside / GRAPH_FILE))
        (aside / CONTRACT_FILE).write_bytes(to_json(contract))
        contract["checked"] = check_parity(decision, ExportedPolicy(aside), observations)
        (aside / CONTRACT_FILE).write_bytes(to_json(contract))
    return target


def _is_export(folder: Path) -> bool:
    """Whether a folder holds an export and nothing else."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} == {GRAPH_FILE, CONTRACT_FILE}


def _recorded(pipeline: Any, dataset: Any) -> dict[str, np.ndarray]:
    """1000 observations of the data, or none if the data of the training is not there."""
    try:
        data = find_data(pipeline, dataset)
    except (PolicyError, DatasetError, OSError):
        if dataset is not None:
            raise
        return {}
    rows = to_numpy(sample_episodes(data, _MAX_TRANSITIONS, seed=0).transitions.observation)
    size = pipeline.normalizer.config.observation_dim
    if rows.shape[1] != size:
        raise ValueError(
            f"{data.source}: has observations of {rows.shape[1]} numbers, the policy's have {size}"
        )
    return {"recorded": rows[np.random.default_rng(0).integers(len(rows), size=COUNT)]}


def _contract(decision: Decision, folder: Path, sha256: str) -> dict[str, Any]:
    """What whoever runs the graph must know."""
    pipeline, index = decision.pipeline, read_json(folder / INDEX_FILE)
    certificate = own_certificate(folder) if decision.extraction == "safe" else None  # not of the student
    return {
        "format_version": CONTRACT_VERSION,
        "made_by": f"spi-diffusers {__version__}",
        "task": pipeline.config.task,
        "extraction": "safe" if decision.extraction == FAST else decision.extraction,
        "fast": decision.extraction == FAST,
        "max_episode_steps": pipeline.config.max_episode_steps,
        "graph": {"file": GRAPH_FILE, "sha256": sha256, "opset": OPSET},
        "policy": {"weights_sha256": weights_sha256(index), "cost_margin": index.get("cost_margin", 1.0)},
        "inputs": {name: _INPUTS[name](decision) for name in decision.inputs},
        "outputs": {name: _output(decision, name) for name in decision.outputs},
        "certificate": None if certificate is None else certificate.to_dict(),
    }


def _observation(decision: Decision) -> dict[str, Any]:
    pipeline = decision.pipeline
    entry: dict[str, Any] = {
        "type": "float32",
        "shape": ["batch", pipeline.normalizer.config.observation_dim],
        "meaning": "as in the data, not normalized; finite",
    }
    if knows_limit(decision.extraction):
        ends = [[x if math.isfinite(x) else None for x in end.tolist()] for end in pipeline.support]
        entry |= {
            "low": ends[0],
            "high": ends[1],
            "outside": "unlike the data, so that predictions mean little",
        }
    return entry


_INPUTS: dict[str, Callable[[Decision], dict[str, Any]]] = {
    "observation": _observation,
    "cost_budget": lambda _: {
        "type": "float32",
        "shape": ["batch"],
        "meaning": "limit - cost so far, in units of cost; negative once overspent",
    },
    "steps_left": lambda _: {
        "type": "float32",
        "shape": ["batch"],
        "meaning": "steps left in the episode, this one included",
        "low": 1,
    },
    "risk": lambda _: {
        "type": "float32",
        "shape": [],
        "meaning": "share of the episodes that may exceed the limit, above 0 and below 1",
        "low": 0,
        "high": 1,
    },
    "noise": lambda decision: {
        "type": "float32",
        "shape": ["batch", *(decision.noise_shape or ())],
        "meaning": "standard normal, drawn anew for every call",
    },
}


def _output(decision: Decision, name: str) -> dict[str, Any]:
    if name == "feasible":
        entry = {"type": "bool", "shape": ["batch", len(SAFETY_WEIGHT_GRID)], "meaning": _MEANINGS[name]}
        return {**entry, "safety_weights": list(SAFETY_WEIGHT_GRID)}
    if name != "action":
        return {"type": "float32", "shape": ["batch"], "meaning": _MEANINGS[name]}
    pipeline = decision.pipeline
    is_baseline = decision.extraction == "policy"
    action = pipeline.actor.config if is_baseline else pipeline.noise_model.config
    ranges = pipeline.config if is_baseline else action
    low, high = (
        np.broadcast_to(np.asarray(end, dtype=np.float64), action.action_dim).tolist()
        for end in (ranges.action_low, ranges.action_high)
    )
    entry = {"type": "float32", "shape": ["batch", action.action_dim]}
    return {**entry, "meaning": "in the environment's range", "low": low, "high": high}
