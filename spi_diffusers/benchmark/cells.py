"""Cells: their settings, their files, and how one is trained and evaluated in a process of its own.

`cell.json` says what a folder is for, `outcome.json` how it ended; each is complete or absent.
`python -m spi_diffusers.benchmark.cells FOLDER` does what FOLDER/cell.json says, and may be killed at any
moment: the next process goes on from the last checkpoint.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from spi_diffusers.benchmark.suites import EVALUATION_SEED_OFFSET, Cell, Evaluation
from spi_diffusers.config.validation import flatten
from spi_diffusers.data.simulators import simulator_status
from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.entries import EvaluationEntry
from spi_diffusers.files import (
    CHECKPOINTS_FOLDER,
    EVALUATION_FOLDER,
    POLICY_FOLDER,
    RESULTS_FILE,
    read_json,
    to_json,
    written_aside,
)
from spi_diffusers.locks import held
from spi_diffusers.training.run_folder import WITHOUT_EFFECT

if TYPE_CHECKING:
    from spi_diffusers.config.train import TrainConfig
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline

    Pipeline = SPIPolicyPipeline | BaselinePolicyPipeline

CELL_FILE = "cell.json"
OUTCOME_FILE = "outcome.json"
LOG_FILE = "log.txt"
Status = Literal["done", "diverged", "failed"]
#: The folder and not the file: what was trained in it would pass for what is asked for next.
_AGAIN = "Remove its folder to run the cell again."
#: Each interruption makes a checkpoint of its own, which must not push out one that the curve needs.
_INTERRUPTIONS = 100
#: How long a process waits for one before it on the same cell, which is on its way out.
_TURN_SECONDS = 120.0


class BenchmarkError(ValueError):
    """A benchmark cannot be run; the message says why, before anything is trained."""


class CellError(ValueError):
    """A cell's files cannot be used; the message names the file."""


class StoppedError(RuntimeError):
    """A signal stopped training; a checkpoint is saved."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}; a checkpoint is saved")
        self.signal_number = signal_number


@dataclass(frozen=True)
class Outcome:
    """How a cell ended; `message` says what went wrong, and `failed` is an error or a process that died."""

    status: Status
    message: str = ""
    entries: tuple[EvaluationEntry, ...] = ()

    def covers(self, cell: Cell) -> bool:
        """Whether nothing is left to do for a cell: it diverged, or all of its evaluations are here."""
        if self.status != "done":
            return self.status == "diverged"
        # The curve's points come before the end, so all are here once that is; but maybe with fewer episodes.
        points = [e for e in self.entries if cell.curve_points > 1 and e.algorithm == cell.point(e.updates)]
        enough = max(wanted.episodes for wanted in cell.evaluations)
        return not missing_evaluations(cell, self.entries) and all(e.episodes >= enough for e in points)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {**vars(self), "entries": [entry.to_dict() for entry in self.entries]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Outcome":
        """What `to_dict` came from; KeyError, TypeError or ValueError where it came from elsewhere."""
        if values["status"] not in get_args(Status):
            raise ValueError(f"unknown status {values['status']!r}")
        return cls(**{**values, "entries": tuple(map(EvaluationEntry.from_dict, values["entries"]))})


def missing_evaluations(cell: Cell, entries: Sequence[EvaluationEntry]) -> list[Evaluation]:
    """The evaluations of a cell that the entries do not hold, over at least as many episodes."""
    held = {
        (e.extraction, e.feedback, e.cost_limit, None if e.is_at_usual_risk else e.risk): e.episodes
        for e in entries
        if e.algorithm == cell.algorithm
    }
    return [
        wanted
        for wanted in cell.evaluations
        if held.get((wanted.extraction, wanted.feedback, wanted.cost_limit, wanted.risk), 0) < wanted.episodes
    ]


# ---- settings, data and simulators, before anything is trained


def resolve_configs(cells: Sequence[Cell], config_file: str | None = None) -> dict[Cell, dict[str, Any]]:
    """The complete training configuration of every cell; each trains on one thread.

    `config_file` is as of `spi train --config`. ConfigError for a setting that cannot be used, BenchmarkError
    for a task without data.
    """
    from spi_diffusers.config.layers import make_train_config
    from spi_diffusers.data.loading import embedded_tasks

    embedded = {get_task(name).short_name for name in embedded_tasks()}
    configs = {}
    for cell in cells:
        settings = cell.settings | {"threads": 1, "overlap": False}
        config = make_train_config(settings, config_file)
        if cell.curve_points > 1:
            every = max(1, config.updates // cell.curve_points)
            keep = config.updates // every + _INTERRUPTIONS
            settings |= {"checkpoint_every": every, "keep_checkpoints": keep}
            config = make_train_config(settings, config_file)
        if config.dataset in (None, "embedded") and cell.task not in embedded:
            raise BenchmarkError(
                f"{cell.task}: its data is not in the package; name it with --dataset, for example "
                f"--dataset datasets, or for this task alone --dataset {cell.task}=FOLDER."
            )
        configs[cell] = config.to_dict()
    return configs


def check_simulators(cells: Sequence[Cell]) -> None:
    """Refuse, by BenchmarkError, to train for hours what cannot be evaluated here."""
    for name in dict.fromkeys(get_task(cell.task).simulator for cell in cells):
        status = simulator_status(name)
        if not status.installed:
            tasks = sorted({cell.task for cell in cells if get_task(cell.task).simulator == name})
            install = f" Install it: {status.install}" if status.install else ""
            raise BenchmarkError(f"{', '.join(tasks)}: {status.problem}.{install}")


def check_datasets(configs: Mapping[Cell, Mapping[str, Any]]) -> None:
    """Refuse to start without a dataset (MissingDatasetError): every cell would find out for itself."""
    from spi_diffusers.data.loading import check_source

    for task, dataset in {(cell.task, config["dataset"]) for cell, config in configs.items()}:
        if dataset is not None:
            check_source(dataset, task)


# ---- files


def write_cell(folder: Path, cell: Cell, config: Mapping[str, Any]) -> None:
    """Say what a folder is for: the cell, and its complete training configuration."""
    _write(folder / CELL_FILE, {"cell": cell.to_dict(), "config": dict(config)})


def read_cell(folder: Path) -> tuple[Cell, dict[str, Any]]:
    """What `write_cell` wrote; FileNotFoundError without the file, CellError if it cannot be read."""
    with _explained(folder / CELL_FILE, "is not a cell of a benchmark") as content:
        return Cell.from_dict(content["cell"]), dict(content["config"])


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Say how a cell ended."""
    _write(folder / OUTCOME_FILE, outcome.to_dict())


