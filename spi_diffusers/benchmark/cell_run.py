"""One cell: train, evaluate, say how it ended. Runs in a process of its own and may be killed at any moment.

`python -m spi_diffusers.benchmark.cell_run FOLDER` does what FOLDER/cell.json says.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from spi_diffusers.benchmark.cell_folder import (
    Outcome,
    curve_name,
    missing_evaluations,
    read_cell,
    read_outcome,
    write_outcome,
)
from spi_diffusers.benchmark.preflight import check_simulators
from spi_diffusers.benchmark.suites import EVALUATION_SEED_OFFSET, Cell
from spi_diffusers.evaluation.metrics import EvaluationEntry
from spi_diffusers.files import EVALUATION_FOLDER

RESULTS = Path(EVALUATION_FOLDER, "results.json")
#: How long a process waits for one before it on the same cell, which is on its way out.
_TURN_SECONDS = 120.0


class StoppedError(RuntimeError):
    """A signal stopped training; a checkpoint is saved.

    Args:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}; a checkpoint is saved")
        self.signal_number = signal_number


def run_cell(folder: str | Path) -> Outcome:
    """Train and evaluate what a folder's `cell.json` says, going on with what is there.

    Args:
        folder: The cell's folder.

    Returns:
        How it ended, as it is written to `outcome.json`.

    Raises:
        StoppedError: A signal stopped training. Nothing is written then: the cell is to go on later.
        FileNotFoundError: There is no `cell.json`.
        CellError: A file of the cell cannot be read.
        filelock.Timeout: Another process keeps working on the same cell.
    """
    from filelock import FileLock

    from spi_diffusers.training.trainer import TrainingDivergedError

    folder = Path(folder)
    with FileLock(folder / ".cell.lock", timeout=_TURN_SECONDS):
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
    from diffusers.utils.logging import disable_progress_bar

    from spi_diffusers.config.layers import restore_train_config
    from spi_diffusers.evaluation.evaluate import evaluate
    from spi_diffusers.evaluation.loading import load_policy
    from spi_diffusers.evaluation.results import merge_results, read_results
    from spi_diffusers.training.run import POLICY_FOLDER, run_training

    disable_progress_bar()
    check_simulators([cell])  # on a cluster, this node may lack it
    train_config = restore_train_config({**config, "output_dir": str(folder), "resume": True})
    # The policy is saved whole or not at all, after everything else of the training.
    if not (folder / POLICY_FOLDER).is_dir():
        result = run_training(train_config, progress=False)
        if result.training.stopped_by is not None:
            raise StoppedError(result.training.stopped_by)
    if cell.curve_points > 1:
        _evaluate_along_training(folder, cell, train_config)
    results = folder / RESULTS
    missing = missing_evaluations(cell, read_results(results) if results.exists() else [])
    loaded = load_policy(folder) if missing else None
    for extraction, feedback in dict.fromkeys((wanted.extraction, wanted.feedback) for wanted in missing):
        assert loaded is not None
        of_it = [one for one in missing if (one.extraction, one.feedback) == (extraction, feedback)]
        entries = evaluate(
            loaded.pipeline,
            cell.task,
            train_info=replace(loaded.train_info, algorithm=cell.system),
            cost_limits=[wanted.cost_limit for wanted in of_it],
            extractions=[extraction],  # a baseline acts in its one way whatever this says
            feedback=feedback,
            episodes=of_it[0].episodes,
            seeds=[EVALUATION_SEED_OFFSET + cell.seed],
            progress=False,
        )
        merge_results(results, entries)
    return read_results(results)


def _evaluate_along_training(folder: Path, cell: Cell, config: Any) -> None:
    from spi_diffusers.benchmark.checkpoints import policies_along_training
    from spi_diffusers.evaluation.evaluate import evaluate
    from spi_diffusers.evaluation.results import merge_results, read_results

    results = folder / RESULTS
    wanted = cell.evaluations[0]
    known = read_results(results) if results.exists() else []
    held = {entry.algorithm for entry in known if entry.episodes >= wanted.episodes}
    for step, pipeline, info in policies_along_training(config):
        name = curve_name(cell.system, step)
        # Where the points do not divide the updates, the last one comes shortly before the end.
        if step // config.checkpoint_every >= cell.curve_points or step == config.updates or name in held:
            continue
        entries = evaluate(
            pipeline,
            cell.task,
            train_info=replace(info, algorithm=name),
            cost_limits=[wanted.cost_limit],
            extractions=[wanted.extraction],
            feedback=wanted.feedback,
            episodes=wanted.episodes,
            seeds=[EVALUATION_SEED_OFFSET + cell.seed],
            progress=False,
        )
        merge_results(results, entries)


@contextlib.contextmanager
def _ending_with_the_starter() -> Iterator[None]:
    """Stop as by SIGTERM once the process that started this one is gone: its end of our input closes."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
    yield


def main() -> int:
    """Run the cell that the command line names; the exit code is 0 once its outcome is written."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("spi_diffusers").setLevel(logging.INFO)
    with _ending_with_the_starter():
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
