"""Entries for the tests, with numbers that can be followed by hand."""

from typing import Any

import numpy as np

from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.entries import EvaluationEntry, TrainInfo

BALL_CIRCLE = get_task("ballcircle")
DATASET = {"id": "embedded", "sha256": "0" * 64}


def make_train_info(**changes: Any) -> TrainInfo:
    values = {"algorithm": "spi", "train_seed": 0, "updates": 1000, "train_seconds": 12.5, "dataset": DATASET}
    return TrainInfo(**{**values, **changes})


def make_entry(
    returns: Any = (600.0, 700.0),
    cost_returns: Any = (4.0, 12.0),
    *,
    cost_limit: float = 10,
    extraction: str = "safe",
    feedback: bool = True,
    eval_seeds: tuple[int, ...] = (0,),
    steps_per_second: float = 1500.0,
    risk: float | None = None,
    **train_info: Any,
) -> EvaluationEntry:
    return EvaluationEntry.from_episodes(
        BALL_CIRCLE,
        np.asarray(returns),
        np.asarray(cost_returns),
        cost_limit=cost_limit,
        extraction=extraction,
        feedback=feedback,
        eval_seeds=eval_seeds,
        steps_per_second=steps_per_second,
        train_info=make_train_info(**train_info),
        versions={"torch": "2.13.0"},
        risk=risk,
    )
