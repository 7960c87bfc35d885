"""Run the cells of a benchmark, here or on a Ray cluster: skip what is done, go on with what was killed.

All results are gathered in one file. On a Ray cluster (the `ray` extra) all nodes must share the benchmark's
folder (a network file system): a cell that starts again on another node goes on from its checkpoint.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from spi_diffusers.benchmark.cells import (
    LOG_FILE,
    OUTCOME_FILE,
    BenchmarkError,
    CellError,
    Outcome,
    outcome_so_far,
    read_outcome,
    resolve_configs,
    run_cell,
    write_cell,
)
from spi_diffusers.benchmark.suites import Cell
from spi_diffusers.data.simulators import other_dynamics
from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.entries import EvaluationEntry
from spi_diffusers.evaluation.results import check_dynamics, merge_results, read_results
from spi_diffusers.files import METRICS_FILE, RESULTS_FILE, local_path
from spi_diffusers.locks import held
from spi_diffusers.progress import progress_bar
from spi_diffusers.training.metrics import last_step

logger = logging.getLogger(__name__)

_ATTEMPTS = 2  # a process can die for reasons of its machine: out of memory, a node that is lost
_POLL_SECONDS = 1.0


class WorkerDiedError(RuntimeError):
    """The process of a cell ended without an outcome; the message says how."""


class Benchmark:
    """Cells and the folder in which they are run.

    `configs` has the complete training configuration of each cell, with `config_file` over the presets;
    `results` is the file with the results of all. BenchmarkError if there are no cells or a task has no data,
    ConfigError for a setting that cannot be used.
    """

    def __init__(self, cells: Sequence[Cell], output: str | Path, config_file: str | None = None):
        if not cells:
            raise BenchmarkError("there is nothing to run: no algorithm of the suites was chosen.")
        self.configs = resolve_configs(cells, config_file)
        self.output = local_path(output)
        self.results = self.output / RESULTS_FILE

    def outcomes_so_far(self) -> dict[Cell, Outcome]:
        """How those cells ended that are done; CellError as for `outcome_so_far`."""
        found = {
            cell: outcome_so_far(self.output / cell.folder, cell, config)
            for cell, config in self.configs.items()
        }
        return {cell: outcome for cell, outcome in found.items() if outcome is not None}

    def run(
        self, executor: "LocalExecutor | RayExecutor", *, jobs: int = 1, progress: bool = True
    ) -> dict[Cell, Outcome]:
        """Run every cell that is not done, `jobs` at a time, and gather the results of all in `results`.

        May be killed at any moment; the same call goes on where it was. Returns how each cell ended.
        FolderInUseError if another run works in the folder, FileExistsError if it is a file, CellError as for
        `outcome_so_far`, ResultsFileError if the folder's results file cannot be read; it is left as it is.
        """
        with held(self.output, "benchmark"):
            return self._run(executor, jobs, progress)

    def _run(self, executor: "LocalExecutor | RayExecutor", jobs: int, progress: bool) -> dict[Cell, Outcome]:
        if self.results.exists():  # everything in the folder is checked before anything runs
            there = read_results(self.results)
            for task in {get_task(cell.task) for cell in self.configs}:
                check_dynamics(self.results, task.name, other_dynamics(task.simulator), there)
        outcomes = self.outcomes_so_far()
        self._gather(outcomes)  # a kill may have come between a cell's end and this
        pending = [cell for cell in self.configs if cell not in outcomes]
        for cell in pending:  # all of them, before the first is run: a full disk shows here
            write_cell(self.output / cell.folder, cell, self.configs[cell])
        bar = _Progress(self, outcomes, disable=not progress)
        pool = ThreadPoolExecutor(jobs)
        stopping = threading.Event()
        running: dict[Future[Outcome], Cell] = {}
        try:
            for cell in pending:
                running[pool.submit(_attempt, executor, self.output / cell.folder, stopping)] = cell
            while running:
                for future in wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                    cell = running.pop(future)
                    outcomes[cell] = future.result()
                    self._gather({cell: outcomes[cell]})
                    bar.finish(cell, outcomes[cell])
                bar.update(running.values())
        finally:
            # After an error or an interrupt: no further cell starts, those that run save a checkpoint.
            stopping.set()
            for future in running:
                future.cancel()
            executor.stop()
            pool.shutdown()
            bar.close()
        return {cell: outcomes[cell] for cell in self.configs}

    def _gather(self, outcomes: Mapping[Cell, Outcome]) -> None:
        """Put the cells' results into the file, instead of what it had of earlier runs of the same cells."""
        ended = {cell: outcome for cell, outcome in outcomes.items() if outcome.status != "failed"}
        if not ended:
            return
        entries = [entry for outcome in ended.values() for entry in outcome.entries]
        diverged = [
            cell.diverged(outcome.message) for cell, outcome in ended.items() if outcome.status == "diverged"
        ]

        def is_outdated(entry: EvaluationEntry) -> bool:
            return any(cell.owns(entry) for cell in ended)

        merge_results(self.results, entries, diverged, outdated=is_outdated)


