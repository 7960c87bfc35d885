"""Datasets in the parquet layout, from a local folder or the Hub: whole into memory, or row by row number.

The layout: `README.md` with one YAML config per task, and `<task>/train-*.parquet` with one row per
transition: `observation`, `next_observation`, `action` (fixed-size float32 lists), `reward`, `cost`
(float32), `terminated`, `truncated` (bool), `episode_index`, `frame_index` (int64).

Row by row access of `datasets` is some 200 times slower than a tensor gather, so the Arrow columns are
viewed as NumPy arrays without a copy and copied once, whole, into contiguous tensors.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spi_diffusers.data.card import read_card, written_config
from spi_diffusers.data.columns import COLUMNS, INDEX_COLUMNS, VECTOR_COLUMNS, ColumnChecker, DatasetError
from spi_diffusers.data.network import is_transient, say, with_retries
from spi_diffusers.data.tasks import TASKS, UnknownTaskError, get_task
from spi_diffusers.data.transitions import TransitionDataset

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SPLIT = "train"
#: Rows that are decoded at a time.
BATCH_ROWS = 16_384

Range = tuple[int, int]
Batch = tuple[int, dict[str, np.ndarray]]
_DAMAGED = "is not a parquet file, or it is cut off or damaged"


# ---- whole configs in memory


def load_folder(
    folder: Path, config: str | None = None, *, source: str | None = None, clip_actions: bool = False
) -> TransitionDataset:
    """Load a config, by default the only one, from a local folder in the parquet layout.

    The files are read directly: nothing is downloaded, and no copy is left in a cache. `source` is what
    messages call the data. UnknownTaskError if `config` is neither a config nor a DSRL task; DatasetError if
    the folder lacks it (the message lists what there is), or a file is missing, damaged or fails the checks.
    """
    import pyarrow.parquet as pq

    config, files = _folder_files(folder, config)
    for file in files:
        try:
            present = pq.read_schema(file).names
        except Exception as error:  # ArrowException or OSError
            raise DatasetError(f"{file}: {_DAMAGED} ({error})") from error
        _check_columns(file, present)
    # Others, such as pictures of the scene, would take memory for nothing.
    wanted = [name for name in (*COLUMNS, *INDEX_COLUMNS) if name in present]
    try:
        table = pq.read_table(files, columns=wanted, partitioning=None, page_checksum_verification=True)
    except Exception as error:
        raise DatasetError(f"{folder}: config {config!r} cannot be read: {say(error)}") from error
    return _from_table(table, source or str(folder), config, clip_actions)


def load_hub(
    repo_id: str, config: str | None = None, *, revision: str | None = None, clip_actions: bool = False
) -> TransitionDataset:
    """Load a config, by default the only one, of a Hub dataset; files are cached by `datasets`.

    The dataset's source is `repo_id@commit`. UnknownTaskError as for `load_folder`; DatasetError if
    repository, revision or config does not exist, the Hub cannot be reached and nothing is cached, or the
    columns do not pass the checks.
    """
    with _hub_builder(repo_id, config, revision) as (builder, config):
        builder.download_and_prepare()
        table = builder.as_dataset(split=SPLIT).data.table
    # For a Hub dataset the builder's hash is the commit, whether it came from the Hub or from the cache.
    source = f"{repo_id}@{builder.hash or revision or 'main'}"
    return _from_table(table, source, config, clip_actions)


def _from_table(table: "pa.Table", source: str, config: str, clip_actions: bool) -> TransitionDataset:
    label = f"{source} ({config})" if config not in source else source
    ColumnChecker(label).check_present(table.column_names, table.column_names)
    columns = {
        name: column_to_numpy(table.column(name), name, label)
        for name in (*COLUMNS, *INDEX_COLUMNS)
        if name in table.column_names
    }
    return TransitionDataset.from_columns(
        columns, task=TASKS.get(config), source=label, clip_actions=clip_actions
    )


# ---- configs and their files


def folder_configs(folder: Path) -> list[str]:
    """List the configs (tasks) that the dataset card of a folder declares, in its order.

    DatasetError without a readable card that declares configs, or if the files of one are gone.
    """
    readme = folder / "README.md"
    if not readme.is_file():
        inside = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise DatasetError(
            f"{folder}: is not a dataset folder: it has no README.md that declares its configs (it holds "
            f"{inside}). `spi data convert` makes such a folder"
        )
    configs = read_card(readme).data.get("configs") or []
    if not configs:
        raise DatasetError(f"{readme}: the YAML header declares no `configs`; one per task is needed")
    names = [config["config_name"] for config in configs]
    for config in configs:
        name = config["config_name"]
        # `datasets` would refuse every config because of one whose files are gone, without naming it.
        if config == written_config(name) and not any(folder.glob(f"{name}/train-*.parquet")):
            raise DatasetError(
                f"{readme}: declares the config {name!r}, but there is no {name}/train-*.parquet; restore "
                "the files, or remove the config from `configs` in the YAML header"
            )
    return names


def pick_config(where: str, names: list[str], wanted: str | None = None) -> str:
    """Pick the wanted one of the `names` of configs, or the only one.

    UnknownTaskError if it is neither a config nor a DSRL task; DatasetError if the dataset (`where` in
    messages) lacks it, or has several configs and none is wanted.
    """
    listing = ", ".join(names)
    if wanted is None:
        if len(names) == 1:
            return names[0]
        raise DatasetError(f"{where}: holds several tasks; say which one: {listing}")
    if wanted not in names:
        try:
            get_task(wanted)
        except UnknownTaskError as error:
            raise UnknownTaskError(f"{error} Nor is it a config of {where}, which has {listing}") from None
        raise DatasetError(f"{where}: has no config for task {wanted}. Available: {listing}")
    return wanted


def _folder_files(folder: Path, config: str | None) -> tuple[str, list[str]]:
    """The name of a local config and the files of its rows, as `datasets` understands the card."""
    import datasets

    config = pick_config(str(folder), folder_configs(folder), config)
    try:
        # A builder makes a cache folder; give it one that goes away again.
        with tempfile.TemporaryDirectory() as cache:
            builder = datasets.load_dataset_builder(
                str(folder), config, cache_dir=cache, **_verify_checksums()
            )
    except Exception as error:  # datasets, fsspec and Arrow raise many unrelated types here
        if _is_no_parquet(error):
            raise DatasetError(f"{folder}: config {config!r} {_NO_PARQUET}") from error
        raise DatasetError(f"{folder}: config {config!r} cannot be read: {say(error)}") from error
    files = [str(file) for file in (builder.config.data_files or {}).get(SPLIT, [])]
    if not files:
        raise DatasetError(f"{folder}: config {config!r} declares no files for the split {SPLIT!r}")
    return config, files


@contextmanager
def _hub_builder(repo_id: str, config: str | None, revision: str | None) -> Iterator[tuple[Any, str]]:
    """The builder of a config on the Hub, and its name; what is done with it fails as a `DatasetError`."""
    import datasets

    try:
        if config is None:
            config = pick_config(repo_id, datasets.get_dataset_config_names(repo_id, revision=revision), None)
        try:
            builder = datasets.load_dataset_builder(repo_id, config, revision=revision, **_verify_checksums())
        except Exception:
            if config not in TASKS:  # says which there are; without the Hub, the cache knows no list
                pick_config(repo_id, datasets.get_dataset_config_names(repo_id, revision=revision), config)
            raise
        _check_commit(builder, repo_id, revision)
        yield builder, config
    except (DatasetError, UnknownTaskError):
        raise
    except Exception as error:  # datasets, huggingface_hub and httpx raise many unrelated types here
        if _is_no_parquet(error):
            raise DatasetError(f"{repo_id}: config {config!r} {_NO_PARQUET}") from error
        what = f"config {config!r}" if config else "the list of configs"
        raise DatasetError(
            f"{repo_id}: {what} cannot be loaded from the Hub (revision {revision or 'main'!r}): "
            f"{say(error)}. (No local file or folder has that name.)"
        ) from error


_NO_PARQUET = (
    "is not in parquet files, and nothing else loads. `spi data convert TABLE FOLDER` turns a CSV table "
    "into such files"
)


def _is_no_parquet(error: Exception) -> bool:
    """Whether `datasets` has taken files of another format for its reader, which has not our options."""
    return isinstance(error, ValueError) and "doesn't have a" in str(error)


def _check_commit(builder: Any, repo_id: str, revision: str | None) -> None:
    """Refuse what `datasets` takes where the Hub cannot be reached: the newest commit that it has cached."""
    from datasets.packaged_modules.cache.cache import Cache
    from huggingface_hub import try_to_load_from_cache

    if revision is None or not isinstance(builder, Cache):
        return
    card = try_to_load_from_cache(repo_id, "README.md", repo_type="dataset", revision=revision)
    commit = Path(card).parent.name if isinstance(card, str) else revision
    if builder.hash != commit:
        raise DatasetError(
            f"{repo_id}: the Hub cannot be reached, and what is cached is of commit {builder.hash}, not of "
            f"revision {revision!r}"
        )


def _verify_checksums() -> dict[str, Any]:
    # Random-looking floats are stored as they are, so damaged ones decompress without an error; only
    # the pages' checksums tell (where the writer made them: `write_parquet_dataset` does).
    import pyarrow.dataset as ds

    return {"fragment_scan_options": ds.ParquetFragmentScanOptions(page_checksum_verification=True)}


def _check_columns(file: str, present: Sequence[str]) -> None:
    for column in COLUMNS:
        if column not in present:
            raise DatasetError(f"{file}: column {column!r} is missing; the file has {', '.join(present)}")


# ---- Arrow columns as NumPy arrays


def column_to_numpy(
    column: "pa.ChunkedArray", name: str, source: str, *, vector: bool | None = None, first_row: int = 0
) -> np.ndarray:
    """View an Arrow column as a NumPy array: (N,) for numbers and bools, (N, D) for lists.

    One chunk of numbers is viewed in place (read-only); several chunks are joined by one copy, and bool
    columns are unpacked from bits. `vector` says whether lists are expected, by default what the name means
    in our layout. DatasetError for nulls, lists of different lengths, or what is not a number.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    def error(problem: str) -> DatasetError:
        return DatasetError(f"{source}: column {name!r} {problem}")

    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if array.null_count:
        row = first_row + pc.index(pc.is_null(array), True).as_py()
        raise error(f"has {array.null_count} missing values (null), first in row {row}")
    lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    is_list = any(check(array.type) for check in lists)
    if vector is None:
        vector = name in VECTOR_COLUMNS
    if is_list != vector:
        wanted = "one list of numbers per row" if vector else "one number per row"
        raise error(f"must hold {wanted}, not {array.type}")
    width = 0
    if is_list:
        lengths = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) > 1:
            raise error(f"holds lists of different lengths: {sorted(lengths)[:5]}")
        width = lengths[0] if lengths else getattr(array.type, "list_size", 0)
        rows, array = len(array), array.flatten()
        if array.null_count:
            row = first_row + pc.index(pc.is_null(array), True).as_py() // width
            raise error(f"has {array.null_count} missing values (null), first in row {row}")
    numeric = pa.types.is_floating(array.type) or pa.types.is_integer(array.type)
    if not (numeric or pa.types.is_boolean(array.type)):
        raise error(f"must hold numbers, not {array.type}")
    values = array.to_numpy(zero_copy_only=numeric)
    return values.reshape(rows, width) if is_list else values


