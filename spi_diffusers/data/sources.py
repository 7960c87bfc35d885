"""What a source of data holds: one part per config to write, each with a function that loads it.

Everything that can be refused is refused before a part is loaded.
"""

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from spi_diffusers.data.card import STATS_FILE, read_card, read_stats_file
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.delimited import CsvFormat
from spi_diffusers.data.download import fetch, find_dsrl_files
from spi_diffusers.data.layout import (
    folder_configs,
    hub_configs,
    hub_snapshot,
    load_folder,
    load_hub,
    pick_config,
)
from spi_diffusers.data.loading import (
    check_is_there,
    check_revision,
    check_suffix,
    file_task,
    load_tables,
)
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.tables import (
    LEROBOT_INFO,
    data_kind,
    folder_tables,
    is_csv,
    is_lerobot,
    is_table,
)
from spi_diffusers.data.tasks import (
    DSRL_DATASET_REPO,
    DSRL_SUFFIXES,
    EMBEDDED_FOLDER,
    MINARI_PREFIX,
    TASKS,
    Task,
    get_task,
    task_of_file,
)
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.files import CARD_FILE, local_path

logger = logging.getLogger(__name__)

_DSRL_LICENSE, _UNKNOWN_LICENSE = "cc-by-4.0", "unknown"


@dataclass(frozen=True)
class Part:
    """One config to write, not loaded yet; source, license and description are for the card."""

    config: str
    load: Callable[[], TransitionDataset]
    source: str
    license: str
    description: str = ""


