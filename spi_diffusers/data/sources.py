"""What a source holds that can be converted: one part per config, not loaded yet.

A source is told by its name and what is on disk: DSRL's files, tables, folders in the parquet layout, Minari
and Hub datasets. Everything that can be refused without loading is refused here.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spi_diffusers.data.card import UNKNOWN_LICENSE, download_provenance, read_provenance
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.download import default_folder, fetch, find_or_reuse_dsrl_files
from spi_diffusers.data.dsrl import load_hdf5, load_npz
from spi_diffusers.data.loading import MissingDatasetError
from spi_diffusers.data.minari import PREFIX, is_minari_folder, load_minari
from spi_diffusers.data.parquet import folder_configs, load_folder, load_hub, pick_config
from spi_diffusers.data.tables import TABLE_SUFFIXES, TableColumns, load_table
from spi_diffusers.data.tasks import DSRL_DATASET_REPO, HUB_ID, TASKS, Task, get_task, task_of_file
from spi_diffusers.data.transitions import TransitionDataset

logger = logging.getLogger(__name__)

_DSRL_SUFFIXES = {".npz": load_npz, ".hdf5": load_hdf5, ".h5": load_hdf5}
_DSRL_LICENSE = "cc-by-4.0"


@dataclass(frozen=True)
class Part:
    """One config to write, not loaded yet.

    Attributes:
        config: its name.
        load: loads it, and raises DatasetError where it cannot be used.
        source: where it comes from, for the card.
        license: licence id for the card.
        description: how the data was made, for the card.
    """

    config: str
    load: Callable[[], TransitionDataset]
    source: str
    license: str
    description: str = ""


@dataclass(frozen=True)
class Request:
    """What the caller asks for, apart from the source.

    Attributes:
        wanted: names of tasks and configs; empty for all.
        name: of the config, for data of no DSRL task.
        columns: which columns of a table hold what.
        revision: branch, tag or commit of a Hub dataset.
        token: access token for the Hub.
        clip_actions: clip actions outside [-1, 1] instead of refusing them.
    """

    wanted: tuple[str, ...]
    name: str | None
    columns: TableColumns
    revision: str | None
    token: str | bool | None
    clip_actions: bool

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The wanted tasks, for a source that has no configs; an unknown one raises."""
        return tuple(get_task(name) for name in self.wanted)


def find_parts(source: str | os.PathLike[str], request: Request) -> list[Part]:
    """Find out what a source is, and what is to be converted of it.

    Args:
        source: as for `convert_dataset`.
        request: what is asked for.

    Returns:
        A part per config.

    Raises:
        DatasetError: the source is nothing that is known, or does not hold what is asked for.
        ImportError: minari is needed and not installed.
    """
    text = str(source)
    if text.startswith(PREFIX):
        return [_minari_part(text, request)]
    path = Path(source).expanduser()
    if path.exists() and request.revision is not None:
        raise DatasetError(
            f"{path}: is local, so revision={request.revision!r} means nothing; it is for Hub datasets"
        )
    if path.is_file():
        return [_file_part(path, request)]
    if path.is_dir():
        return _folder_parts(path, request)
    if text.lower() == DSRL_DATASET_REPO.lower():
        return _dsrl_parts(request)
    suffixes = (*_DSRL_SUFFIXES, ".csv", ".parquet", ".gz")
    if not HUB_ID.fullmatch(text) or path.suffix.lower() in suffixes:
        raise MissingDatasetError(
            f"{text}: no such file or folder (give a DSRL .hdf5 or .npz file or a folder of them, a table "
            f"({', '.join(TABLE_SUFFIXES)}), a folder in the parquet layout or of a Minari dataset, "
            f"{PREFIX}ID, {DSRL_DATASET_REPO}, or the org/name of a Hub dataset)"
        )
    return _hub_parts(text, request)


# ---- files and tables


