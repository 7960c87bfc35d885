"""Cells as tasks of a Ray cluster (the `ray` extra), one CPU each.

The benchmark's folder must be shared by all nodes (a network file system): a cell that is started again on
another node goes on from its checkpoint.
"""

import os
import threading
from pathlib import Path
from typing import Any

from spi_diffusers.benchmark.cell_folder import Outcome
from spi_diffusers.benchmark.preflight import BenchmarkError
from spi_diffusers.benchmark.runner import WorkerDiedError


class RayExecutor:
    """Runs cells on a Ray cluster.

    Args:
        address: Of the cluster, such as "auto" or "ray://head:10001"; "local" starts one here.

    Raises:
        ImportError: Ray is not installed.
        BenchmarkError: There is no cluster at this address.
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
        """Run a cell and wait for it.

        Raises:
            WorkerDiedError: Its worker, or the node, is gone.
        """
        task = self._remote.remote(str(folder.resolve()), os.getcwd())
        with self._lock:
            self._running.add(task)
        try:
            return Outcome.from_dict(self._ray.get(task))
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


def _run_on_node(folder: str, working_folder: str) -> dict[str, Any]:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(working_folder)  # where a dataset named by a relative path is
    from spi_diffusers.benchmark.cell_run import run_cell

    return run_cell(folder).to_dict()