def read_outcome(folder: Path) -> Outcome | None:
    """How a cell ended, or None; CellError if the file cannot be read."""
    if not (folder / OUTCOME_FILE).exists():
        return None
    with _explained(folder / OUTCOME_FILE, "is not a benchmark's outcome") as content:
        return Outcome.from_dict(content)


def outcome_so_far(folder: Path, cell: Cell, config: Mapping[str, Any]) -> Outcome | None:
    """How a cell ended in its folder; None where something is left to do.

    CellError if its files are broken, or it was trained with other settings or with unknown ones.
    """
    if not (folder / CELL_FILE).exists():
        found = next((n for n in (POLICY_FOLDER, CHECKPOINTS_FOLDER) if (folder / n).exists()), None)
        if found is not None:
            raise CellError(
                f"{folder}: holds a training ({found}), but no {CELL_FILE} that says of what. {_AGAIN}"
            )
        return None
    before, now = flatten(read_cell(folder)[1]), flatten(config)
    free = WITHOUT_EFFECT - {"dataset", "revision"}
    changed = [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if key not in free and before.get(key) != now.get(key)
    ]
    if changed:
        raise CellError(
            f"{folder}: was trained with other settings: {'; '.join(changed)}. Choose another --output, or "
            "remove that folder."
        )
    outcome = read_outcome(folder)
    return outcome if outcome is not None and outcome.covers(cell) else None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with written_aside(path) as aside:
        aside.write_bytes(to_json(content))


@contextlib.contextmanager
def _explained(path: Path, problem: str) -> Iterator[dict[str, Any]]:
    """Give a file's content; what is wrong with it becomes a CellError."""
    try:
        content = read_json(path)
    except ValueError as error:
        raise CellError(f"{error} {_AGAIN}") from error
    try:
        yield content
    except (KeyError, TypeError, ValueError) as error:
        raise CellError(f"{path}: {problem}: {error!r}. {_AGAIN}") from error


# ---- training and evaluation


def run_cell(folder: str | Path) -> Outcome:
    """Train and evaluate what a folder's `cell.json` says, going on with what is there.

    How it ended is also written to `outcome.json`, except for a StoppedError: a signal stopped training, and
    the cell is to go on later. CellError if a file of the cell cannot be read, FolderInUseError if another
    process keeps working on it.
    """
    from spi_diffusers.training.trainer import TrainingDivergedError

    folder = Path(folder)
    with held(folder, "process of this cell", wait=_TURN_SECONDS):
        cell, config = read_cell(folder)
        try:
            before = read_outcome(folder)
            if before is not None and before.covers(cell):
                return before
            outcome = Outcome("done", entries=tuple(_train_and_evaluate(folder, cell, config)))
        except TrainingDivergedError as error:
            outcome = Outcome("diverged", str(error))
        except (ValueError, OSError, ImportError) as error:
            # They would come again: a wrong setting, data that cannot be read, a full disk.
            logging.getLogger(__name__).exception("%s", cell)
            outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError) if outcome.status == "failed" else contextlib.nullcontext():
            write_outcome(folder, outcome)
        return outcome


