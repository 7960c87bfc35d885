"""Convert datasets of other forms into the parquet layout, one config per task.

`sources.py` says which parts a source holds. Each is loaded, checked and written before the next, so a
failure in the middle leaves the parts before it complete.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.delimited import CsvFormat
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.sources import Part, Request, find_parts
from spi_diffusers.data.tasks import (
    Task,
    UnknownTaskError,
    check_config_name,
    get_task,
    resolve_task,
)
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import check_destination, has_config, write_parquet_dataset
from spi_diffusers.files import local_path


@dataclass(frozen=True)
class ConvertedConfig:
    """What came of one part of a source: the dataset is None where it was there (`keep_existing`)."""

    config: str
    dataset: TransitionDataset | None


def convert_dataset(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    tasks: Sequence[str | Task] = (),
    name: str | None = None,
    columns: ColumnNames | None = None,
    csv: CsvFormat | None = None,
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
            - an `.hdf5` or `.npz` file with one array per column, or a folder of DSRL's;
            - a `.csv` or `.tsv` (also with `.gz`) or `.parquet` table of logged transitions, or a folder with
              one per episode;
            - a LeRobot dataset of version 2 or 3: its folder, or its id on the Hub;
            - `YYY-45/DSRL` or `dsrl`: DSRL's own HDF5 files on the Hub, downloaded and verified;
            - a folder or Hub dataset (`org/name`) in the parquet layout or of other parquet files, or
              `embedded`;
            - a folder of a Minari dataset, or `minari:` and a Minari dataset id.
        folder: where to; made if it does not exist, else the new configs are added to it.
        tasks: which of the source's tasks to convert, all by default; of a dataset in the parquet layout,
            also names of configs without one. For a file that does not have its task in its name, the task
            that it belongs to.
        name: name of the config for data without a DSRL task; dimensions and action range are then free.
            A table whose name tells no task gets its file's name by default, a folder of tables the folder's.
        columns: which columns of the source hold what; by default those with usual names.
        csv: how a CSV file is written, where that is in doubt.
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
    request = Request(
        wanted=tuple(dict.fromkeys(str(resolve_task(task, source)[1]) for task in tasks)),
        name=name,
        columns=columns or ColumnNames(),
        csv=csv or CsvFormat(),
        revision=revision,
        clip_actions=clip_actions,
    )
    check_destination(folder)
    folder = local_path(folder)
    if local_path(source).exists() and folder.resolve() == local_path(source).resolve():
        raise ValueError(f"{folder}: is the source itself; name another folder to write to")
    parts = find_parts(source, request)
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
    path = local_path(source)
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
    parts: list[Part],
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
