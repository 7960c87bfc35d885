"""Convert datasets of other forms into the parquet layout, one config per task.

What a source holds is decided once, by its name and what is on disk: one part per config to write, each with
a function that loads it. Everything that can be refused is refused before the first part is loaded; every
part is then loaded, checked and written before the next, so a failure in the middle leaves the parts before
it complete.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from spi_diffusers.data.card import STATS_FILE, read_card, read_stats_file
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.download import fetch, find_dsrl_files
from spi_diffusers.data.dsrl import load_hdf5
from spi_diffusers.data.loading import (
    EMBEDDED_FOLDER,
    check_is_there,
    check_revision,
    check_suffix,
    file_task,
    load_file,
)
from spi_diffusers.data.minari import load_minari
from spi_diffusers.data.network import say
from spi_diffusers.data.parquet import folder_configs, load_folder, load_hub, pick_config
from spi_diffusers.data.tables import TableColumns, column_option
from spi_diffusers.data.tasks import (
    DSRL_DATASET_REPO,
    DSRL_SUFFIXES,
    MINARI_PREFIX,
    TABLE_SUFFIXES,
    TASKS,
    Task,
    UnknownTaskError,
    check_config_name,
    get_task,
    resolve_task,
    source_kind,
    task_of_file,
)
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import check_destination, has_config, write_parquet_dataset

logger = logging.getLogger(__name__)

_DSRL_LICENSE, _UNKNOWN_LICENSE = "cc-by-4.0", "unknown"


@dataclass(frozen=True)
class ConvertedConfig:
    """What came of one part of a source: the dataset is None where it was there (`keep_existing`)."""

    config: str
    dataset: TransitionDataset | None


@dataclass(frozen=True)
class _Part:
    """One config to write, not loaded yet; source, license and description are for the card."""

    config: str
    load: Callable[[], TransitionDataset]
    source: str
    license: str
    description: str = ""


@dataclass(frozen=True)
class _Request:
    """What the caller asks for, apart from the source; `wanted` are tasks and configs, empty for all."""

    wanted: tuple[str, ...]
    name: str | None
    columns: TableColumns
    revision: str | None
    clip_actions: bool

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The wanted tasks, for a source that has no configs; an unknown one raises."""
        return tuple(get_task(name) for name in self.wanted)


def convert_dataset(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    tasks: Sequence[str | Task] = (),
    name: str | None = None,
    columns: TableColumns | None = None,
    license: str | None = None,
    description: str | None = None,
    revision: str | None = None,
    clip_actions: bool = False,
    overwrite: bool = False,
    keep_existing: bool = False,
) -> Iterator[ConvertedConfig]:
    """Convert a dataset to the parquet layout, part by part.

    Args:
        source: one of
            - a DSRL `.hdf5` or `.npz` file, or a folder of them;
            - a `.csv`, `.csv.gz` or `.parquet` table of logged transitions;
            - `YYY-45/DSRL` or `dsrl`: DSRL's own HDF5 files on the Hub, downloaded and verified;
            - a folder or Hub dataset (`org/name`) in the parquet layout, or `embedded`;
            - a folder of a Minari dataset, or `minari:` and a Minari dataset id.
        folder: where to; made if it does not exist, else the new configs are added to it.
        tasks: which of the source's tasks to convert, all by default; of a dataset in the parquet layout,
            also names of configs without one. For a file that does not have its task in its name, the task
            that it belongs to.
        name: name of the config for data without a DSRL task; dimensions and action range are then free.
            A table whose name tells no task gets its file's name by default.
        columns: which columns of a table hold what.
        license: license id for the card; by default DSRL's for DSRL's files, what the card of a dataset
            in the parquet layout says, and else `unknown`.
        description: how the data was made, for the card (Markdown).
        revision: branch, tag or commit of a Hub dataset.
        clip_actions: clip actions of DSRL's tasks outside [-1, 1] instead of refusing them.
        overwrite: replace configs that the folder has already.
        keep_existing: leave configs that the folder has already as they are, and do the others.

    Yields:
        Each config right after it has been written.

    Raises:
        UnknownTaskError: there is no such task, and the source has no such config.
        ValueError: `name` cannot be that of a config, or is a task of DSRL's.
        DatasetError: the source is none of the above, or cannot be used; nothing has changed, or only
            the configs that were yielded before are new.
        FileExistsError: the folder has one of the configs, and neither option says what to do.
        ImportError: h5py or minari is needed and not installed.
    """
    if name is not None and tasks:
        raise ValueError("give tasks (--task) or a name for data without a task (--name), not both")
    if name is not None:
        _check_name(name)
        if clip_actions:
            raise ValueError(
                f"clip_actions (--clip-actions) is for DSRL's tasks, whose actions lie in [-1, 1]; those of "
                f"{name} may have any range"
            )
    request = _Request(
        wanted=tuple(dict.fromkeys(str(resolve_task(task, source)[1]) for task in tasks)),
        name=name,
        columns=columns or TableColumns(),
        revision=revision,
        clip_actions=clip_actions,
    )
    check_destination(folder)
    folder = Path(folder).expanduser()
    if Path(source).expanduser().exists() and folder.resolve() == Path(source).expanduser().resolve():
        raise ValueError(f"{folder}: is the source itself; name another folder to write to")
    parts = _find_parts(source, request)
    for part in parts:
        check_config_name(part.config)
        if _is_inside(source, folder / part.config):
            raise ValueError(f"{folder / part.config}: holds the source itself; choose another folder")
    existing = [part.config for part in parts if has_config(folder, part.config)]
    if existing and not (overwrite or keep_existing):
        raise FileExistsError(
            f"{folder}: has {', '.join(existing)} already; replace it with overwrite=True (--overwrite), "
            "leave it as it is with keep_existing=True (--keep-existing), or choose another folder"
        )
    keep = set(existing) if keep_existing else set()
    return _convert(parts, folder, keep, license, description, goes_on=overwrite or keep_existing)


