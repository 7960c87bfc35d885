"""Columns of parquet files, and what is wrong with a file that is none."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spi_diffusers.data.actions import ActionRange
from spi_diffusers.data.assembly import SourceTable, Values
from spi_diffusers.data.columns import DatasetError, list_names
from spi_diffusers.data.costs import names_from_metadata
from spi_diffusers.data.memory import available_memory, check_size
from spi_diffusers.data.roles import ColumnNames, choose_columns
from spi_diffusers.data.signatures import check_signature
from spi_diffusers.messages import say

if TYPE_CHECKING:
    import pyarrow.parquet as pq

#: Rows that are decoded at a time: what `write_parquet_dataset` puts into a row group.
_BATCH_ROWS = 1 << 18
#: Numbered parts of one table, whose rows go on from file to file, as `datasets` writes them.
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.parquet")


def are_shards(files: Sequence[Path]) -> bool:
    """Whether files are by their names the numbered parts of one table."""
    return all(_SHARD.fullmatch(file.name) for file in files)


def open_files(files: Sequence[Path], source: str, named: ColumnNames) -> list[SourceTable]:
    """One table of files whose rows may go on from file to file; else one each, which ends an episode."""
    whole = open_parquet(files, source)
    if len(files) == 1 or are_shards(files):
        return [whole]
    chosen = choose_columns(source, whole.names, named)
    if "truncated" in chosen or ("episode_index" in chosen and "frame_index" in whole.names):
        return [whole]  # which tell where an episode goes on
    return [open_parquet([file], str(file), is_episode=True) for file in files]


def open_parquet(files: Sequence[Path], source: str, *, is_episode: bool = False) -> SourceTable:
    """The table of parquet files whose rows go on from file to file; only those that are used are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = [_metadata(file) for file in files]
    names = metadata[0].schema.to_arrow_schema().names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(f"{files[0]}: has several columns with the name {list_names(twice)}")

    def read(wanted: list[str]) -> Mapping[str, Values]:
        available = available_memory()
        batches: list[list[pa.RecordBatch]] = []
        total = 0
        for file in files:
            try:
                parquet = pq.ParquetFile(file, page_checksum_verification=True)
                there = parquet.schema_arrow.names
                if missing := [name for name in wanted if name not in there]:
                    raise DatasetError(f"{file}: has no column {list_names(missing)}, which {files[0]} has")
                batches.append([])
                # Others, such as pictures of the scene, would take memory for nothing.
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=wanted):
                    batches[-1].append(batch.select(wanted))
                    total += batches[-1][-1].nbytes
                    check_size(source, total, available)
            except DatasetError:
                raise
            except Exception as error:  # ArrowException or OSError
                raise DatasetError(f"{file}: is cut off or damaged: {say(error)}") from error
        try:
            tables = [pa.Table.from_batches(each) for each in batches if each]
            if not tables:
                return {name: metadata[0].schema.to_arrow_schema().empty_table()[name] for name in wanted}
            table = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise DatasetError(f"{source}: its files have columns of other types: {say(error)}") from error
        return {name: table.column(name) for name in wanted}

    def size(wanted: list[str]) -> int:
        return sum(_declared_bytes(*each, wanted) for each in zip(files, metadata, strict=True))

    said = metadata[0].metadata
    stated, costs = ActionRange.from_metadata(said, source), names_from_metadata(said, source)
    return SourceTable(source, names, read, is_episode, size, stated, costs)


def _metadata(file: Path) -> "pq.FileMetaData":
    import pyarrow.parquet as pq

    check_signature(file, b"PAR1", "a parquet file")
    try:
        return pq.read_metadata(file)
    except Exception as error:  # ArrowException or OSError
        raise damaged(file, error) from error


def _declared_bytes(file: Path, metadata: "pq.FileMetaData", wanted: Sequence[str]) -> int:
    """What the values of some columns take as float32, by what the file says of itself."""
    names = sorted(metadata.schema.to_arrow_schema().names, key=len)

    def column_of(leaf: int) -> str:
        path = f"{metadata.schema.column(leaf).path}."  # of a list it goes on: state.list.element
        return [name for name in names if path.startswith(f"{name}.")][-1]

    try:
        leaves = [leaf for leaf in range(metadata.num_columns) if column_of(leaf) in wanted]
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        return 4 * sum(group.column(number).num_values for group in groups for number in leaves)
    except Exception as error:  # ArrowException, UnicodeError or IndexError
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
