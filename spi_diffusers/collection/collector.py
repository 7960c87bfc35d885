"""From a task to a dataset: behaviour-policy runs in parallel, kept on disk as they go, thinned, written."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spi_diffusers.collection.config import CollectConfig
from spi_diffusers.collection.episodes import Episode, EpisodeFilter, read_shards, write_shard
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.data.thinning import thin_transitions
from spi_diffusers.data.transitions import EpisodeTable, TransitionDataset
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.envs import make_env

WORK_FOLDER = ".collect"
_SCRIPTED = "scripted"
_FORMAT_VERSION = 1
_STEPS_PER_SHARD = 100_000


class CollectionError(ValueError):
    """A collection cannot go on or cannot be written."""


@dataclass(frozen=True)
class Progress:
    """How far one part of a collection is.

    Attributes:
        part: Name of the part.
        steps: Steps done.
        total: Steps in all.
        episodes: Episodes kept so far.
        best: Highest return so far within each of the task's cost limits; None where there is none.
    """

    part: str
    steps: int
    total: int
    episodes: int
    best: dict[float, float | None]


@dataclass(frozen=True)
class _Part:
    """One part of a collection, which one process works on."""

    task: str
    name: str
    config: CollectConfig
    seed: int
    folder: Path
    full_precision: bool


def collect(
    task: str | Task,
    folder: str | os.PathLike[str],
    config: CollectConfig,
    *,
    seed: int = 0,
    workers: int = 1,
    max_bytes: int = 7_500_000,
    full_precision: bool = False,
    overwrite: bool = False,
    keep_work: bool = False,
    description: str = "",
    on_progress: Callable[[Progress], None] | None = None,
) -> TransitionDataset:
    """Collect a dataset of a task in its simulator and write it in the parquet layout.

    What is collected lies in `folder/.collect/<task>` until the dataset is written. The same call goes on
    from there after an interruption, and ends with the same dataset as without one.

    Args:
        task: a task or its name.
        folder: the dataset's folder; it gets one config, named after the task.
        config: how to collect.
        seed: decides everything.
        workers: processes side by side; the result does not depend on it.
        max_bytes: the largest size of the config's folder; episodes are thinned to fit.
        full_precision: keep all bits of observations and actions, instead of 12 significant ones.
        overwrite: replace the config if the folder has it.
        keep_work: leave the collected episodes in the work folder, e.g. to thin them again.
        description: more words for the card.
        on_progress: called from time to time, in this process.

    Returns:
        The dataset as written.

    Raises:
        FileExistsError: the folder has the config already and `overwrite` is off.
        CollectionError: the work folder belongs to another collection, or nothing fits into max_bytes.
        SimulatorNotInstalledError: the simulator is missing.
    """
    task = get_task(task)
    folder = Path(folder)
    if (folder / task.name).exists() and not overwrite:
        raise FileExistsError(f"{folder / task.name}: exists already; replace it with --overwrite")
    if config.scripted_episodes and task.short_name != "carcircle":
        raise CollectionError(f"scripted_episodes is for carcircle; there is no script for {task.short_name}")
    make_env(task).close()  # a simulator that is missing shows here
    work = folder / WORK_FOLDER / task.short_name
    _claim(work, {"task": task.name, "seed": seed, "full_precision": full_precision, **asdict(config)})
    seeds = np.random.SeedSequence(seed).generate_state(config.runs + 1, np.uint32).tolist()
    parts = [
        _Part(task.name, f"run-{index}", config, part_seed, work / f"run-{index}", full_precision)
        for index, part_seed in enumerate(seeds[:-1])
    ]
    if config.scripted_episodes:
        parts.append(_Part(task.name, _SCRIPTED, config, seeds[-1], work / _SCRIPTED, full_precision))
    _work(parts, workers, on_progress)
    episodes = read_shards(path for part in parts for path in _shards(part.folder))
    dataset = _write(task, episodes, folder, max_bytes, seed, description, overwrite)
    if not keep_work:
        shutil.rmtree(work)
        if not any(work.parent.iterdir()):
            work.parent.rmdir()
    return dataset


def _claim(work: Path, settings: dict[str, Any]) -> None:
    """Make the work folder, or make sure that it belongs to this very collection."""
    record = json.loads(json.dumps({"format_version": _FORMAT_VERSION, **settings}))
    file = work / "collect.json"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".partial")
        aside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, file)
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CollectionError(f"{file}: is not JSON ({error}); remove {work} to start again") from error
    differing = [name for name in record.keys() | found.keys() if record.get(name) != found.get(name)]
    if differing:
        name = sorted(differing)[0]
        raise CollectionError(
            f"{work}: holds a collection with {name}={found.get(name)!r}, not {record.get(name)!r}; give the "
            f"same settings to go on with it, or remove {work} to start again"
        )


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("episodes-*.safetensors"))


def _work(parts: list[_Part], workers: int, on_progress: Callable[[Progress], None] | None) -> None:
    if workers == 1 or len(parts) == 1:
        for part in parts:
            for progress in _collect_part(part):
                if on_progress is not None:
                    on_progress(progress)
        return
    # Spawned, as forked processes would inherit the threads of torch and of the simulators in any state.
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(workers, mp_context=context) as pool:
        queue = manager.Queue()
        jobs = [pool.submit(_report_part, part, queue) for part in parts]
        for _ in parts:
            while (progress := queue.get()) is not None:
                if on_progress is not None:
                    on_progress(progress)
        for job in jobs:
            job.result()


def _report_part(part: _Part, queue: Any) -> None:
    try:
        for progress in _collect_part(part):
            queue.put(progress)
    finally:
        queue.put(None)


def _collect_part(part: _Part) -> Iterator[Progress]:
    """Work on one part from wherever it stands; episodes and state are saved together, every few rounds."""
    torch.set_num_threads(1)  # processes share the cores, and these networks are small
    from spi_diffusers.collection.behaviour import BehaviourRun
    from spi_diffusers.collection.scripted import ScriptedRun

    task, config = get_task(part.task), part.config
    part.folder.mkdir(exist_ok=True)
    run = (ScriptedRun if part.name == _SCRIPTED else BehaviourRun)(
        task, config, part.seed, not part.full_precision
    )
    shards = _shards(part.folder)
    state = part.folder / f"state-{len(shards):04d}.safetensors"
    # A shard without its state was cut off between the two: what it holds will be played again.
    if shards and not state.exists():
        shards.pop().unlink()
        state = part.folder / f"state-{len(shards):04d}.safetensors"
    if shards:
        run.load(state)
    limit = task.cost_max if config.max_cost_return is None else config.max_cost_return
    choice = EpisodeFilter(task, limit)
    best: dict[float, float | None] = dict.fromkeys((*map(float, task.cost_limits), limit))
    kept = 0

    def count(episode: Episode) -> None:
        for cost_limit, highest in best.items():
            if episode.cost_return <= cost_limit and (highest is None or episode.return_ > highest):
                best[cost_limit] = episode.return_

    for episode in read_shards(shards):
        choice.keep(episode.return_, episode.cost_return)
        count(episode)
        kept += 1
    waiting: list[Episode] = []
    saved_at = run.steps_done
    try:
        while not run.finished:
            for episode in run.play_round():
                if choice.keep(episode.return_, episode.cost_return):
                    waiting.append(episode if part.full_precision else episode.rounded())
                    count(episode)
                    kept += 1
            if waiting and (run.finished or run.steps_done - saved_at >= _STEPS_PER_SHARD):
                number = len(_shards(part.folder))
                write_shard(waiting, part.folder / f"episodes-{number:04d}.safetensors")
                aside = part.folder / "state.partial"
                run.save(aside)
                os.replace(aside, part.folder / f"state-{number + 1:04d}.safetensors")
                state.unlink(missing_ok=True)
                state = part.folder / f"state-{number + 1:04d}.safetensors"
                waiting, saved_at = [], run.steps_done
            yield Progress(part.name, min(run.steps_done, run.total_steps), run.total_steps, kept, dict(best))
    finally:
        run.close()


def _write(
    task: Task,
    episodes: list[Episode],
    folder: Path,
    max_bytes: int,
    seed: int,
    description: str,
    overwrite: bool,
) -> TransitionDataset:
    """Thin what was collected until it fits, and write it."""
    table = _table(episodes)
    total = int(table.length.sum())
    wanted = total
    for _ in range(8):
        chosen = thin_transitions(table, wanted, cost_limits=task.cost_limits, seed=seed)
        dataset = _dataset(task, [episodes[index] for index in chosen.tolist()])
        written = write_parquet_dataset(
            dataset,
            folder / WORK_FOLDER / "trial",
            source="trial",
            overwrite=True,
        )
        size = sum(file.stat().st_size for file in (written / task.name).iterdir())
        shutil.rmtree(written)
        if size <= max_bytes:
            break
        # A little less than in proportion, so that few rounds are enough.
        wanted = int(wanted * max_bytes / size * 0.995)
    else:
        raise CollectionError(f"{task.name}: no choice of episodes fits into {max_bytes} bytes")
    best = float(table.return_.max())
    note = (
        f"{description}{len(chosen)} of {len(episodes)} episodes kept while collecting were chosen by "
        "`spi_diffusers.data.thinning`: the best within each limit, and the rest spread over the plane of "
        f"cost return and return. The highest return is {best:.0f}, {best / task.reward_max:.0%} of DSRL's "
        f"reference maximum of {task.reward_max:.0f}, and the highest cost return "
        f"{table.cost_return.max():.0f}. Episodes have at most {task.max_episode_steps} steps."
    )
    write_parquet_dataset(
        dataset,
        folder,
        source="collected by this package in the real simulator",
        description=note,
        location=folder.name,
        overwrite=overwrite,
    )
    return dataset


def _table(episodes: list[Episode]) -> EpisodeTable:
    length = torch.tensor([len(episode.reward) for episode in episodes])
    return EpisodeTable(
        episode_index=torch.arange(len(episodes)),
        start=length.cumsum(0) - length,
        length=length,
        return_=torch.tensor([episode.return_ for episode in episodes], dtype=torch.float64),
        cost_return=torch.tensor([episode.cost_return for episode in episodes], dtype=torch.float64),
        terminated=torch.tensor([episode.terminated for episode in episodes]),
    )


def _dataset(task: Task, episodes: list[Episode]) -> TransitionDataset:
    def ends(terminated: bool) -> np.ndarray:
        rows = [np.arange(len(e.reward)) == len(e.reward) - 1 for e in episodes]
        return np.concatenate(
            [row & (e.terminated == terminated) for row, e in zip(rows, episodes, strict=True)]
        )

    columns = {
        "observation": np.concatenate([episode.observation[:-1] for episode in episodes]),
        "next_observation": np.concatenate([episode.observation[1:] for episode in episodes]),
        **{
            name: np.concatenate([getattr(episode, name) for episode in episodes])
            for name in ("action", "reward", "cost")
        },
        "terminated": ends(True),
        "truncated": ends(False),
    }
    return TransitionDataset.from_columns(columns, task=task, source=f"collection of {task.name}")