def _is_inside(source: str | os.PathLike[str], folder: Path) -> bool:
    path = Path(source).expanduser()
    return path.exists() and path.resolve().is_relative_to(folder.resolve())


def _check_name(name: str) -> None:
    check_config_name(name)
    try:
        task = get_task(name)
    except UnknownTaskError:
        return
    raise ValueError(
        f"name={name!r} (--name) is a task of DSRL's, {task.name}: say so with tasks= (--task "
        f"{task.short_name}), which checks dimensions and action range, or choose another name for "
        "data without a task"
    )


def _convert(
    parts: list[_Part],
    folder: Path,
    keep: set[str],
    license: str | None,
    description: str | None,
    *,
    goes_on: bool,
) -> Iterator[ConvertedConfig]:
    """Write part by part; `goes_on`: whether the same call again would take what is written by then."""
    for number, part in enumerate(parts):
        if part.config in keep:
            yield ConvertedConfig(part.config, None)
            continue
        try:
            dataset = part.load()
        except DatasetError as error:
            if goes_on or number == 0:
                raise
            raise DatasetError(
                f"{error}. Written: {', '.join(before.config for before in parts[:number])}; to go on with "
                "the others, add keep_existing=True (--keep-existing)"
            ) from error
        write_parquet_dataset(
            dataset,
            folder,
            config_name=part.config,
            source=part.source,
            description=part.description if description is None else description,
            license=license or part.license,
            overwrite=True,  # what must not be replaced has been refused before
        )
        yield ConvertedConfig(part.config, dataset)


# ---- what a source holds


def _find_parts(source: str | os.PathLike[str], request: _Request) -> list[_Part]:
    """Find out what a source is, and what is to be converted of it: one part per config."""
    kind, path = source_kind(source), Path(source).expanduser()
    check_revision(source, request.revision)
    if kind == "minari":
        return [_minari_part(str(source), request)]
    if kind == "file":
        return [_file_part(path, request)]
    if kind == "folder" or path.is_dir():
        return _folder_parts(path, request)
    if kind == "embedded":
        return _folder_parts(EMBEDDED_FOLDER, request)
    if kind in ("dsrl", "dsrl-hub"):
        return _dsrl_parts(request)
    check_is_there(source)
    return _hub_parts(str(source), request)


# ---- files and tables


def _file_part(path: Path, request: _Request) -> _Part:
    check_suffix(path)
    is_table = path.name.lower().endswith(TABLE_SUFFIXES)
    if not is_table:
        _check_columns(str(path), request)
    if len(request.tasks) > 1:
        raise DatasetError(f"{path}: is one file, and so belongs to one task, not {len(request.tasks)}")
    task = None
    if request.name is None:
        task = file_task(path, request.tasks[0] if request.tasks else None)
    name = request.name
    if name is None and task is None:
        if not is_table:
            raise DatasetError(
                f"{path}: its name does not tell which task it belongs to; say so with tasks= (--task), or "
                "name the data with name= (--name) if it has no DSRL task"
            )
        name = path.name.partition(".")[0]
    load = partial(load_file, path, task, request.columns, clip_actions=request.clip_actions)
    told = task_of_file(path)
    license = _DSRL_LICENSE if told is not None and path.name == told.dataset_file else _UNKNOWN_LICENSE
    return _Part(name or (task.name if task else ""), load, path.name, license)


