"""One way to load transitions: `load_transitions` takes whatever `--dataset` may say."""

import os
from pathlib import Path

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.download import download_dsrl_file
from spi_diffusers.data.dsrl import load_hdf5, load_npz
from spi_diffusers.data.parquet import folder_configs, load_folder, load_hub
from spi_diffusers.data.tasks import (
    DSRL_DATASET_REPO,
    HUB_ID,
    RESERVED_NAMES,
    Task,
    get_task,
    resolve_task,
    task_of_file,
)
from spi_diffusers.data.transitions import TransitionDataset

#: The dataset that ships with the package: a folder in the parquet layout.
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"

_FILE_LOADERS = {".npz": load_npz, ".hdf5": load_hdf5, ".h5": load_hdf5}
_SUFFIXES = (*_FILE_LOADERS, ".parquet")
_FORMS = (
    "a Hub dataset id (org/name), a local folder in the parquet layout, a DSRL .hdf5 file, or a .npz file in "
    "DSRL's layout"
)


class MissingDatasetError(DatasetError, FileNotFoundError):
    """There is no such file or folder, or no dataset was named and none is embedded for the task."""


def load_transitions(
    dataset: str | os.PathLike[str] | None = None,
    task: str | Task | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    clip_actions: bool = False,
) -> TransitionDataset:
    """Load a dataset into memory, wherever it is.

    Args:
        dataset: one of
            - None or `embedded`: the data that ships with the package;
            - `org/name`: a Hub dataset in the parquet layout, one config per task;
            - `YYY-45/DSRL`: the task's HDF5 file from DSRL's own Hub dataset, or `dsrl`: the same, but
              the file that DSRL itself has downloaded already, where there is one;
            - a local folder in the parquet layout, a DSRL `.hdf5` file, or a `.npz` file in DSRL's
              layout. What exists on disk is never looked up on the Hub.
        task: DSRL id or short form. It fixes the dimensions and the action range [-1, 1], and names the
            config of a folder or repository; for data of no task of DSRL's, the config's name. May be left
            out where there is nothing to choose.
        revision: branch, tag or commit of a Hub dataset.
        token: access token for a private Hub dataset; True takes the stored one.
        clip_actions: clip actions outside [-1, 1] instead of refusing them.

    Returns:
        The dataset, checked, in contiguous CPU tensors.

    Raises:
        UnknownTaskError: there is no such task, and no config of that name.
        DatasetError: the dataset does not exist or cannot be used; the message names the file, the
            column and the row, and says what to do.
        ImportError: h5py is needed and not installed.
    """
    known, config = resolve_task(task, dataset)
    if dataset is None or str(dataset) == "embedded":
        check_no_revision("the data in the package", revision)
        return _load_embedded(known, clip_actions)
    if str(dataset) == "dsrl":
        return _load_dsrl(known, revision, token, clip_actions)
    path = Path(dataset).expanduser()
    if path.exists():
        check_no_revision(path, revision)
    if path.is_dir():
        return load_folder(path, known, config=config, clip_actions=clip_actions)
    if path.exists():
        loader = _FILE_LOADERS.get(path.suffix.lower())
        if loader is None:
            is_table = path.name.lower().endswith((".csv", ".csv.gz", ".parquet"))
            hint = (
                f". Of a table of logged transitions, `spi data convert {path} FOLDER --task TASK` (or "
                "--name NAME, for data of no DSRL task) makes such a folder; its --help says how to name "
                "the columns"
            )
            raise DatasetError(
                f"{path}: files with the suffix {path.suffix!r} are not known; give {_FORMS}"
                f"{hint if is_table else ''}"
            )
        told = task_of_file(path)
        if known is not None and told is not None and told != known:
            raise DatasetError(
                f"{path}: is by its name the file of {told.name}, not of {known.name}; rename it if that is "
                "wrong"
            )
        return loader(path, known or told, clip_actions=clip_actions)
    text = str(dataset)
    if path.suffix.lower() in _SUFFIXES or not HUB_ID.fullmatch(text):
        raise MissingDatasetError(f"{text}: no such file or folder (give {_FORMS})")
    if text.lower() == DSRL_DATASET_REPO.lower():
        return _load_dsrl_from_hub(known, revision, token, clip_actions)
    return load_hub(text, known, config=config, revision=revision, token=token, clip_actions=clip_actions)


def check_source(dataset: str | os.PathLike[str], task: str | Task) -> None:
    """Refuse at once what cannot be loaded because it is not there; nothing is read, nothing downloaded.

    Args:
        dataset: as in `load_transitions`.
        task: DSRL id or short form.

    Raises:
        UnknownTaskError: there is no such task.
        MissingDatasetError: there is no such file or folder, or the folder has no data of the task.
        DatasetError: the folder is not a dataset.
    """
    known, path = get_task(task), Path(dataset).expanduser()
    if str(dataset) in RESERVED_NAMES:
        return
    if path.is_dir():
        configs = folder_configs(path)
        if known.name not in configs:
            raise MissingDatasetError(
                f"{path}: has no data of {known.name}, only of {', '.join(configs) or 'nothing'}"
            )
    elif not path.exists() and (path.suffix.lower() in _SUFFIXES or not HUB_ID.fullmatch(str(dataset))):
        raise MissingDatasetError(f"{dataset}: no such file or folder (give {_FORMS})")


def embedded_tasks() -> list[str]:
    """List the tasks whose data ships with the package.

    Returns:
        DSRL ids.
    """
    return folder_configs(EMBEDDED_FOLDER)


def check_no_revision(source: str | os.PathLike[str], revision: str | None) -> None:
    """Refuse a revision of data that has none.

    Raises:
        DatasetError: One is given.
    """
    if revision is not None:
        raise DatasetError(
            f"{source}: is local, so revision={revision!r} means nothing; it is for Hub datasets"
        )


def _load_embedded(task: Task | None, clip_actions: bool) -> TransitionDataset:
    available = embedded_tasks()
    name = available[0] if task is None and len(available) == 1 else task.name if task else None
    if name not in available:
        raise MissingDatasetError(
            f"no dataset is embedded for {name or 'an unnamed task'} (embedded: {', '.join(available)}). "
            f"Name one with --dataset (dataset=): {_FORMS}; {DSRL_DATASET_REPO} is DSRL's own on the Hub"
        )
    return load_folder(EMBEDDED_FOLDER, task, source=f"embedded:{name}", clip_actions=clip_actions)


def _load_dsrl(
    task: Task | None, revision: str | None, token: str | bool | None, clip_actions: bool
) -> TransitionDataset:
    # DSRL keeps its downloads here; who has them already need not fetch some 100 MB again.
    folder = Path(os.environ.get("DSRL_DATASET_DIR", "~/.dsrl/datasets")).expanduser()
    if task is not None and revision is None and (folder / task.dataset_file).is_file():
        return load_hdf5(folder / task.dataset_file, task, clip_actions=clip_actions)
    return _load_dsrl_from_hub(task, revision, token, clip_actions)


def _load_dsrl_from_hub(
    task: Task | None, revision: str | None, token: str | bool | None, clip_actions: bool
) -> TransitionDataset:
    if task is None:
        raise DatasetError(f"{DSRL_DATASET_REPO}: holds one file per DSRL task; say which task")
    path = download_dsrl_file(task, revision=revision, token=token)
    return load_hdf5(path, task, clip_actions=clip_actions)
