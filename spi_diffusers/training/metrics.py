"""Metrics of training: their means between two logs, and the file `metrics.jsonl` of these.

The file has one JSON object per line, each with its `step`. No torch is imported here.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spi_diffusers.documents import parse_json
from spi_diffusers.files import local_path, replace_file

logger = logging.getLogger(__name__)

_LINES_BYTES = 1 << 16  # more than the last line of a log has


class MetricsWindow:
    """Means of the metrics since they were last logged.

    Attributes:
        last: The means that were logged last.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._updates = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Take the metrics of one update."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._updates += 1

    def close(self) -> dict[str, float]:
        """The means of all updates since the last call, which are `last` from now on."""
        self.last = {name: total / self._updates for name, total in self._sums.items()}
        self._sums, self._updates = {}, 0
        return self.last

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"window": self._sums, "window_updates": self._updates, "last_metrics": self.last}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._sums, self._updates = dict(state["window"]), state["window_updates"]
        self.last = dict(state["last_metrics"])


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line, each with its `step`."""

    def __init__(self, path: Path):
        self.path = path

    def truncate_after(self, step: int) -> None:
        """Drop lines of later steps, and a half-written last line, so that resuming repeats none."""
        if not self.path.exists():
            return
        kept = []
        for number, line in enumerate(self.path.read_bytes().splitlines(), start=1):
            try:
                if parse_json(line)["step"] <= step:
                    kept.append(line + b"\n")
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: line %d is not complete and is dropped.", self.path, number)
        replace_file(self.path, b"".join(kept))

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            OSError: The disk is full, or the file cannot be written.
        """
        line = (json.dumps(values, allow_nan=False) + "\n").encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                written = file.write(line)
        except OSError as error:
            raise OSError(
                error.errno, f"{self.path}: cannot be written: {error.strerror}. Checkpoints are intact."
            ) from error
        if written != len(line):
            raise OSError(f"{self.path}: only part of a line could be written; is the disk full?")


class TrainingLogError(ValueError):
    """A training log cannot be read; the message names the file and the line."""


def read_training_log(path: str | os.PathLike[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read a `metrics.jsonl`: for each metric its steps (K,) int64, ascending, and values (K,) float64.

    An incomplete last line is left out: the run may be live, or was killed while it wrote. Where a step
    occurs more than once (a resumed run repeats steps), the later line counts. FileNotFoundError: no such
    file; TrainingLogError: another line is not an object with an integer "step" and numbers.
    """
    try:
        lines = local_path(path).read_bytes().splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"no training log at {path}") from None
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
    content: Any = parse_json(line)
    if not isinstance(content, dict) or type(content.get("step")) is not int:
        raise ValueError(
            f'expected an object with an integer "step", got {line[:80].decode(errors="replace")}'
        )
    metrics = {}
    for name, value in content.items():
        if name == "step" or value is None or isinstance(value, str):
            continue  # missing at this step, or a label
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"metric {name!r} is not a number: {value!r:.200}")
        metrics[name] = float(value)
    return content["step"], metrics


def last_step(path: Path) -> int:
    """The step of a training log's last complete line; 0 where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(-min(file.seek(0, os.SEEK_END), _LINES_BYTES), os.SEEK_END)
            complete, _, _ = file.read().rpartition(b"\n")
        return int(parse_json(complete.rpartition(b"\n")[2])["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # not there yet
