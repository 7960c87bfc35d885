"""One part of a collection: a run that one process works on, and that is kept on disk as it goes.

A part's folder holds shards of episodes and one state. Shard N and the state after it are written together,
the shard first, so a part that was stopped at any moment goes on from its last state.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from spi_diffusers.collection.behaviour import BehaviourRun
from spi_diffusers.collection.config import CollectConfig
from spi_diffusers.collection.episodes import Episode, EpisodeFilter, read_shards, write_shard
from spi_diffusers.collection.errors import CollectionError
from spi_diffusers.collection.scripted import ScriptedRun
from spi_diffusers.data.tasks import Task, get_task

SCRIPTED = "scripted"


@dataclass(frozen=True)
class Part:
    """One part of a collection.

    Attributes:
        task: Name of the task.
        name: `scripted` for the scripted driver, any other name for a behaviour policy.
        config: How to collect.
        seed: Decides everything.
        folder: Where episodes and state are kept; its parent exists.
        full_precision: Keep all bits of observations and actions.
        checkpoint_every: Steps between two checkpoints.
    """

    task: str
    name: str
    config: CollectConfig
    seed: int
    folder: Path
    full_precision: bool
    checkpoint_every: int


@dataclass(frozen=True)
class Progress:
    """How far one part of a collection is.

    Attributes:
        task: Name of the task.
        part: Name of the part.
        steps: Steps done, of the simulator; while writing, of the episodes kept.
        total: Steps in all.
        episodes: Episodes kept so far.
        best: Highest return so far within each of the task's cost limits; None where there is none.
    """

    task: str
    part: str
    steps: int
    total: int
    episodes: int
    best: dict[float, float | None]


def collect_part(part: Part) -> Iterator[Progress]:
    """Work on a part from wherever it stands to its end.

    Args:
        part: What to work on.

    Yields:
        How far it is, at the start and after every round.

    Raises:
        CollectionError: A file of the part cannot be read or written.
        SimulatorNotInstalledError: The simulator is missing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # processes share the cores, and these networks are small
    try:
        yield from _collect(part)
    finally:
        torch.set_num_threads(threads)


def shard_files(folder: Path) -> list[Path]:
    """The files of a part that hold its episodes, in order."""
    return sorted(folder.glob("episodes-*.safetensors"))


def _collect(part: Part) -> Iterator[Progress]:
    task, config = get_task(part.task), part.config
    part.folder.mkdir(exist_ok=True)
    kind = ScriptedRun if part.name == SCRIPTED else BehaviourRun
    run = kind(task, config, part.seed, round_actions=not part.full_precision)
    kept = _Kept(task, task.cost_max if config.max_cost_return is None else config.max_cost_return)
    for episode in _resume(run, part.folder):
        kept.offer(episode)
    waiting: list[Episode] = []
    saved_at = run.steps_done
    try:
        while True:
            steps = min(run.steps_done, run.total_steps)
            yield Progress(task.name, part.name, steps, run.total_steps, kept.count, dict(kept.best))
            if run.finished:
                return
            for episode in run.play_round():
                if kept.offer(episode):
                    waiting.append(episode if part.full_precision else episode.rounded())
            if waiting and (run.finished or run.steps_done - saved_at >= part.checkpoint_every):
                _checkpoint(run, waiting, part.folder)
                waiting, saved_at = [], run.steps_done
    finally:
        run.close()


class _Kept:
    """What a part has kept so far: how many episodes, and the best within each cost limit."""

    def __init__(self, task: Task, max_cost_return: float):
        self._filter = EpisodeFilter(task, max_cost_return)
        self.count = 0
        self.best: dict[float, float | None] = dict.fromkeys((*map(float, task.cost_limits), max_cost_return))

    def offer(self, episode: Episode) -> bool:
        """Whether to keep an episode; counts it if so."""
        if not self._filter.keep(episode.return_, episode.cost_return):
            return False
        self.count += 1
        for limit, highest in self.best.items():
            if episode.cost_return <= limit and (highest is None or episode.return_ > highest):
                self.best[limit] = episode.return_
        return True


def _state_file(folder: Path, shards: int) -> Path:
    return folder / f"state-{shards:04d}.safetensors"


def _resume(run: BehaviourRun | ScriptedRun, folder: Path) -> list[Episode]:
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
                f"{state}: is no state to go on from ({error}); remove {folder} to play this part again"
            ) from error
    return read_shards(shards)


def _checkpoint(run: BehaviourRun | ScriptedRun, episodes: list[Episode], folder: Path) -> None:
    number = len(shard_files(folder))
    aside = folder / "state.partial"
    try:
        write_shard(episodes, folder / f"episodes-{number:04d}.safetensors")
        run.save(aside)
        os.replace(aside, _state_file(folder, number + 1))
    except (OSError, SafetensorError) as error:  # the latter for a full disk, too
        raise CollectionError(
            f"{folder}: cannot be written to ({error}); what was there before is intact, and the same "
            "collection goes on from it"
        ) from error
    _state_file(folder, number).unlink(missing_ok=True)
