"""Rows of datasets in the parquet layout by their numbers, from local files or the Hub, a batch at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spi_diffusers.data.actions import ActionRange
from spi_diffusers.data.arrow import column_to_numpy, is_list
from spi_diffusers.data.columns import COLUMNS, INDEX_COLUMNS, VECTOR_COLUMNS, ColumnChecker, DatasetError
from spi_diffusers.data.layout import folder_files, hub_files
from spi_diffusers.data.network import is_transient, with_retries
from spi_diffusers.data.parquet import damaged
from spi_diffusers.messages import say

if TYPE_CHECKING:
    import pyarrow.parquet as pq

#: Rows that are decoded at a time.
BATCH_ROWS = 16_384

Range = tuple[int, int]
Batch = tuple[int, dict[str, np.ndarray]]


def folder_rows(folder: Path, config: str | None = None) -> "ParquetRows":
    """Open the rows of a config of a local folder; arguments and errors as for `load_folder`."""
    config, files = folder_files(folder, config)
    return ParquetRows(files, source=f"{folder} ({config})", config=config)


def hub_rows(repo_id: str, config: str | None = None, *, revision: str | None = None) -> "ParquetRows":
    """Open the rows of a config of a dataset on the Hub, at one commit; no file is downloaded.

    Arguments and errors are those of `load_hub`.
    """
    config, files, commit = hub_files(repo_id, config, revision)
    return ParquetRows(files, source=f"{repo_id}@{commit} ({config})", config=config)


@dataclass(frozen=True)
class RowGroup:
    """Row group `index` of file number `file`: the rows `start` to `stop` - 1 of the dataset."""

    file: int
    index: int
    start: int
    stop: int


class ParquetRows:
    """The rows of several parquet files, numbered through; never more than a batch of a row group is held.

    Local files are read page by page. Files on the Hub (`hf://datasets/...`) are read by ranges, a row
    group's columns at a time, and nothing is kept on disk. DatasetError names a file that is missing,
    damaged, or lacks a column.
    """

    def __init__(self, files: Sequence[str], *, source: str, config: str = ""):
        self.files = list(files)
        self.source = source
        self.config = config
        self._metadata: list[pq.FileMetaData] = []
        self.row_groups: list[RowGroup] = []
        names: set[str] = set(INDEX_COLUMNS)
        start = 0
        for number, file in enumerate(self.files):
            with self._first_opened(number) as parquet:
                schema, metadata = parquet.schema_arrow, parquet.metadata
            ColumnChecker(file).check_present(schema.names, schema.names)
            names &= set(schema.names)
            self._metadata.append(metadata)
            for index in range(metadata.num_row_groups):
                stop = start + metadata.row_group(index).num_rows
                if stop > start:
                    self.row_groups.append(RowGroup(number, index, start, stop))
                start = stop
        self.num_rows = start
        if start == 0:
            raise DatasetError(f"{source}: zero rows; a dataset needs at least one transition")
        self.has_index_columns = names == set(INDEX_COLUMNS)
        self.widths = self._find_widths(schema)
        self.action_range = ActionRange.from_metadata(self._metadata[0].metadata, source)
        if self.action_range is not None:
            self.action_range.check(source, self.widths["action"])

    @property
    def tensor_bytes(self) -> int:
        """Memory that all rows take as tensors: float32 values, bool flags, int64 indices."""
        floats = sum(self.widths.values()) + 2
        return self.num_rows * (4 * floats + 2 + 16)

    @property
    def is_remote(self) -> bool:
        """Whether the files are on the Hub."""
        return any(file.startswith("hf://") for file in self.files)

    def read(self, ranges: Sequence[Range], columns: Sequence[str] = COLUMNS) -> Iterator[Batch]:
        """Read rows, each row group at most once and no further than needed.

        `ranges` are (first row, row after the last), in increasing order, without overlap. Yields (number of
        the first row, arrays by column): neighboring rows of one range, vectors (n, D), else (n,).
        DatasetError if a row group cannot be read or holds nulls.
        """
        for group in self.row_groups:
            wanted = [
                (max(start, group.start), min(stop, group.stop))
                for start, stop in ranges
                if start < group.stop and stop > group.start
            ]
            if wanted:
                yield from self._read_group(group, wanted, columns)

    def read_all(self, columns: Sequence[str] = COLUMNS) -> Iterator[Batch]:
        """Read all rows in order; see `read`."""
        return self.read([(0, self.num_rows)], columns)

    def _read_group(self, group: RowGroup, wanted: list[Range], columns: Sequence[str]) -> Iterator[Batch]:
        file, position = self.files[group.file], group.start
        batches = self._batches(group, wanted[-1][1], columns)

        def following() -> Batch | None:
            """The batch after `position`; after a failure the group is read anew up to there."""
            nonlocal batches
            try:
                return next((batch for batch in batches if batch[0] >= position), None)
            except Exception:
                batches = self._batches(group, wanted[-1][1], columns)
                raise

        while True:
            try:
                batch = with_retries(following, what=f"Reading {file} from row {position}", attempts=5)
            except DatasetError:
                raise
            except Exception as error:  # Arrow, fsspec and the Hub's client raise many unrelated types here
                raise DatasetError(
                    f"{file}: rows {group.start} to {group.stop - 1} cannot be read: {say(error)}"
                ) from error
            if batch is None:
                if position < wanted[-1][1]:
                    raise DatasetError(
                        f"{file}: declares rows {group.start} to {group.stop - 1}, but holds none "
                        f"from {position} on; it is cut off or damaged"
                    )
                return
            first, arrays = batch
            position = first + _length(arrays)
            for start, stop in wanted:
                start, stop = max(start, first), min(stop, position)
                if start < stop:
                    yield start, {n: values[start - first : stop - first] for n, values in arrays.items()}

    def _batches(self, group: RowGroup, stop: int, columns: Sequence[str]) -> Iterator[Batch]:
        """The rows of a row group from its start to at least `stop`."""
        import pyarrow as pa

        label = f"{self.files[group.file]}"
        first = group.start
        with self._open(group.file) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group.index], columns=list(columns)):
                yield (
                    first,
                    {
                        name: column_to_numpy(
                            pa.chunked_array([batch.column(name)]), name, label, first_row=first
                        )
                        for name in columns
                    },
                )
                first += batch.num_rows
                if first >= stop:
                    return

    def _first_opened(self, number: int) -> "pq.ParquetFile":
        try:
            return with_retries(partial(self._open, number), what=f"Opening {self.files[number]}")
        except DatasetError:
            raise
        except Exception as error:
            raise DatasetError(f"{self.files[number]}: cannot be reached ({say(error)})") from error

    def _open(self, number: int) -> "pq.ParquetFile":
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = self.files[number]
        options: dict[str, Any] = {"page_checksum_verification": True}
        if number < len(self._metadata):
            options["metadata"] = self._metadata[number]
        try:
            if file.startswith("hf://"):
                from huggingface_hub import HfFileSystem

                # Arrow asks for whole column chunks at once, so reading ahead would only fetch twice.
                source = HfFileSystem().open(file, "rb", cache_type="none")
                return pq.ParquetFile(source, pre_buffer=True, **options)
            # Buffered reading, or else Arrow holds the whole row group's bytes.
            return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, **options)
        except Exception as error:
            if is_transient(error):
                raise  # who calls tries again
            if isinstance(error, pa.ArrowException | OSError):
                raise damaged(file, error) from error
            raise DatasetError(f"{file}: cannot be opened ({say(error)})") from error

    def _find_widths(self, schema: Any) -> dict[str, int]:
        """Length of the vectors: as the type says, or that of the first row where the type does not."""
        import pyarrow as pa

        if is_list(schema.field("cost").type):
            raise DatasetError(
                f"{self.source}: data with several costs cannot be streamed; load it into memory "
                "(streaming=false, --streaming false)"
            )
        types = {name: schema.field(name).type for name in VECTOR_COLUMNS}
        if all(pa.types.is_fixed_size_list(type_) for type_ in types.values()):
            return {name: type_.list_size for name, type_ in types.items()}
        for _, arrays in self.read([(0, 1)], VECTOR_COLUMNS):
            return {name: values.shape[1] for name, values in arrays.items()}
        raise AssertionError("there is a first row")


def _length(arrays: dict[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values())))