def _train_and_evaluate(folder: Path, cell: Cell, config: dict[str, Any]) -> list[EvaluationEntry]:
    from spi_diffusers.config.train import TrainConfig
    from spi_diffusers.evaluation.results import read_results
    from spi_diffusers.pipelines.loading import load_pipeline
    from spi_diffusers.training.processes import make_accelerator
    from spi_diffusers.training.train import train_in_held_folder

    check_simulators([cell])  # on a cluster, this node may lack it
    train_config = TrainConfig(**{**config, "output_dir": str(folder), "resume": True})
    # The policy is saved whole or not at all, after everything else of the training.
    if not (folder / POLICY_FOLDER).is_dir():
        result = train_in_held_folder(train_config, make_accelerator(train_config), progress=False)
        if result.training.stopped_by is not None:
            raise StoppedError(result.training.stopped_by)
    results = folder / EVALUATION_FOLDER / RESULTS_FILE
    if cell.curve_points > 1:
        _evaluate_along_training(cell, train_config, results)
    missing = missing_evaluations(cell, read_results(results) if results.exists() else [])
    if missing:
        pipeline = load_pipeline(folder)
        for way in dict.fromkeys((wanted.extraction, wanted.feedback, wanted.risk) for wanted in missing):
            wanted = [one for one in missing if (one.extraction, one.feedback, one.risk) == way]
            _evaluate(pipeline, cell, cell.algorithm, wanted, results)
    return read_results(results)


def _evaluate_along_training(cell: Cell, config: "TrainConfig", results: Path) -> None:
    from spi_diffusers.evaluation.results import read_results

    wanted = cell.evaluations[0]
    known = read_results(results) if results.exists() else []
    held = {entry.algorithm for entry in known if entry.episodes >= wanted.episodes}
    for step, pipeline in policies_along_training(config):
        name = cell.point(step)
        # Where the points do not divide the updates, the last one comes shortly before the end.
        if step // config.checkpoint_every >= cell.curve_points or step == config.updates or name in held:
            continue
        _evaluate(pipeline, cell, name, [wanted], results)


def _evaluate(
    pipeline: "Pipeline", cell: Cell, algorithm: str, wanted: Sequence[Evaluation], results: Path
) -> None:
    """Play a policy in one way at several limits, and put that into the cell's results file."""
    from spi_diffusers.evaluation.evaluate import evaluate
    from spi_diffusers.evaluation.results import merge_results

    extraction = wanted[0].extraction
    risk: Any = {} if wanted[0].risk is None else {"risk": wanted[0].risk}
    entries = evaluate(
        pipeline,
        cell.task,
        algorithm=algorithm,
        cost_limits=[one.cost_limit for one in wanted],
        extractions=[extraction],
        feedback=wanted[0].feedback or extraction != "safe",  # others are told nothing anyway
        episodes=wanted[0].episodes,
        seeds=[EVALUATION_SEED_OFFSET + cell.seed],
        progress=False,
        **risk,
    )
    merge_results(results, entries)


def policies_along_training(config: "TrainConfig") -> "Iterator[tuple[int, Pipeline]]":
    """Updates done, and the policy without its evaluation critic, of every checkpoint that a run has kept.

    Those that an interruption made are left out: other runs have none at the same step. CheckpointError if
    one cannot be read, or is of another configuration.
    """
    from spi_diffusers.training.build import open_training_data
    from spi_diffusers.training.checkpoint import load_training_tensors
    from spi_diffusers.training.processes import make_accelerator
    from spi_diffusers.training.trainer import Trainer

    accelerator = make_accelerator(config)
    dataset = open_training_data(config, accelerator, progress=False)
    trainer = Trainer(config, dataset, accelerator=accelerator, progress=False)
    for step in trainer.checkpoints.steps():
        if step % config.checkpoint_every and step != config.updates:
            continue
        checkpoint = trainer.checkpoints.load(step)
        load_training_tensors(trainer.algorithm, checkpoint.tensors)
        trainer.step, trainer.seconds = step, checkpoint.state["train_seconds"]
        yield step, trainer.policy()


def _end_with_the_starter() -> None:
    """Send SIGTERM to this process when its parent exits (stdin reaches its end)."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Run the cell that the command line names; the exit code is 0 once its outcome is written."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("spi_diffusers").setLevel(logging.INFO)
    _end_with_the_starter()
    try:
        run_cell(sys.argv[1])
    except StoppedError as error:
        print(error, file=sys.stderr)
        return 128 + error.signal_number
    return 0


if __name__ == "__main__":
    # Threads of torch and of the wait above must not delay the end.
    code = main()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
