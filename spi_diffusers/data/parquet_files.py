"""Columns of parquet files, and what is wrong with a file that is none."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spi_diffusers.data.assembly import Columns, Values
from spi_diffusers.data.columns import DatasetError, list_names
from spi_diffusers.data.memory import check_size
from spi_diffusers.data.network import say
from spi_diffusers.data.signatures import check_signature

if TYPE_CHECKING:
    import pyarrow.parquet as pq


def parquet_part(files: Sequence[Path], source: str, *, is_episode: bool = False) -> Columns:
    """The columns of parquet files whose rows go on from file to file; only those that are used are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = [_metadata(file) for file in files]
    names = metadata[0].schema.to_arrow_schema().names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(f"{files[0]}: has several columns with the name {list_names(twice)}")

    def read(wanted: list[str]) -> Mapping[str, Values]:
        check_size(source, sum(_unpacked_bytes(each, wanted) for each in metadata), _stored_bytes(files))
        tables = []
        for file, each in zip(files, metadata, strict=True):
            there = each.schema.to_arrow_schema().names
            if missing := [name for name in wanted if name not in there]:
                raise DatasetError(f"{file}: has no column {list_names(missing)}, which {files[0]} has")
            try:
                # Others, such as pictures of the scene, would take memory for nothing.
                tables.append(
                    pq.read_table(file, columns=wanted, partitioning=None, page_checksum_verification=True)
                )
            except Exception as error:  # ArrowException or OSError
                raise DatasetError(f"{file}: is cut off or damaged: {say(error)}") from error
        try:
            table = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise DatasetError(f"{source}: its files have columns of other types: {say(error)}") from error
        return {name: table.column(name) for name in wanted}

    return Columns(source, names, read, is_episode)


def _metadata(file: Path) -> "pq.FileMetaData":
    import pyarrow.parquet as pq

    check_signature(file, b"PAR1", "a parquet file")
    try:
        return pq.read_metadata(file)
    except Exception as error:  # ArrowException or OSError
        raise damaged(file, error) from error


def damaged(file: str | Path, error: Exception) -> DatasetError:
    """The error for a file that cannot be opened as parquet; it says what the file is, if that is known."""
    path = Path(file)
    if path.is_file():
        try:
            check_signature(path, b"PAR1", "a parquet file")
        except DatasetError as known:
            return known
    return DatasetError(f"{file}: is not a parquet file, or it is cut off or damaged ({say(error)})")


_BYTES = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8}


def _unpacked_bytes(metadata: "pq.FileMetaData", wanted: list[str]) -> int:
    total = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            path = column.path_in_schema
            if any(path == name or path.startswith(f"{name}.") for name in wanted):
                total += max(
                    column.num_values * _BYTES.get(column.physical_type, 0), column.total_uncompressed_size
                )
    return total


def _stored_bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)
