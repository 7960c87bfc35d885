"""What a user's `task` names: a task of DSRL's or, where the data is of none, a config of a dataset.

Nothing heavy is imported here, so that a typing error shows at once.
"""

import os
import re
from pathlib import Path

from spi_diffusers.data.tasks import DSRL_DATASET_REPO, Task, UnknownTaskError, get_task

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: What stands for the data in the package and for DSRL's own wherever a dataset is named.
RESERVED_NAMES = ("embedded", "dsrl")
_SPECIAL = '<>:"\\|?*[]{}'  # in file patterns, in names of configs of `datasets`, in the card's code
_FILE_SUFFIXES = (".npz", ".hdf5", ".h5", ".parquet", ".csv", ".gz")


def resolve_task(
    task: str | Task | None, dataset: str | os.PathLike[str] | None
) -> tuple[Task | None, str | None]:
    """Tell which task of DSRL's and which config of a dataset a name means.

    Args:
        task: DSRL id or short form, or the name of a config.
        dataset: what `load_transitions` takes; only a folder or a Hub dataset has configs.

    Returns:
        The task, None where the name is none of DSRL's, and the config's name. Whether the dataset has
        that config is not looked up; `load_transitions` does. Both are None where no name is given.

    Raises:
        UnknownTaskError: DSRL has no such task, and the dataset has no configs.
    """
    if task is None:
        return None, None
    try:
        known = get_task(task)
    except UnknownTaskError:
        if not _has_configs(dataset):
            raise
        return None, str(task)
    return known, known.name


def check_config_name(name: str) -> None:
    """Refuse a name that cannot be that of a config, because it could not be written or loaded again.

    Args:
        name: of a config, which is also that of its folder and stands in file patterns.

    Raises:
        ValueError: it is not a plain folder name, or is that of the dataset card.
    """
    if not name or Path(name).name != name or name.startswith(".") or set(name) & set(_SPECIAL):
        raise ValueError(
            f"config_name must be a plain folder name (--name), without any of {' '.join(_SPECIAL)}, got "
            f"{name!r}"
        )
    if name.lower() == "readme.md":
        raise ValueError(f"config_name cannot be {name!r} (--name): that is the card")


def _has_configs(dataset: str | os.PathLike[str] | None) -> bool:
    if dataset is None or str(dataset) in RESERVED_NAMES:
        return False
    path, text = Path(dataset).expanduser(), str(dataset)
    if path.exists():
        return path.is_dir()
    is_file = path.suffix.lower() in _FILE_SUFFIXES
    return bool(HUB_ID.fullmatch(text)) and not is_file and text.lower() != DSRL_DATASET_REPO.lower()
