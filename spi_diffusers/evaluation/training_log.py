"""Read the metrics that training wrote, one JSON object per line."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


class TrainingLogError(ValueError):
    """A training log cannot be read; the message names the file and the line."""


def read_training_log(path: str | os.PathLike[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read a `metrics.jsonl`.

    Lines may differ in their keys. A last line that is not complete is left out, because the run may be
    live or was killed while it wrote. Where a step occurs more than once (a run that was resumed from a
    checkpoint repeats steps), the later line counts.

    Args:
        path: the file; each line holds "step" and metrics by name.

    Returns:
        For each metric its steps (K,) int64, ascending, and values (K,) float64.

    Raises:
        FileNotFoundError: there is no such file.
        TrainingLogError: a line other than the last is not a JSON object with an integer "step", or a
            metric is not a number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no training log at {path}")
    lines = path.read_bytes().splitlines()
    series: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            step, metrics = _parse(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise TrainingLogError(f"{path}, line {number}: {error}") from error
        for name, value in metrics.items():
            series.setdefault(name, {})[step] = value
    return {
        name: (np.array(sorted(values), dtype=np.int64), np.array([values[step] for step in sorted(values)]))
        for name, values in series.items()
    }


def _parse(line: bytes) -> tuple[int, dict[str, float]]:
    content: Any = json.loads(line)
    if not isinstance(content, dict) or type(content.get("step")) is not int:
        raise ValueError(
            f'expected an object with an integer "step", got {line[:80].decode(errors="replace")}'
        )
    metrics = {}
    for name, value in content.items():
        if name == "step" or value is None or isinstance(value, str):
            continue  # missing at this step, or a label
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"metric {name!r} is not a number: {value!r}")
        metrics[name] = float(value)
    return content["step"], metrics
