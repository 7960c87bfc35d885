"""Cells as processes of this machine, on one thread each."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from spi_diffusers.benchmark.cell_folder import LOG_FILE, OUTCOME_FILE, CellError, Outcome, read_outcome
from spi_diffusers.benchmark.runner import WorkerDiedError


class LocalExecutor:
    """Runs cells as processes; what they say goes to `log.txt` in the cell's folder."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, folder: Path) -> Outcome:
        """Run a cell and wait for it.

        Raises:
            WorkerDiedError: Its process ended without an outcome.
        """
        before = folder / OUTCOME_FILE
        before.unlink(missing_ok=True)  # of an attempt that failed, or with fewer evaluations
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "spi_diffusers.benchmark.cell_run", str(folder)]
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
