"""One way to load transitions: `load_transitions` takes whatever `--dataset` may say."""

import os
import re
from pathlib import Path

from spi_diffusers.data.arrays import open_hdf5, open_npz
from spi_diffusers.data.assembly import dataset_from_tables
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.delimited import CsvFormat
from spi_diffusers.data.download import download_dsrl_file
from spi_diffusers.data.layout import folder_configs, load_folder, load_hub
from spi_diffusers.data.minari import open_minari
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.tables import data_kind, is_table, open_table, open_tables
from spi_diffusers.data.tasks import (
    DSRL_DATASET_REPO,
    DSRL_SUFFIXES,
    EMBEDDED_FOLDER,
    MINARI_PREFIX,
    TABLE_SUFFIXES,
    Task,
    UnknownTaskError,
    get_task,
    resolve_task,
    task_of_file,
)
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.files import did_you_mean, local_path

_FORMS = (
    "the org/name of a Hub dataset, a folder in the parquet layout, of a Minari or LeRobot dataset or of "
    f"tables, a .hdf5 or .npz file, a table ({', '.join(TABLE_SUFFIXES)}), or {MINARI_PREFIX}ID"
)


class MissingDatasetError(DatasetError, FileNotFoundError):
    """There is no such file or folder, or no dataset was named and none is embedded for the task."""


def load_transitions(
    dataset: str | os.PathLike[str] | None = None,
    task: str | Task | None = None,
    *,
    revision: str | None = None,
    clip_actions: bool = False,
) -> TransitionDataset:
    """Load a dataset into memory, wherever it is.

    Args:
        dataset: one of
            - None or `embedded`: the data that ships with the package. A task's name says the same:
              `load_transitions("ballcircle")`;
            - `org/name`: a Hub dataset in the parquet layout, one config per task;
            - `YYY-45/DSRL`: the task's HDF5 file from DSRL's own Hub dataset, or `dsrl`: the same, but
              the file that DSRL itself has downloaded already, where there is one;
            - a local folder in the parquet layout, or of a Minari or LeRobot dataset, or with one table per
              episode; or `minari:` and a dataset id;
            - a `.hdf5` or `.npz` file, or a `.csv`, `.tsv` (also with `.gz`) or `.parquet` table, with the
              usual names of columns (see `ColumnNames`); `spi data convert` takes other names.
            What exists on disk is never looked up on the Hub.
        task: DSRL id or short form. It fixes the dimensions and the action range [-1, 1], and names the
            config of a folder or repository; for data without a DSRL task, the config's name. May be left
            out where there is nothing to choose.
        revision: branch, tag or commit of a Hub dataset.
        clip_actions: clip actions outside [-1, 1] instead of refusing them.

    Returns:
        The dataset, checked, in contiguous CPU tensors.

    Raises:
        UnknownTaskError: there is no such task, and no config of that name.
        DatasetError: the dataset does not exist or cannot be used; the message names the file, the
            column and the row, and says what to do.
        ImportError: h5py or minari is needed and not installed.

    Examples:
        >>> dataset = load_transitions("ballcircle")
        >>> dataset.episodes.best_return_within(10.0)
    """
    kind = data_kind(dataset)
    if kind == "missing" and task is None and re.fullmatch(r"[\w-]+", str(dataset)):
        try:
            kind, dataset, task = "embedded", None, get_task(str(dataset))
        except UnknownTaskError as error:
            raise MissingDatasetError(f"{dataset}: no such file or folder, and {error}") from None
    known, config = resolve_task(task, dataset)
    check_revision(dataset, revision)
    path = local_path(str(dataset))
    if kind == "embedded":
        return _load_embedded(known, clip_actions)
    if kind in ("dsrl", "dsrl-hub"):
        return _load_dsrl(known, revision, clip_actions, is_downloaded=kind == "dsrl")
    if kind == "tables":
        _check_no_config(path, known, config)
    if kind in ("minari", "tables", "file"):
        known = file_task(path, known) if kind == "file" else known
        return load_tables(str(dataset), known, clip_actions=clip_actions)
    if kind == "folder":
        return load_folder(path, config, clip_actions=clip_actions)
    check_is_there(dataset)
    return load_hub(str(dataset), config, revision=revision, clip_actions=clip_actions)


