"""The parts of a collection: each is one run that one process works on, and that is kept on disk as it goes.

A part's folder holds shards of episodes and one state. Shard N and the state after it are written together,
the shard first, so a part that was stopped at any moment goes on from its last state. Parts are played side
by side in processes that end with the one that started them.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from spi_diffusers.collection.behavior import BehaviorRun
from spi_diffusers.collection.config import CollectionError, CollectionSpec
from spi_diffusers.collection.episodes import Episode, EpisodeFilter, read_shards, write_shard
from spi_diffusers.collection.scripted import ScriptedRun
from spi_diffusers.files import written_aside
from spi_diffusers.signals import interrupts_deferred

SCRIPTED = "scripted"
_SECONDS_BETWEEN_REPORTS = 0.2


@dataclass(frozen=True)
class Part:
    """One part of a collection: the scripted driver if it is called `scripted`, else a behavior policy."""

    spec: CollectionSpec
    name: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where episodes and state are kept."""
        return self.spec.work / self.name


@dataclass(frozen=True)
class Progress:
    """How far one part of a collection is.

    `steps` are those of the simulator; while writing, of the episodes kept. `best` has the highest return so
    far within each of the task's cost limits, or None.
    """

    task: str
    part: str
    steps: int
    total: int
    episodes: int
    best: dict[float, float | None]


def play_parts(
    parts: Sequence[Part],
    workers: int,
    on_progress: Callable[[Progress], None],
    on_done: Callable[[Part], None],
) -> None:
    """Play all parts to their end, of one collection or several, in order; with one worker, in this process.

    `on_progress` and `on_done` are called in this process, the latter for every part at its end.
    CollectionError if a file of a part cannot be read or written, or a process was killed. An error in one
    part ends the others at once; all of them can go on later.
    """
    if workers == 1 or len(parts) <= 1:
        for part in parts:
            for progress in play_part(part):
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
            with interrupts_deferred():  # workers import for a while before they ignore it
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

    A worker that went on alone would write into the same files as the next collection.
    """
    parents_end.poll(None)
    os._exit(1)


def _report_part(part: Part) -> None:
    for progress in play_part(part):
        _queue.put(progress)


def play_part(part: Part) -> Iterator[Progress]:
    """Play a part from wherever it stands to its end; yields how far it is, first and after every round.

    CollectionError if a file of the part cannot be read or written.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # processes share the cores, and these networks are small
    try:
        yield from _play(part)
    finally:
        torch.set_num_threads(threads)


def shard_files(folder: Path) -> list[Path]:
    """The files of a part that hold its episodes, in order."""
    return sorted(folder.glob("episodes-*.safetensors"))


def _play(part: Part) -> Iterator[Progress]:
    spec = part.spec
    task, config = spec.task, spec.config
    part.folder.mkdir(parents=True, exist_ok=True)
    kind = ScriptedRun if part.name == SCRIPTED else BehaviorRun
    run = kind(task, config, part.seed, round_actions=not spec.full_precision)
    kept = EpisodeFilter(task, config.max_cost_return)
    for episode in _resume(run, part.folder):
        kept.offer(episode.return_, episode.cost_return)
    waiting: list[Episode] = []
    saved_at = run.steps_done
    try:
        while True:
            steps = min(run.steps_done, run.total_steps)
            yield Progress(task.name, part.name, steps, run.total_steps, kept.count, dict(kept.best_within))
            if run.finished:
                return
            for episode in run.play_round():
                if kept.offer(episode.return_, episode.cost_return):
                    waiting.append(episode if spec.full_precision else episode.rounded())
            if waiting and (run.finished or run.steps_done - saved_at >= spec.checkpoint_every):
                _checkpoint(run, waiting, part.folder)
                waiting, saved_at = [], run.steps_done
    finally:
        run.close()


def _state_file(folder: Path, shards: int) -> Path:
    return folder / f"state-{shards:04d}.safetensors"


def _resume(run: BehaviorRun | ScriptedRun, folder: Path) -> list[Episode]:
    """Bring a new run to where the last one stopped; returns the episodes kept until then."""
    shards = shard_files(folder)
    # A shard without its state was cut off between the two: what it holds will be played again.
    if shards and not _state_file(folder, len(shards)).exists():
        shards.pop().unlink()
    if shards:
        state = _state_file(folder, len(shards))
        try:
            run.load(state)
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise CollectionError(
                f"{state}: cannot be resumed from ({error}); delete {folder} to collect this part again"
            ) from error
    return read_shards(shards)


def _checkpoint(run: BehaviorRun | ScriptedRun, episodes: list[Episode], folder: Path) -> None:
    number = len(shard_files(folder))
    try:
        write_shard(episodes, folder / f"episodes-{number:04d}.safetensors")
        with written_aside(_state_file(folder, number + 1)) as aside:
            run.save(aside)
    except (OSError, SafetensorError) as error:  # the latter for a full disk, too
        raise CollectionError(
            f"{folder}: cannot be written to ({error}); what was there before is intact, and the same "
            "collection goes on from it"
        ) from error
    _state_file(folder, number).unlink(missing_ok=True)