# ---- rows by their numbers


def folder_rows(folder: Path, config: str | None = None) -> "ParquetRows":
    """Open the rows of a config of a local folder; arguments and errors as for `load_folder`."""
    config, files = _folder_files(folder, config)
    return ParquetRows(files, source=f"{folder} ({config})", config=config)


def hub_rows(repo_id: str, config: str | None = None, *, revision: str | None = None) -> "ParquetRows":
    """Open the rows of a config of a dataset on the Hub, at one commit; no file is downloaded.

    Arguments and errors are those of `load_hub`; it is an error, too, if the files are only in the cache.
    """
    with _hub_builder(repo_id, config, revision) as (builder, config):
        files = [str(file) for file in (getattr(builder.config, "data_files", None) or {}).get(SPLIT, [])]
        if not files or not all(file.startswith("hf://") for file in files):
            raise DatasetError(
                f"{repo_id}: config {config!r} has no files on the Hub that can be streamed; "
                "without a connection, what is cached can only be loaded as a whole"
            )
    return ParquetRows(files, source=f"{repo_id}@{builder.hash or revision} ({config})", config=config)


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
            _check_columns(file, schema.names)
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
            damaged = isinstance(error, pa.ArrowException | OSError)
            raise DatasetError(
                f"{file}: {_DAMAGED if damaged else 'cannot be opened'} ({say(error)})"
            ) from error

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