def load_tables(
    dataset: str | os.PathLike[str],
    task: Task | None = None,
    columns: ColumnNames | None = None,
    *,
    csv: CsvFormat | None = None,
    clip_actions: bool = False,
) -> TransitionDataset:
    """Load what is not in the parquet layout: a file, a folder of tables, a LeRobot or a Minari dataset.

    `columns` are named where they have no usual names; `csv` is how CSV files are written. A missing next
    observation is derived, see `derive_next_observation`. DatasetError if the suffix of a file is not known,
    or the data cannot be used; ImportError if h5py or minari is needed and missing.
    """
    kind, path = data_kind(dataset), local_path(dataset)
    if kind == "minari":
        tables = [open_minari(dataset, columns or ColumnNames())]
    elif kind == "tables":
        tables = open_tables(path, csv)
    elif is_table(path):
        tables = [open_table(path, csv)]
    elif path.suffix.lower() == ".npz":
        tables = [open_npz(path)]
    else:
        check_suffix(path)
        tables = [open_hdf5(path)]
    source = str(dataset if kind == "minari" else path)
    return dataset_from_tables(tables, source, columns, task, clip_actions=clip_actions)


def check_suffix(path: Path) -> None:
    """Refuse a file of a kind that is not known by its name, with a DatasetError."""
    known = (*DSRL_SUFFIXES, *TABLE_SUFFIXES)
    if not path.name.lower().endswith(known):
        raise DatasetError(
            f"{path}: files with the suffix {path.suffix!r} are not known; known are {', '.join(known)}"
        )


def file_task(path: Path, task: Task | None) -> Task | None:
    """The task of a file: the wanted one, or the one that its name tells; DatasetError if both differ."""
    told = task_of_file(path)
    if task is not None and told is not None and told != task:
        raise DatasetError(
            f"{path}: is by its name the file of {told.name}, not of {task.name}; rename it if that is wrong"
        )
    return task or told


def check_is_there(dataset: str | os.PathLike[str] | None) -> None:
    """Refuse what is not on disk and cannot be the id of a Hub dataset, with a MissingDatasetError."""
    if data_kind(dataset) == "missing":
        hint = did_you_mean(local_path(str(dataset)))
        raise MissingDatasetError(f"{dataset}: no such file or folder{hint} (give {_FORMS})")


def check_source(dataset: str | os.PathLike[str], task: str | Task) -> None:
    """Refuse at once what cannot be loaded because it is not there; nothing is read, nothing downloaded.

    MissingDatasetError if there is no such file or folder, or the folder has no data of the task.
    """
    known = get_task(task)
    check_is_there(dataset)
    if data_kind(dataset) == "folder":
        configs = folder_configs(local_path(dataset))
        if known.name not in configs:
            raise MissingDatasetError(
                f"{dataset}: has no data of {known.name}, only of {', '.join(configs) or 'nothing'}"
            )


def embedded_tasks() -> list[str]:
    """List the tasks (DSRL ids) whose data ships with the package."""
    return list(folder_configs(EMBEDDED_FOLDER))


def check_revision(dataset: str | os.PathLike[str] | None, revision: str | None) -> None:
    """Refuse a revision of data that has none, with a DatasetError."""
    kind = data_kind(dataset)
    if revision is not None and kind in ("embedded", "minari", "file", "folder", "tables"):
        source = "the data in the package" if kind == "embedded" else dataset
        raise DatasetError(f"{source}: is local; revision={revision!r} applies to Hub datasets only")


def _check_no_config(path: Path, task: Task | None, config: str | None) -> None:
    """Refuse, by UnknownTaskError, a name that is no task's for data without configs."""
    if task is None and config is not None:
        raise UnknownTaskError(
            f"unknown task {config!r}, and {path} has no configs: leave the task out, or name the data with "
            f"`spi data convert {path} FOLDER --name {config}`"
        )


def _load_embedded(task: Task | None, clip_actions: bool) -> TransitionDataset:
    available = embedded_tasks()
    name = available[0] if task is None and len(available) == 1 else task.name if task else None
    if name not in available:
        raise MissingDatasetError(
            f"no dataset is embedded for {name or 'an unnamed task'} (embedded: {', '.join(available)}). "
            f"Name one with --dataset (dataset=): {_FORMS}; {DSRL_DATASET_REPO} is DSRL's own on the Hub"
        )
    return load_folder(EMBEDDED_FOLDER, name, source=f"embedded:{name}", clip_actions=clip_actions)


def _load_dsrl(
    task: Task | None, revision: str | None, clip_actions: bool, *, is_downloaded: bool
) -> TransitionDataset:
    if task is None:
        raise DatasetError(f"{DSRL_DATASET_REPO}: holds one file per DSRL task; say which task")
    # DSRL keeps its downloads here; who has them already need not fetch some 100 MB again.
    path = local_path(os.environ.get("DSRL_DATASET_DIR", "~/.dsrl/datasets")) / task.dataset_file
    if not (is_downloaded and revision is None and path.is_file()):
        path = download_dsrl_file(task, revision=revision)
    return load_tables(path, task, clip_actions=clip_actions)
