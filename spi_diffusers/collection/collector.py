"""From tasks to datasets: runs are played, kept on disk as they go, thinned, and written."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from spi_diffusers.collection.assembly import write_collection
from spi_diffusers.collection.config import CollectConfig
from spi_diffusers.collection.description import describe_collection
from spi_diffusers.collection.episodes import read_shards
from spi_diffusers.collection.errors import CollectionError
from spi_diffusers.collection.parallel import collect_parts
from spi_diffusers.collection.parts import SCRIPTED, Part, Progress, shard_files
from spi_diffusers.collection.record import check_work, claim_work, collection_record
from spi_diffusers.data.card import read_card
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import check_destination, has_config
from spi_diffusers.envs import make_env

WORK_FOLDER = ".collect"
MAX_BYTES = 7_500_000


def collect(
    task: str | Task,
    folder: str | os.PathLike[str],
    config: CollectConfig,
    *,
    seed: int = 0,
    workers: int = 1,
    max_bytes: int = MAX_BYTES,
    full_precision: bool = False,
    overwrite: bool = False,
    keep_work: bool = False,
    checkpoint_every: int = 100_000,
    description: str = "",
    on_progress: Callable[[Progress], None] | None = None,
) -> TransitionDataset:
    """Collect a dataset of a task in its simulator and write it in the parquet layout.

    What is collected lies in `folder/.collect/<task>` until the dataset is written. The same call goes on
    from there after an interruption, and ends with the same dataset as without one. With several workers,
    processes are spawned, so a script must guard its own work by `if __name__ == "__main__":`.

    Args:
        task: a task or its name.
        folder: the dataset's folder; it gets one config, named after the task.
        config: how to collect.
        seed: decides everything, at least 0.
        workers: processes side by side; the result does not depend on it.
        max_bytes: the largest size of the config's folder; episodes are thinned to fit.
        full_precision: keep all bits of observations and actions, instead of 12 significant ones.
        overwrite: replace the config if the folder has it.
        keep_work: leave the collected episodes in the work folder, e.g. to thin them again.
        checkpoint_every: steps of a part after which its episodes and state are saved, at the end of a
            round; the result does not depend on it.
        description: more words for the card (Markdown); they come before ours.
        on_progress: called from time to time, in this process; the last part is called `writing`.

    Returns:
        The dataset as written.

    Raises:
        ValueError: a number is out of range.
        UnknownTaskError: no such task.
        FileExistsError: the folder has the config already and `overwrite` is off, or it is a file.
        CollectionError: the work folder belongs to another collection or is in use, no episode was kept, or
            none fits into max_bytes.
        SimulatorNotInstalledError: the simulator is missing.
    """
    task = get_task(task)
    datasets = collect_tasks(
        {task: config},
        folder,
        seed=seed,
        workers=workers,
        max_bytes=max_bytes,
        full_precision=full_precision,
        overwrite=overwrite,
        keep_work=keep_work,
        checkpoint_every=checkpoint_every,
        description=description,
        on_progress=on_progress,
    )
    return datasets[task]


def collect_tasks(
    configs: Mapping[Task, CollectConfig],
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    workers: int = 1,
    max_bytes: int = MAX_BYTES,
    full_precision: bool = False,
    overwrite: bool = False,
    keep_work: bool = False,
    checkpoint_every: int = 100_000,
    description: str = "",
    on_progress: Callable[[Progress], None] | None = None,
    on_written: Callable[[Task, TransitionDataset], None] | None = None,
) -> dict[Task, TransitionDataset]:
    """Collect datasets of several tasks, whose parts share the workers.

    The folder is the same as after a `collect` for each task, in their order.

    Args:
        configs: how to collect each task.
        folder: the datasets' folder; it gets a config for each task.
        seed: as for `collect`, like all that follow.
        workers: see there.
        max_bytes: see there; for each task.
        full_precision: see there.
        overwrite: see there.
        keep_work: see there.
        checkpoint_every: see there.
        description: see there.
        on_progress: see there; each task has a part called `writing`.
        on_written: called with each task and its dataset once it is written.

    Returns:
        The datasets as written.

    Raises:
        ValueError: as for `collect`, like all that follow; what was written before stays.
        FileExistsError: see there.
        CollectionError: see there.
        SimulatorNotInstalledError: see there.
    """
    check_destination(folder)
    folder = Path(folder).expanduser()
    for task, config in configs.items():
        check_collection(
            task,
            folder,
            config,
            seed=seed,
            workers=workers,
            max_bytes=max_bytes,
            full_precision=full_precision,
            overwrite=overwrite,
        )
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}")
    tell = on_progress or _ignore
    parts: dict[Task, list[Part]] = {}
    datasets: dict[Task, TransitionDataset] = {}
    unfinished = {task: config.num_parts for task, config in configs.items()}

    def finish(part: Part) -> None:
        unfinished[get_task(part.task)] -= 1
        # In the order of the tasks, which the words of a new card depend on.
        for task in [task for task in configs if task not in datasets]:
            if unfinished[task]:
                return
            datasets[task] = _write(
                task,
                configs[task],
                folder,
                parts[task],
                tell,
                seed=seed,
                max_bytes=max_bytes,
                full_precision=full_precision,
                description=description,
                overwrite=overwrite,
            )
            if not keep_work:
                shutil.rmtree(_work_folder(folder, task))
            if on_written is not None:
                on_written(task, datasets[task])

    with ExitStack() as locks:
        for task, config in configs.items():
            work = _work_folder(folder, task)
            work.mkdir(parents=True, exist_ok=True)
            locks.enter_context(_lock(work, task))
            claim_work(work, collection_record(task, config, seed, full_precision))
            parts[task] = _parts(task, config, seed, full_precision, work, checkpoint_every)
        collect_parts([part for of_task in parts.values() for part in of_task], workers, tell, finish)
    work_folders = folder / WORK_FOLDER
    if work_folders.is_dir() and not any(work_folders.iterdir()):
        work_folders.rmdir()
    return datasets


def _write(
    task: Task,
    config: CollectConfig,
    folder: Path,
    parts: list[Part],
    tell: Callable[[Progress], None],
    *,
    seed: int,
    max_bytes: int,
    full_precision: bool,
    description: str,
    overwrite: bool,
) -> TransitionDataset:
    """Thin what the parts of a task have kept, and write it."""
    work = _work_folder(folder, task)
    episodes = read_shards(path for part in parts for path in shard_files(part.folder))
    if not episodes:
        raise CollectionError(
            f"{task.name}: no episode was kept, as all of them cost too much; allow more with "
            f"max_cost_return, or play more steps. Remove {work} to start again"
        )
    kept = sum(len(episode.reward) for episode in episodes)
    tell(Progress(task.name, "writing", 0, kept, len(episodes), {}))
    describe = partial(
        describe_collection,
        task=task,
        config=config,
        folder=folder,
        seed=seed,
        max_bytes=max_bytes,
        full_precision=full_precision,
        episodes_kept=len(episodes),
        more=description,
    )
    dataset = write_collection(
        task,
        episodes,
        folder,
        max_bytes=max_bytes,
        seed=seed,
        describe=describe,
        record=collection_record(task, config, seed, full_precision) | {"max_bytes": max_bytes},
        trial_folder=work / "trial",
        overwrite=overwrite,
    )
    best = {limit: dataset.episodes.best_return_within(limit) for limit in task.cost_limits}
    tell(Progress(task.name, "writing", kept, kept, dataset.num_episodes, best))
    return dataset


@contextmanager
def _lock(work: Path, task: Task) -> Iterator[None]:
    lock = FileLock(work / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise CollectionError(
            f"{work}: another process is collecting {task.name} into this folder now; wait for it, or choose "
            "another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_collection(
    task: str | Task,
    folder: str | os.PathLike[str],
    config: CollectConfig,
    *,
    seed: int = 0,
    workers: int = 1,
    max_bytes: int = MAX_BYTES,
    full_precision: bool = False,
    overwrite: bool = False,
) -> None:
    """Find out whether `collect` with these arguments could start; writes nothing.

    Args:
        task: as for `collect`, like all that follow.
        folder: see there.
        config: see there.
        seed: see there.
        workers: see there.
        max_bytes: see there.
        full_precision: see there.
        overwrite: see there.

    Raises:
        ValueError: a number is out of range.
        UnknownTaskError: no such task.
        FileExistsError: the folder has the config already and `overwrite` is off, or it is a file.
        CollectionError: the work folder belongs to another collection, or the task has no scripted driver, or
            no speed targets.
        DatasetError: the folder's card cannot be read.
        SimulatorNotInstalledError: the simulator is missing.
    """
    for name, value, least in (("seed", seed, 0), ("workers", workers, 1), ("max_bytes", max_bytes, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    check_destination(folder)
    task, folder = get_task(task), Path(folder).expanduser()
    if has_config(folder, task.name) and not overwrite:
        raise FileExistsError(
            f"{folder / task.name}: exists already; choose another folder, or replace it with overwrite=True "
            "(--overwrite)"
        )
    if (folder / "README.md").is_file():
        read_card(folder / "README.md")
    if config.scripted_episodes and task.short_name != "carcircle":
        raise CollectionError(
            f"scripted_episodes must be 0 for {task.short_name}: only carcircle has a scripted driver"
        )
    if config.speed_targets and task.simulator != "velocity":
        raise CollectionError(
            f"speed_targets must be empty for {task.short_name}: only a Velocity task's cost is one of speed"
        )
    check_work(_work_folder(folder, task), collection_record(task, config, seed, full_precision))
    make_env(task).close()  # a simulator that is missing shows here


def _ignore(progress: Progress) -> None:
    """Tell nobody."""


def _work_folder(folder: Path, task: Task) -> Path:
    return folder / WORK_FOLDER / task.short_name


def _parts(
    task: Task, config: CollectConfig, seed: int, full_precision: bool, work: Path, checkpoint_every: int
) -> list[Part]:
    """All behaviour-policy runs, and last the scripted driver if it is wanted."""
    names = [f"run-{index}" for index in range(config.runs)]
    # One seed more than there are runs, so that the scripted driver's is there whether it is wanted or not.
    seeds = np.random.SeedSequence(seed).generate_state(config.runs + 1, np.uint32).tolist()
    if config.scripted_episodes:
        names.append(SCRIPTED)
    return [
        Part(task.name, name, config, part_seed, work / name, full_precision, checkpoint_every)
        for name, part_seed in zip(names, seeds, strict=False)
    ]
