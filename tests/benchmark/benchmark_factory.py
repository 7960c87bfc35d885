"""Tiny benchmarks on the BallCircle data of the package, and entries with numbers that can be followed."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from spi_diffusers.benchmark.suites import BenchmarkSpec, Cell
from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.entries import EvaluationEntry, TrainInfo

TINY = {
    "network": {"hidden_dims": [16, 16], "time_embed_dim": 8},
    "bc": {"hidden_dims": [16, 16]},
    "batch_size": 32,
    "log_every": 5,
    "checkpoint_every": 10,
}


def tiny_config(folder: Path, **settings: Any) -> str:
    """A settings file that makes every training take a moment."""
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(TINY | settings))  # JSON is YAML
    return str(path)


def make_cells(suites: list[str], **chosen: Any) -> list[Cell]:
    """The cells of a specification."""
    return BenchmarkSpec(suites, **chosen).cells()


def entry(
    task: str = "ballcircle",
    algorithm: str = "spi",
    seed: int = 0,
    reward: float = 0.5,
    cost: float = 0.5,
    *,
    extraction: str = "safe",
    feedback: bool = True,
    limit: float | None = None,
    updates: int = 100,
    risk: float | None = None,
) -> EvaluationEntry:
    """An entry with a normalised reward and cost; two episodes that are alike.

    Feedback is that of safe extraction; no other takes any.
    """
    known = get_task(task)
    limit = float(known.cost_limits[0]) if limit is None else limit
    return_ = known.reward_min + reward * (known.reward_max - known.reward_min)
    values: dict[str, Any] = {
        "cost_limit": limit,
        "extraction": extraction,
        "feedback": feedback and extraction == "safe",
        "eval_seeds": (1000 + seed,),
        "steps_per_second": 1000.0,
        "train_info": TrainInfo(algorithm, seed, updates, 60.0, {"id": "data", "sha256": "0" * 64}),
        "versions": {},
        "risk": risk,
    }
    return EvaluationEntry.from_episodes(known, np.full(2, return_), np.full(2, cost * limit), **values)


def steps_done(folder: Path) -> int:
    """The last step that a cell has logged; 0 before the first."""
    log = folder / "metrics.jsonl"
    lines = log.read_bytes().splitlines() if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0
