"""Rows of parquet files by their numbers, without ever holding more than a batch of a row group.

Local files are read page by page. Files on the Hub (`hf://datasets/...`) are read by ranges, a row group's
columns at a time, and nothing is kept on disk.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from spi_diffusers.data.arrow import column_to_numpy
from spi_diffusers.data.columns import COLUMNS, INDEX_COLUMNS, VECTOR_COLUMNS, DatasetError
from spi_diffusers.data.network import is_transient, say, with_retries

if TYPE_CHECKING:
    import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

#: Rows that are decoded at a time.
BATCH_ROWS = 16_384
#: How often a row group is tried again in a row without having brought new rows.
ATTEMPTS = 5

Range = tuple[int, int]
Batch = tuple[int, dict[str, np.ndarray]]


@dataclass(frozen=True)
class RowGroup:
    """Rows that a parquet file holds together.

    Attributes:
        file: index of the file.
        index: which row group of that file.
        start: number of its first row in the dataset.
        stop: number of the row after its last.
    """

    file: int
    index: int
    start: int
    stop: int


class ParquetRows:
    """The rows of several parquet files, numbered through.

    Args:
        files: local paths, or addresses that start with `hf://`, in the order of their rows.
        source: what to call the data in messages.
        token: access token for files on the Hub; True takes the stored one.

    Raises:
        DatasetError: a file is missing, cut off, not parquet, or lacks a column; the message names it.
    """

    def __init__(self, files: Sequence[str], *, source: str, token: str | bool | None = None):
        self.files = list(files)
        self.source = source
        self._token = token
        self._metadata: list[pq.FileMetaData] = []
        self.row_groups: list[RowGroup] = []
        names: set[str] = set(INDEX_COLUMNS)
        start = 0
        for number, file in enumerate(self.files):
            with self._first_opened(number) as parquet:
                schema, metadata = parquet.schema_arrow, parquet.metadata
            names &= set(self._column_names(file, schema))
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

        Args:
            ranges: (first row, row after the last), in increasing order, without overlap.
            columns: which columns.

        Yields:
            (number of the first row, arrays by column): neighbouring rows of one range, as they are in the
            file; vectors (n, D), else (n,).

        Raises:
            DatasetError: a row group is damaged or cannot be read, or holds nulls.
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
        failures, done = 0, group.start
        while True:
            try:
                for first, arrays in self._batches(group, wanted[-1][1], columns):
                    for start, stop in wanted:
                        start, stop = max(start, first, done), min(stop, first + _length(arrays))
                        if start < stop:
                            part = {n: values[start - first : stop - first] for n, values in arrays.items()}
                            yield start, part
                            done, failures = stop, 0
                return
            except DatasetError:
                raise
            except Exception as error:  # Arrow, fsspec and the Hub's client raise many unrelated types here
                failures += 1
                if failures >= ATTEMPTS or not is_transient(error):
                    raise DatasetError(
                        f"{self.files[group.file]}: rows {group.start} to {group.stop - 1} cannot be read: "
                        f"{say(error)}"
                    ) from error
                pause = min(2.0 ** (failures - 1), 30.0)
                logger.warning(
                    "%s: stopped at row %d (%s); going on in %.0f s.",
                    *(self.files[group.file], done, say(error), pause),
                )
                time.sleep(pause)

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
                source = HfFileSystem(token=self._token).open(file, "rb", cache_type="none")
                return pq.ParquetFile(source, pre_buffer=True, **options)
            # Buffered reading, or else Arrow holds the whole row group's bytes.
            return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, **options)
        except Exception as error:
            if is_transient(error):
                raise  # who calls tries again
            damaged = isinstance(error, pa.ArrowException | OSError)
            what = "is not a parquet file, or it is cut off or damaged" if damaged else "cannot be opened"
            raise DatasetError(f"{file}: {what} ({say(error)})") from error

    def _column_names(self, file: str, schema: Any) -> list[str]:
        for column in COLUMNS:
            if column not in schema.names:
                raise DatasetError(
                    f"{file}: column {column!r} is missing; the file has {', '.join(schema.names)}"
                )
        return schema.names

    def _find_widths(self, schema: Any) -> dict[str, int]:
        """Length of the vectors: as the type says, or that of the first row where the type does not."""
        import pyarrow as pa

        types = {name: schema.field(name).type for name in VECTOR_COLUMNS}
        if all(pa.types.is_fixed_size_list(type_) for type_ in types.values()):
            return {name: type_.list_size for name, type_ in types.items()}
        for _, arrays in self.read([(0, 1)], VECTOR_COLUMNS):
            return {name: values.shape[1] for name, values in arrays.items()}
        raise AssertionError("there is a first row")


def _length(arrays: dict[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values())))
