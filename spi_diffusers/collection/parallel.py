"""Parts of a collection side by side, in processes that end with the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

from spi_diffusers.collection.errors import CollectionError
from spi_diffusers.collection.parts import Part, Progress, collect_part

_SECONDS_BETWEEN_REPORTS = 0.2


def collect_parts(
    parts: Sequence[Part],
    workers: int,
    on_progress: Callable[[Progress], None],
    on_done: Callable[[Part], None],
) -> None:
    """Work on all parts to their end.

    Args:
        parts: What to work on, of one task or several; they are started in this order.
        workers: Processes side by side; with one, all happens in this process.
        on_progress: Called in this process.
        on_done: Called in this process for every part at its end, after the last progress of it; the other
            workers do not wait for it.

    Raises:
        CollectionError: A file of a part cannot be read or written, or a process was killed. An error in one
            part ends the others at once; all of them can go on later.
    """
    if workers == 1 or len(parts) <= 1:
        for part in parts:
            for progress in collect_part(part):
                on_progress(progress)
            on_done(part)
        return
    # Spawned, as forked processes would inherit the threads of torch and of the simulators in any state.
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()  # no thread behind it: once a part is done, all that it told is in here
    workers_end, our_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        min(workers, len(parts)),
        mp_context=context,
        initializer=_start_worker,
        initargs=(queue, workers_end),
    )
    started = False
    try:
        with pool, our_end:  # left in reverse order, so that an error does not wait for busy workers
            jobs = {pool.submit(_report_part, part): part for part in parts}
            while jobs:
                done, _ = wait(jobs, _SECONDS_BETWEEN_REPORTS, return_when=FIRST_EXCEPTION)
                while not queue.empty():
                    started = True
                    on_progress(queue.get())
                for job in done:
                    job.result()
                for job in done:
                    on_done(jobs.pop(job))
    except BrokenProcessPool as error:
        guard = "" if started else ', or did it not start, as the script has no `if __name__ == "__main__":`'
        raise CollectionError(
            f"a worker process was killed (is there enough memory for so many workers{guard}?); what was "
            "collected is kept, and the same collection goes on from it"
        ) from error


_queue: Any = None  # of a worker: where it reports to


def _start_worker(queue: Any, parents_end: Connection) -> None:
    global _queue
    _queue = queue
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the parent too, which ends its workers
    threading.Thread(target=_end_with_parent, args=(parents_end,), daemon=True).start()


def _end_with_parent(parents_end: Connection) -> None:
    """End this process as soon as the parent has closed its end, or was itself killed.

    A worker that went on alone would write into the same files as the next collection. Files are renamed into
    place, so it may end at any moment.
    """
    parents_end.poll(None)
    os._exit(1)


def _report_part(part: Part) -> None:
    for progress in collect_part(part):
        _queue.put(progress)