@dataclass(frozen=True)
class Request:
    """What the caller asks for, apart from the source; `wanted` are tasks and configs, empty for all."""

    wanted: tuple[str, ...]
    name: str | None
    columns: ColumnNames
    csv: CsvFormat
    revision: str | None
    clip_actions: bool

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The wanted tasks, for a source that has no configs; an unknown one raises."""
        return tuple(get_task(name) for name in self.wanted)

    def load(self, dataset: str | os.PathLike[str], task: Task | None) -> TransitionDataset:
        """Load data that is not in the parquet layout as it is asked for."""
        return load_tables(dataset, task, self.columns, csv=self.csv, clip_actions=self.clip_actions)


def find_parts(source: str | os.PathLike[str], request: Request) -> list[Part]:
    """Find out what a source is, and what is to be converted of it: one part per config."""
    kind, path = data_kind(source), local_path(source)
    check_revision(source, request.revision)
    tables = [path] if kind == "file" else folder_tables(path) if kind == "tables" else []
    if request.csv != CsvFormat() and not any(is_csv(table) for table in tables):
        raise DatasetError(f"{source}: --delimiter, --decimal and --encoding (csv=) are for CSV files only")
    if kind == "minari":
        return [_minari_part(str(source), request)]
    if kind == "file":
        return [_file_part(path, request)]
    if kind == "tables":
        name = path.resolve().name
        label = f"LeRobot dataset {name}" if is_lerobot(path) else name
        return [_tables_part(path, name, label, request)]
    if kind == "folder":
        return _folder_parts(path, request)
    if kind == "embedded":
        return _folder_parts(EMBEDDED_FOLDER, request)
    if kind in ("dsrl", "dsrl-hub"):
        return _dsrl_parts(request)
    check_is_there(source)
    return _hub_parts(str(source), request)


def _file_part(path: Path, request: Request) -> Part:
    check_suffix(path)
    if len(request.tasks) > 1:
        raise DatasetError(f"{path}: is one file, and so belongs to one task, not {len(request.tasks)}")
    task = None
    if request.name is None:
        task = file_task(path, request.tasks[0] if request.tasks else None)
    name = request.name
    if name is None and task is None:
        if not is_table(path):
            raise DatasetError(
                f"{path}: its name does not tell which task it belongs to; say so with tasks= (--task), or "
                "name the data with name= (--name) if it has no DSRL task"
            )
        name = path.name.partition(".")[0]
    told = task_of_file(path)
    license = _DSRL_LICENSE if told is not None and path.name == told.dataset_file else _UNKNOWN_LICENSE
    return Part(name or (task.name if task else ""), partial(request.load, path, task), path.name, license)


def _folder_parts(path: Path, request: Request) -> list[Part]:
    if (path / CARD_FILE).is_file() and any(path.glob("*/*.parquet")):
        configs = _choose(str(path), folder_configs(path), request)
        return [_layout_part(path, config, request) for config in configs]
    files = sorted(item for item in path.iterdir() if item.suffix.lower() in DSRL_SUFFIXES)
    if not files:
        inside = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
        raise DatasetError(
            f"{path}: holds no dataset: no README.md beside folders of parquet files, no .hdf5 or .npz "
            f"files, no tables, no Minari or LeRobot dataset (it holds {inside})"
        )
    if request.name is not None:
        raise DatasetError(f"{path}: is a folder of files; name= (--name) is for one file")
    tables = folder_tables(path)
    if tables and not request.tasks:
        raise DatasetError(
            f"{path}: also holds {', '.join(table.name for table in tables[:8])}; convert tables one by one, "
            "and name the wanted tasks (--task) of the other files"
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


def _layout_part(folder: Path, config: str, request: Request, repo_id: str | None = None) -> Part:
    """A config of a folder, or of a Hub dataset whose small files are in the folder."""
    load: Callable[[], TransitionDataset]
    if repo_id is None:
        load = partial(load_folder, folder, config, request.columns, clip_actions=request.clip_actions)
    else:  # a snapshot's folder is named by its commit
        load = partial(load_hub, repo_id, config, request.columns, revision=folder.name)
        load = partial(load, clip_actions=request.clip_actions)
    path = folder / config / STATS_FILE
    stats = read_stats_file(path) if path.is_file() else {}
    source = str(stats.get("source") or "")
    if repo_id is not None:
        here = f"{repo_id}, commit {folder.name}"
        source = f"{source}; by way of {here}" if source else here
    return Part(
        request.name or config,
        load,
        source or folder.name,
        str(stats.get("license") or _card_license(folder)),
        str(stats.get("description") or ""),
    )


def _choose(where: str, configs: Collection[str], request: Request) -> list[str]:
    """Pick the wanted ones of the configs that there are."""
    missing = [name for name in request.wanted if name in TASKS and name not in configs]
    if missing:
        raise DatasetError(
            f"{where}: has no config for {', '.join(missing)}. Available: {', '.join(configs)}"
        )
    chosen = [pick_config(where, configs, name) for name in request.wanted] or list(configs)
    if request.name is not None and len(chosen) > 1:
        raise DatasetError(f"{where}: holds several configs; name= (--name) is for one")
    return chosen


def _minari_part(source: str, request: Request) -> Part:
    task = request.tasks[0] if len(request.tasks) == 1 else None
    if request.name is None and task is None:
        raise DatasetError(
            f"{source}: say which one task the Minari dataset belongs to with tasks= (--task), or name it "
            "with name= (--name) if it has no DSRL task"
        )
    label = source if source.startswith(MINARI_PREFIX) else f"Minari dataset {Path(source).name}"
    name = request.name or (task.name if task else "")
    return Part(name, partial(request.load, source, task), label, _UNKNOWN_LICENSE)


def _dsrl_parts(request: Request) -> list[Part]:
    if request.name is not None:
        raise DatasetError(f"{DSRL_DATASET_REPO}: name tasks with --task; --name is for data without a task")
    tasks = request.tasks or tuple(TASKS.values())
    files = find_dsrl_files(tasks, revision=request.revision)
    megabytes = sum(file.size for file in files.values()) / 1e6
    commit = files[tasks[0].name].commit or "unknown"
    logger.info("%s: %d files, %.0f MB, commit %s", DSRL_DATASET_REPO, len(files), megabytes, commit)

    def load(task: Task) -> TransitionDataset:
        return request.load(fetch(files[task.name]), task)

    parts = []
    for task in tasks:
        file = files[task.name]
        source = f"{DSRL_DATASET_REPO}, file {file.path}, commit {commit}, SHA-256 {file.sha256 or 'unknown'}"
        parts.append(Part(task.name, partial(load, task), source, _DSRL_LICENSE))
    return parts


def _hub_parts(repo_id: str, request: Request) -> list[Part]:
    folder = hub_snapshot(repo_id, [CARD_FILE, f"*/{STATS_FILE}", LEROBOT_INFO], request.revision)
    if is_lerobot(folder):
        name = repo_id.partition("/")[2]
        source = f"LeRobot dataset {repo_id}, commit {folder.name}"

        def fetch_tables() -> Path:
            return hub_snapshot(repo_id, [LEROBOT_INFO, "data/*/*.parquet"], folder.name)

        return [_tables_part(folder, name, source, request, fetch_tables)]
    wanted = _choose(repo_id, hub_configs(folder), request)
    return [_layout_part(folder, config, request, repo_id) for config in wanted]


def _tables_part(
    folder: Path, name: str, source: str, request: Request, fetch: Callable[[], Path] | None = None
) -> Part:
    """A folder of tables, or a LeRobot dataset, whose tables `fetch` brings here where they are not."""
    if len(request.tasks) > 1:
        raise DatasetError(f"{source}: belongs to one task, not {len(request.tasks)}")
    task = request.tasks[0] if request.tasks else None

    def load() -> TransitionDataset:
        return request.load(fetch() if fetch else folder, task)

    return Part(
        request.name or (task.name if task else name),
        load,
        source,
        _card_license(folder),
    )


def _card_license(folder: Path) -> str:
    """The license that the card in a folder names, if it is one: of several it does not say which holds."""
    readme = folder / CARD_FILE
    named = read_card(readme).data.get("license") if readme.is_file() else None
    licenses = named if isinstance(named, list) else [named]
    return str(licenses[0]) if len(licenses) == 1 and licenses[0] else _UNKNOWN_LICENSE
