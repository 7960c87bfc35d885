"""The files of a cell: what it is (`cell.json`), how it ended (`outcome.json`); complete or not there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spi_diffusers.benchmark.suites import Cell, Evaluation
from spi_diffusers.config.validation import flatten
from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.diverged import DivergedRun
from spi_diffusers.evaluation.metrics import EvaluationEntry
from spi_diffusers.files import CHECKPOINTS_FOLDER, POLICY_FOLDER, written_aside

CELL_FILE = "cell.json"
OUTCOME_FILE = "outcome.json"
LOG_FILE = "log.txt"
_FORMAT_VERSION = 1
#: The folder and not the file: what was trained in it would pass for what is asked for next.
_AGAIN = "Remove its folder to run the cell again."
#: Settings that do not change what is learned.
_FREE_TO_CHANGE = {
    *("output_dir", "resume", "device", "threads", "overlap", "log_every", "checkpoint_every"),
    *("keep_checkpoints", "trackers"),
}


class CellError(ValueError):
    """A cell's files cannot be used; the message names the file."""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        status: "done", "diverged", or "failed": with an error, or its process died.
        message: What went wrong; empty if nothing.
        entries: Its results.
    """

    status: Literal["done", "diverged", "failed"]
    message: str = ""
    entries: tuple[EvaluationEntry, ...] = ()

    def covers(self, cell: Cell) -> bool:
        """Whether nothing is left to do for a cell: it diverged, or all of its evaluations are here."""
        if self.status != "done":
            return self.status == "diverged"
        # The curve's points come before the end, so all are here once that is; but maybe with fewer episodes.
        points = [e for e in self.entries if cell.curve_points > 1 and is_curve_point(cell, e)]
        enough = max(wanted.episodes for wanted in cell.evaluations)
        return not missing_evaluations(cell, self.entries) and all(e.episodes >= enough for e in points)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        entries = [entry.to_dict() for entry in self.entries]
        return {
            "format_version": _FORMAT_VERSION,
            "status": self.status,
            "message": self.message,
            "entries": entries,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Outcome":
        """What `to_dict` came from; KeyError, TypeError or ValueError where it came from elsewhere."""
        if values["format_version"] != _FORMAT_VERSION or values["status"] not in (
            "done",
            "diverged",
            "failed",
        ):
            raise ValueError(f"format_version must be {_FORMAT_VERSION} and status a known one")
        entries = tuple(EvaluationEntry.from_dict(entry) for entry in values["entries"])
        return cls(values["status"], values["message"], entries)


def missing_evaluations(cell: Cell, entries: Sequence[EvaluationEntry]) -> list[Evaluation]:
    """The evaluations of a cell that the entries do not hold, over at least as many episodes."""
    held = {
        (entry.extraction, entry.feedback, entry.cost_limit): entry.episodes
        for entry in entries
        if entry.algorithm == cell.system
    }
    return [
        wanted
        for wanted in cell.evaluations
        if held.get((wanted.extraction, wanted.feedback, wanted.cost_limit), 0) < wanted.episodes
    ]


def curve_name(system: str, updates: int) -> str:
    """What results call a system before the end of its training: one entry per point of the curve."""
    return f"{system}@{updates}"


def is_curve_point(cell: Cell, entry: EvaluationEntry) -> bool:
    """Whether an entry is a point of the cell's learning curve, before the end of training."""
    return entry.algorithm == curve_name(cell.system, entry.updates)


def is_of_cell(cell: Cell, entry: EvaluationEntry) -> bool:
    """Whether an entry is of the cell's training run, its end or a point of its learning curve."""
    return (
        (entry.task, entry.train_seed) == (get_task(cell.task).name, cell.seed)
        and (entry.algorithm == cell.system or is_curve_point(cell, entry))
        and cell.train_limit in (None, entry.cost_limit)
    )


def diverged_run(cell: Cell, message: str) -> DivergedRun:
    """A cell that diverged, for the results file."""
    return DivergedRun(get_task(cell.task).name, cell.system, cell.train_limit, cell.seed, message)


def write_cell(folder: Path, cell: Cell, config: Mapping[str, Any]) -> None:
    """Say what a folder is for.

    Args:
        folder: The cell's folder.
        cell: The cell.
        config: Its complete training configuration.
    """
    _write(folder / CELL_FILE, {"cell": cell.to_dict(), "config": dict(config)})


def read_cell(folder: Path) -> tuple[Cell, dict[str, Any]]:
    """What `write_cell` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        CellError: It is half-written, or something else.
    """
    content = _read(folder / CELL_FILE)
    try:
        return Cell.from_dict(content["cell"]), dict(content["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CellError(f"{folder / CELL_FILE}: is not a cell of a benchmark: {error!r}. {_AGAIN}") from error


def check_same_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to mix results of different settings.

    Args:
        folder: The cell's folder, for the message.
        before: The training configuration that it was made with.
        now: The one that is asked for.

    Raises:
        CellError: Naming each setting that differs.
    """
    first, second = flatten(before), flatten(now)
    changed = [
        f"{key} was {first.get(key)!r}, is {second.get(key)!r}"
        for key in sorted(first.keys() | second.keys())
        if key not in _FREE_TO_CHANGE and first.get(key) != second.get(key)
    ]
    if changed:
        raise CellError(
            f"{folder}: was trained with other settings: {'; '.join(changed)}. Choose another --output, or "
            "remove that folder."
        )


def check_untouched(folder: Path) -> None:
    """Refuse to take over what was trained in a folder that does not say by which settings.

    Raises:
        CellError: It holds a training.
    """
    found = next((n for n in (POLICY_FOLDER, CHECKPOINTS_FOLDER) if (folder / n).exists()), None)
    if found is not None:
        raise CellError(
            f"{folder}: holds a training ({found}), but no {CELL_FILE} that says of what. {_AGAIN}"
        )


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Say how a cell ended."""
    _write(folder / OUTCOME_FILE, outcome.to_dict())


def read_outcome(folder: Path) -> Outcome | None:
    """How a cell ended; None where it has not.

    Raises:
        CellError: The file is half-written, or something else.
    """
    path = folder / OUTCOME_FILE
    if not path.exists():
        return None
    try:
        return Outcome.from_dict(_read(path))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CellError):
            raise
        raise CellError(f"{path}: is not a benchmark's outcome: {error}. {_AGAIN}") from error


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CellError(f"{path}: is not complete JSON ({error}). {_AGAIN}") from error