def _check_columns(source: str, request: _Request, taken: tuple[str, ...] = ()) -> None:
    given = [name for name, value in vars(request.columns).items() if value is not None and name not in taken]
    if given:
        raise DatasetError(
            f"{source}: columns= ({', '.join(map(column_option, given))}) is for tables "
            f"({', '.join(TABLE_SUFFIXES)}); the column names of this source are fixed"
        )


# ---- folders


def _folder_parts(path: Path, request: _Request) -> list[_Part]:
    if (path / "README.md").is_file() and any(path.glob("*/*.parquet")):
        _check_columns(str(path), request)
        configs = _choose(str(path), folder_configs(path), request)
        return [_layout_part(path, config, request) for config in configs]
    files = sorted(item for item in path.iterdir() if item.suffix.lower() in DSRL_SUFFIXES)
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
    return [_file_part(by_task[task], replace(request, wanted=(task.name,))) for task in wanted]


def _layout_part(folder: Path, config: str, request: _Request, repo_id: str | None = None) -> _Part:
    """A config of a folder, or of a Hub dataset whose small files are in the folder."""
    load: Callable[[], TransitionDataset]
    if repo_id is None:
        load = partial(load_folder, folder, config, clip_actions=request.clip_actions)
    else:  # a snapshot's folder is named by its commit
        revision = folder.name
        load = partial(load_hub, repo_id, config, revision=revision, clip_actions=request.clip_actions)
    path, readme = folder / config / STATS_FILE, folder / "README.md"
    stats = read_stats_file(path) if path.is_file() else {}
    license = read_card(readme).data.get("license") if readme.is_file() else None
    if isinstance(license, list):  # of several it does not say which one is this config's
        license = license[0] if len(license) == 1 else None
    source = str(stats.get("source") or "")
    if repo_id is not None:
        here = f"{repo_id}, commit {folder.name}"
        source = f"{source}; by way of {here}" if source else here
    return _Part(
        request.name or config,
        load,
        source or folder.name,
        str(stats.get("license") or license or _UNKNOWN_LICENSE),
        str(stats.get("description") or ""),
    )


def _choose(where: str, configs: list[str], request: _Request) -> list[str]:
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


def _minari_part(source: str, request: _Request) -> _Part:
    task = request.tasks[0] if len(request.tasks) == 1 else None
    if request.name is None and task is None:
        raise DatasetError(
            f"{source}: say which one task the Minari dataset belongs to with tasks= (--task), or name it "
            "with name= (--name) if it has no DSRL task"
        )
    _check_columns(str(source), request, taken=("cost",))
    load = partial(
        load_minari, source, task, cost=request.columns.cost or "cost", clip_actions=request.clip_actions
    )
    label = source if source.startswith(MINARI_PREFIX) else f"Minari dataset {Path(source).name}"
    return _Part(request.name or (task.name if task else ""), load, label, _UNKNOWN_LICENSE)


def _dsrl_parts(request: _Request) -> list[_Part]:
    _check_columns(DSRL_DATASET_REPO, request)
    if request.name is not None:
        raise DatasetError(f"{DSRL_DATASET_REPO}: name tasks with --task; --name is for data without a task")
    tasks = request.tasks or tuple(TASKS.values())
    files = find_dsrl_files(tasks, revision=request.revision)
    megabytes = sum(file.size for file in files.values()) / 1e6
    commit = files[tasks[0].name].commit or "unknown"
    logger.info("%s: %d files, %.0f MB, commit %s", DSRL_DATASET_REPO, len(files), megabytes, commit)

    def load(task: Task) -> TransitionDataset:
        return load_hdf5(fetch(files[task.name]), task, clip_actions=request.clip_actions)

    parts = []
    for task in tasks:
        file = files[task.name]
        source = f"{DSRL_DATASET_REPO}, file {file.path}, commit {commit}, SHA-256 {file.sha256 or 'unknown'}"
        parts.append(_Part(task.name, partial(load, task), source, _DSRL_LICENSE))
    return parts


def _hub_parts(repo_id: str, request: _Request) -> list[_Part]:
    from huggingface_hub import snapshot_download

    import datasets

    _check_columns(repo_id, request)
    try:
        small = ["README.md", f"*/{STATS_FILE}"]
        folder = Path(
            snapshot_download(repo_id, repo_type="dataset", revision=request.revision, allow_patterns=small)
        )
        configs = datasets.get_dataset_config_names(repo_id, revision=folder.name)
    except Exception as error:  # datasets, huggingface_hub and httpx raise many unrelated types here
        raise DatasetError(
            f"{repo_id}: cannot be loaded from the Hub: {say(error)}. (No local file or "
            "folder has that name.)"
        ) from error
    return [_layout_part(folder, config, request, repo_id) for config in _choose(repo_id, configs, request)]