def _file_part(path: Path, request: Request) -> Part:
    suffix = path.suffix.lower()
    is_table = path.name.lower().endswith(TABLE_SUFFIXES)
    if suffix not in _DSRL_SUFFIXES and not is_table:
        known = ", ".join((*_DSRL_SUFFIXES, *TABLE_SUFFIXES))
        raise DatasetError(f"{path}: files with the suffix {path.suffix!r} are not known; known are {known}")
    if len(request.tasks) > 1:
        raise DatasetError(f"{path}: is one file, and so belongs to one task, not {len(request.tasks)}")
    told = task_of_file(path)
    task = request.tasks[0] if request.tasks else None
    if request.name is None:
        if task is not None and told is not None and task != told:
            raise DatasetError(
                f"{path}: is by its name the file of {told.name}, not of {task.name}; rename it if that is "
                "wrong"
            )
        task = task or told
        if task is None:
            raise DatasetError(
                f"{path}: its name does not tell which task it belongs to; say so with tasks= (--task), or "
                "name the data with name= (--name) if it belongs to none of DSRL's"
            )
    config = request.name or (task.name if task else "")
    load: Callable[[], TransitionDataset]
    if is_table:
        load = partial(load_table, path, request.columns, task, clip_actions=request.clip_actions)
    else:
        _check_columns(str(path), request)
        load = partial(_DSRL_SUFFIXES[suffix], path, task, clip_actions=request.clip_actions)
    is_dsrl = told is not None and path.name == told.dataset_file
    return Part(config, load, path.name, _DSRL_LICENSE if is_dsrl else UNKNOWN_LICENSE)


def _check_columns(source: str, request: Request, taken: tuple[str, ...] = ()) -> None:
    given = [name for name, value in vars(request.columns).items() if value is not None and name not in taken]
    if given:
        plural = {"observation", "action", "next_observation"}
        options = ", ".join(f"--{name.replace('_', '-')}-column{'s' * (name in plural)}" for name in given)
        raise DatasetError(
            f"{source}: columns= ({options}) is for tables ({', '.join(TABLE_SUFFIXES)}); the names in this "
            "source are given"
        )


# ---- folders


def _folder_parts(path: Path, request: Request) -> list[Part]:
    if (path / "README.md").is_file() and any(path.glob("*/*.parquet")):
        _check_columns(str(path), request)
        configs = _choose(str(path), folder_configs(path), request)
        return [_layout_part(path, config, request) for config in configs]
    if is_minari_folder(path):
        return [_minari_part(path, request)]
    files = sorted(item for item in path.iterdir() if item.suffix.lower() in _DSRL_SUFFIXES)
    if not files:
        inside = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
        raise DatasetError(
            f"{path}: holds no dataset: no README.md beside folders of parquet files, no .hdf5 or .npz "
            f"files, no Minari dataset (it holds {inside})"
        )
    if request.name is not None:
        raise DatasetError(f"{path}: is a folder of files; name= (--name) is for one file")
    tables = sorted(item.name for item in path.iterdir() if item.name.lower().endswith(TABLE_SUFFIXES))
    if tables and not request.tasks:
        raise DatasetError(
            f"{path}: also holds {', '.join(tables)}; convert tables one by one, and name the wanted tasks "
            "(--task) of the other files"
        )
    by_task: dict[Task, Path] = {}
    unknown = []
    for file in files:
        task = task_of_file(file)
        if task is None:
            unknown.append(file.name)
        elif task in by_task:
            raise DatasetError(f"{path}: {by_task[task].name} and {file.name} both belong to {task.name}")
        else:
            by_task[task] = file
    if unknown and not request.tasks:
        raise DatasetError(
            f"{path}: the names of {', '.join(unknown)} do not tell which task they belong to; rename them "
            "(OfflineBallCircle-v0.npz), convert them one by one with --task, or name the wanted tasks"
        )
    missing = [task.name for task in request.tasks if task not in by_task]
    if missing:
        there = ", ".join(sorted(task.name for task in by_task)) or "files of no known task"
        raise DatasetError(f"{path}: has no file for {', '.join(missing)}; there are {there}")
    wanted = request.tasks or tuple(by_task)
    alone = {task: Request(**(vars(request) | {"wanted": (task.name,)})) for task in wanted}
    return [_file_part(by_task[task], alone[task]) for task in wanted]