def _attempt(executor: "LocalExecutor | RayExecutor", folder: Path, stopping: threading.Event) -> Outcome:
    died = ""
    for attempt in range(1, _ATTEMPTS + 1):
        if stopping.is_set():
            break
        try:
            return executor.run(folder)
        except WorkerDiedError as error:
            died = str(error)
            if not stopping.is_set():
                logger.warning("%s (attempt %d of %d)", died, attempt, _ATTEMPTS)
    return Outcome("failed", died or "stopped")


class _Progress:
    """A bar over the updates of all cells, so that its ETA knows that some are longer than others."""

    def __init__(self, benchmark: Benchmark, done: Iterable[Cell], *, disable: bool):
        self._output = benchmark.output
        self._updates = {cell: int(config["updates"]) for cell, config in benchmark.configs.items()}
        self._done = {cell: self._updates[cell] for cell in done}
        self._finished = len(self._done)
        self._bar = progress_bar(
            total=sum(self._updates.values()),
            initial=sum(self._done.values()),  # done before: it says nothing about the speed
            unit=" updates",
            desc="benchmark",
            dynamic_ncols=True,
            disable=disable,
        )
        self.close = self._bar.close

    def update(self, running: Iterable[Cell]) -> None:
        """Look how far the cells are that run."""
        steps = {cell: last_step(self._output / cell.folder / METRICS_FILE) for cell in running}
        self._done |= {cell: min(self._updates[cell], step) for cell, step in steps.items()}
        self._bar.set_postfix_str(f"{self._finished} of {len(self._updates)} cells", refresh=False)
        self._bar.update(sum(self._done.values()) - self._bar.n)
        self._bar.refresh()

    def finish(self, cell: Cell, outcome: Outcome) -> None:
        """Count a cell as done, and say at once if something is wrong with it."""
        self._finished += 1
        self._done[cell] = self._updates[cell]
        if outcome.status != "done" and not self._bar.disable:
            self._bar.write(f"{cell}: {outcome.status}: {outcome.message}", file=sys.stderr)


# ---- processes of this machine


class LocalExecutor:
    """Runs cells as processes; what they say goes to `log.txt` in the cell's folder."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, folder: Path) -> Outcome:
        """Run a cell and wait for it; WorkerDiedError if its process ends without an outcome."""
        (folder / OUTCOME_FILE).unlink(
            missing_ok=True
        )  # of an attempt that failed, or with fewer evaluations
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "spi_diffusers.benchmark.cells", str(folder)]
        with (folder / LOG_FILE).open("ab") as log:
            with self._lock:  # none may start after `stop` has looked at those that run
                if self._stopped:
                    raise WorkerDiedError(f"{folder}: stopped before it started")
                # We never write to its input: that it closes tells the process that we are gone. A session of
                # its own lets Ctrl-C reach us alone: a second signal, by `stop`, would end it at once.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
                self._processes.add(process)
            code = process.wait()
        with self._lock:
            self._processes.discard(process)
        assert process.stdin is not None
        process.stdin.close()
        try:
            outcome = read_outcome(folder)
        except CellError as error:
            raise WorkerDiedError(str(error)) from error
        if code != 0 or outcome is None:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            raise WorkerDiedError(f"{folder}: its process {how}{_last_words(folder / LOG_FILE)}")
        return outcome

    def stop(self) -> None:
        """Ask all processes to save a checkpoint and end, and wait for them."""
        with self._lock:
            self._stopped = True
            running = list(self._processes)
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()  # it goes on from its last checkpoint
                process.wait()


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"; {log} ends with: {lines[-1]}" if lines else ""


# ---- a Ray cluster


class RayExecutor:
    """Runs cells on a Ray cluster at an address such as "auto" or "ray://head:10001"; "local" starts one.

    ImportError if Ray is not installed, BenchmarkError if there is no cluster at this address.
    """

    def __init__(self, address: str = "auto") -> None:
        try:
            import ray
        except ImportError:
            raise ImportError(
                "running on a Ray cluster needs ray: pip install 'spi-diffusers[ray]'"
            ) from None
        self._ray: Any = ray
        self._running: set[Any] = set()
        self._lock = threading.Lock()
        try:
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, ValueError) as error:
            raise BenchmarkError(f"no Ray cluster at {address!r}: {error}") from error
        # The runner tries again itself, so that it can say so.
        self._remote = ray.remote(num_cpus=1, max_retries=0)(_run_on_node)

    @property
    def num_cpus(self) -> int:
        """CPUs of the cluster."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def run(self, folder: Path) -> Outcome:
        """Run a cell and wait for it; WorkerDiedError if its worker, or the node, is gone."""
        task = self._remote.remote(folder.resolve(), os.getcwd())
        with self._lock:
            self._running.add(task)
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            raise WorkerDiedError(f"{folder}: {_reason(error)}") from error
        finally:
            with self._lock:
                self._running.discard(task)

    def stop(self) -> None:
        """Stop all cells that run; they go on later from their last checkpoints."""
        with self._lock:
            running = list(self._running)
        for task in running:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()


def _reason(error: Exception) -> str:
    """What went wrong on the node, without the frames that Ray tells it with."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        error = cause
    return f"{type(error).__name__}: {' '.join(str(error).split())[-400:]}"


def _run_on_node(folder: Path, working_folder: str) -> Outcome:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(working_folder)  # where a dataset named by a relative path is
    return run_cell(folder)
