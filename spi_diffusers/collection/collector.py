"""From specs to datasets: behavior policies are played, kept on disk as they go, thinned, and written."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from spi_diffusers.collection.config import CollectionError, CollectionSpec
from spi_diffusers.collection.dataset import write_collection
from spi_diffusers.collection.episodes import read_shards
from spi_diffusers.collection.parts import SCRIPTED, Part, Progress, play_parts, shard_files
from spi_diffusers.data.card import read_card
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import check_destination, has_config
from spi_diffusers.envs import make_env
from spi_diffusers.files import CARD_FILE, read_json, remove_folder, replace_file, to_json
from spi_diffusers.leftovers import remove_leftovers
from spi_diffusers.locks import held

#: In the work folder: the record of the collection that it belongs to.
_RECORD_FILE = "collect.json"
#: There where the work folder is kept on purpose.
_KEPT_FILE = "kept"


def collect(
    *specs: CollectionSpec,
    workers: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    on_written: Callable[[CollectionSpec, TransitionDataset], None] | None = None,
) -> list[TransitionDataset]:
    """Collect datasets in the simulators and write them in the parquet layout.

    What is collected lies in `folder/.collect/<task>` until the dataset is written. The same call goes on
    from there after an interruption, and ends with the same dataset as without one. With several workers,
    processes are spawned, so a script must guard its own work by `if __name__ == "__main__":`.

        spec = CollectionSpec("ballcircle", "outputs/datasets", load_collect_config("ballcircle"))
        (dataset,) = collect(spec)

    Args:
        specs: What to collect. Each part of a collection (a behavior-policy run, the scripted driver) is one
            job for a worker; all specs share the workers, and are written in this order.
        workers: Processes side by side, at least 1; the datasets do not depend on it.
        on_progress: Called from time to time, in this process; the last part of a spec is called `writing`.
        on_written: Called with each spec and its dataset once it is written.

    Returns:
        The datasets as written, in the order of the specs.

    Raises:
        ValueError: `workers` is out of range, or a folder has a name that stands for other data.
        FileExistsError: A folder has the config already and `overwrite` is off, or it is a file.
        CollectionError: A work folder belongs to another collection, a task cannot be collected so, no
            episode was kept, or none fits into max_bytes. Datasets written before stay.
        FolderInUseError: Another collection of a task works in the folder.
        DatasetError: A folder's card cannot be read.
        SimulatorNotInstalledError: A simulator is missing.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    for spec in specs:
        _check_can_start(spec)
    tell = on_progress or (lambda _: None)
    parts: list[list[Part]] = []
    datasets: list[TransitionDataset] = []
    finished: list[Part] = []

    def finish(part: Part) -> None:
        finished.append(part)
        # In the order of the specs, which the words of a new card depend on.
        for spec, of_spec in list(zip(specs, parts, strict=True))[len(datasets) :]:
            if not all(part in finished for part in of_spec):
                return
            datasets.append(_write(spec, of_spec, tell))
            if spec.keep_work:
                (spec.work / _KEPT_FILE).touch()
            else:
                remove_folder(spec.work)
            if on_written is not None:
                on_written(spec, datasets[-1])

    with ExitStack() as locks:
        for spec in specs:
            locks.enter_context(held(spec.work, "collection"))
            _check_work(spec)
            if not (spec.work / _RECORD_FILE).exists():
                replace_file(spec.work / _RECORD_FILE, to_json(spec.record()))
            parts.append(_make_parts(spec))
        play_parts([part for of_spec in parts for part in of_spec], workers, tell, finish)
    for spec in specs:
        _remove_if_empty(spec.work.parent)
    return datasets


def clear_work(spec: CollectionSpec) -> None:
    """Remove the work folder that a kill has left of a finished collection; what `keep_work` kept stays."""
    if spec.work.is_dir() and not spec.keep_work and not (spec.work / _KEPT_FILE).exists():
        with held(spec.work, "collection"):
            remove_folder(spec.work)
    remove_leftovers(spec.work.parent, of=spec.work)
    _remove_if_empty(spec.work.parent)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _check_can_start(spec: CollectionSpec) -> None:
    """Refuse a collection that could not start, or whose dataset could not be written."""
    task, folder, config = spec.task, spec.folder, spec.config
    check_destination(folder)
    if has_config(folder, task.name) and not spec.overwrite:
        raise FileExistsError(
            f"{folder / task.name}: exists already; choose another folder, or replace it with overwrite=True "
            "(--overwrite)"
        )
    if (folder / CARD_FILE).is_file():
        read_card(folder / CARD_FILE)
    if config.scripted_episodes and task.short_name != "carcircle":
        raise CollectionError(
            f"scripted_episodes must be 0 for {task.short_name}: only carcircle has a scripted driver"
        )
    if config.speed_targets and task.simulator != "velocity":
        raise CollectionError(
            f"speed_targets must be empty for {task.short_name}: only a Velocity task's cost is one of speed"
        )
    _check_work(spec)
    make_env(task).close()  # a simulator that is missing shows here


def _check_work(spec: CollectionSpec) -> None:
    """Make sure that the work folder, where there is one, does not belong to another collection."""
    file, record = spec.work / _RECORD_FILE, spec.record()
    if not file.exists():
        return
    try:
        found = read_json(file)
    except ValueError as error:
        raise CollectionError(f"{error}; remove {spec.work} to start again") from error
    differing = [name for name in record.keys() | found.keys() if record.get(name) != found.get(name)]
    if differing:
        name = min(differing)
        raise CollectionError(
            f"{spec.work}: holds a collection with {name}={found.get(name)!r}, not {record.get(name)!r}; "
            f"give the same settings to go on with it, or remove {spec.work} to start again"
        )


def _make_parts(spec: CollectionSpec) -> list[Part]:
    """All behavior-policy runs, and last the scripted driver if it is wanted."""
    runs = spec.config.runs
    names = [f"run-{index}" for index in range(runs)]
    # One seed more than there are runs, so that the scripted driver's is there whether it is wanted or not.
    seeds = np.random.SeedSequence(spec.seed).generate_state(runs + 1, np.uint32).tolist()
    if spec.config.scripted_episodes:
        names.append(SCRIPTED)
    return [Part(spec, name, seed) for name, seed in zip(names, seeds, strict=False)]


def _write(
    spec: CollectionSpec, parts: Sequence[Part], tell: Callable[[Progress], None]
) -> TransitionDataset:
    """Thin what the parts of a collection have kept, and write it."""
    episodes = read_shards(path for part in parts for path in shard_files(part.folder))
    if not episodes:
        raise CollectionError(
            f"{spec.task.name}: no episode was kept, as all of them cost too much; allow more with "
            f"max_cost_return, or play more steps. Remove {spec.work} to start again"
        )
    kept = sum(len(episode.reward) for episode in episodes)
    tell(Progress(spec.task.name, "writing", 0, kept, len(episodes), {}))
    dataset = write_collection(spec, episodes)
    best = {limit: dataset.episodes.best_return_within(limit) for limit in spec.task.cost_limits}
    tell(Progress(spec.task.name, "writing", kept, kept, dataset.num_episodes, best))
    return dataset