def _layout_part(path: Path, config: str, request: Request) -> Part:
    known = read_provenance(path, config, source=path.name)
    load = partial(load_folder, path, TASKS.get(config), config=config, clip_actions=request.clip_actions)
    return Part(request.name or config, load, known.source, known.license, known.description)


def _choose(where: str, configs: list[str], request: Request) -> list[str]:
    """Pick the wanted ones of the configs that there are."""
    missing = [name for name in request.wanted if name in TASKS and name not in configs]
    if missing:
        raise DatasetError(
            f"{where}: has no config for {', '.join(missing)}. Available: {', '.join(configs)}"
        )
    chosen = [pick_config(where, configs, name) for name in request.wanted] or configs
    if request.name is not None and len(chosen) > 1:
        raise DatasetError(f"{where}: holds several configs; name= (--name) is for one")
    return chosen


# ---- Minari and the Hub


def _minari_part(source: str | Path, request: Request) -> Part:
    task = request.tasks[0] if len(request.tasks) == 1 else None
    if request.name is None and task is None:
        raise DatasetError(
            f"{source}: say which one task the Minari dataset belongs to with tasks= (--task), or name it "
            "with name= (--name) if it belongs to none of DSRL's"
        )
    _check_columns(str(source), request, taken=("cost",))
    load = partial(
        load_minari, source, task, cost=request.columns.cost or "cost", clip_actions=request.clip_actions
    )
    label = source if isinstance(source, str) else f"Minari dataset {source.name}"
    return Part(request.name or (task.name if task else ""), load, label, UNKNOWN_LICENSE)


def _dsrl_parts(request: Request) -> list[Part]:
    _check_columns(DSRL_DATASET_REPO, request)
    if request.name is not None:
        raise DatasetError(f"{DSRL_DATASET_REPO}: name tasks with --task; --name is for data of no task")
    tasks = request.tasks or tuple(TASKS.values())
    folder = default_folder()
    files = find_or_reuse_dsrl_files(tasks, folder, revision=request.revision, token=request.token)
    megabytes = sum(file.size for file in files.values()) / 1e6
    commit = files[tasks[0].name].commit or "unknown"
    logger.info("%s: %d files, %.0f MB, commit %s", DSRL_DATASET_REPO, len(files), megabytes, commit)

    def load(task: Task) -> TransitionDataset:
        path = fetch(files[task.name], folder, token=request.token)
        return load_hdf5(path, task, clip_actions=request.clip_actions)

    parts = []
    for task in tasks:
        file = files[task.name]
        source = f"{file.repo_id}, file {file.path}, commit {commit}, SHA-256 {file.sha256 or 'unknown'}"
        parts.append(Part(task.name, partial(load, task), source, _DSRL_LICENSE))
    return parts


def _hub_parts(repo_id: str, request: Request) -> list[Part]:
    import datasets

    _check_columns(repo_id, request)
    try:
        folder, commit = download_provenance(repo_id, revision=request.revision, token=request.token)
        configs = datasets.get_dataset_config_names(repo_id, revision=commit, token=request.token)
    except Exception as error:  # datasets, huggingface_hub and httpx raise many unrelated types here
        raise DatasetError(
            f"{repo_id}: cannot be loaded from the Hub: {type(error).__name__}: {error}. (No local file or "
            "folder has that name.)"
        ) from error
    parts = []
    for config in _choose(repo_id, configs, request):
        load = partial(
            load_hub,
            repo_id,
            TASKS.get(config),
            config=config,
            revision=commit,
            token=request.token,
            clip_actions=request.clip_actions,
        )
        here = f"{repo_id}, commit {commit}"
        known = read_provenance(folder, config, source="")
        source = f"{known.source}; by way of {here}" if known.source else here
        parts.append(Part(request.name or config, load, source, known.license, known.description))
    return parts
