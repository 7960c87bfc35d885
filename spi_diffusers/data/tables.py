"""Logged transitions in CSV and parquet tables: one, a folder with one file per episode, or LeRobot's."""

import os
import re
from pathlib import Path

from spi_diffusers.data.assembly import SourceTable
from spi_diffusers.data.card import declared_configs
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.delimited import CsvFormat, read_csv
from spi_diffusers.data.memory import check_size
from spi_diffusers.data.parquet import are_shards, open_parquet
from spi_diffusers.data.roles import natural_order
from spi_diffusers.data.tasks import DSRL_SUFFIXES, TABLE_SUFFIXES, source_kind
from spi_diffusers.files import CARD_FILE, local_path

#: What makes a folder a LeRobot dataset, of version 2 or 3.
LEROBOT_INFO = "meta/info.json"
#: What LeRobot 3 calls the parts of its table.
_LEROBOT_SHARD = re.compile(r"file-\d+\.parquet")


def open_table(path: Path, csv: CsvFormat | None = None, *, is_episode: bool = False) -> SourceTable:
    """A table in a file; a CSV file has the names of its columns in the first line, and is read at once.

    DatasetError if the file is not such a table, or not written as `csv` says.
    """
    if not is_csv(path):
        return open_parquet([path], str(path), is_episode=is_episode)
    table = read_csv(path, csv)
    return SourceTable(
        str(path),
        table.column_names,
        lambda wanted: {name: table.column(name) for name in wanted},
        is_episode,
    )


def open_tables(folder: Path, csv: CsvFormat | None = None) -> list[SourceTable]:
    """The tables of a folder, or of a LeRobot dataset; errors are those of `open_table`.

    Files are taken in natural order of their names. An episode ends with its file: where nothing else tells
    the episodes apart, each file is one. Only numbered parts of one table (`train-00000-of-00002.parquet`,
    LeRobot's `file-000.parquet`) are joined as they are.
    """
    files = folder_tables(folder)
    if not files:
        raise DatasetError(f"{folder}: holds no table ({', '.join(TABLE_SUFFIXES)})")
    # A table takes no less than its text. Parquet files say themselves what they take.
    check_size(str(folder), sum(file.stat().st_size for file in files if is_csv(file)))
    are_lerobots = is_lerobot(folder) and all(_LEROBOT_SHARD.fullmatch(file.name) for file in files)
    if are_lerobots or are_shards(files):
        return [open_parquet(files, str(folder))]
    return [open_table(file, csv, is_episode=True) for file in files]


def folder_tables(folder: Path) -> list[Path]:
    """The tables of a folder in natural order: beside each other, or where LeRobot has them."""
    pattern = "data/*/*" if is_lerobot(folder) else "*"
    files = [file for file in folder.glob(pattern) if is_table(file) and not file.name.startswith(".")]
    return sorted(files, key=lambda file: natural_order(str(file)))


def is_lerobot(folder: Path) -> bool:
    """Whether a folder is a LeRobot dataset."""
    return (folder / LEROBOT_INFO).is_file()


def data_kind(dataset: str | os.PathLike[str] | None) -> str:
    """What a dataset's name stands for: as `source_kind`, but `tables` for a folder of them, also LeRobot's.

    A folder whose card declares configs, or with one of DSRL's files, stays a `folder`.
    """
    kind = source_kind(dataset)
    if kind != "folder":
        return kind
    folder = local_path(str(dataset))
    if is_lerobot(folder):
        return "tables"
    readme = folder / CARD_FILE
    if any(file.suffix.lower() in DSRL_SUFFIXES for file in folder.iterdir()) or not folder_tables(folder):
        return "folder"
    return "folder" if readme.is_file() and declared_configs(readme) else "tables"


def is_table(path: Path) -> bool:
    """Whether a file is a table by its name."""
    return path.name.lower().endswith(TABLE_SUFFIXES)


def is_csv(path: Path) -> bool:
    """Whether a file is a table of text by its name."""
    return is_table(path) and path.suffix.lower() != ".parquet"
