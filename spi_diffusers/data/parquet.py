"""Datasets in the parquet layout, from a local folder or the Hub: their configs, and loading one whole.

The layout: `README.md` with one YAML config per task, and `<task>/train-*.parquet` with one row per
transition: `observation`, `next_observation`, `action` (fixed-size float32 lists), `reward`, `cost`
(float32), `terminated`, `truncated` (bool), `episode_index`, `frame_index` (int64).

Row by row access of `datasets` is some 200 times slower than a tensor gather, so the Arrow columns are
viewed as NumPy arrays without a copy and copied once, whole, into contiguous tensors.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spi_diffusers.data.card import read_card, written_config
from spi_diffusers.data.columns import COLUMNS, INDEX_COLUMNS, VECTOR_COLUMNS, ColumnChecker, DatasetError
from spi_diffusers.data.network import say
from spi_diffusers.data.tasks import TASKS, UnknownTaskError, get_task
from spi_diffusers.data.transitions import TransitionDataset

if TYPE_CHECKING:
    import pyarrow as pa

SPLIT = "train"

DAMAGED = "is not a parquet file, or it is cut off or damaged"


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

    config, files = folder_files(folder, config)
    for file in files:
        try:
            present = pq.read_schema(file).names
        except Exception as error:  # ArrowException or OSError
            raise DatasetError(f"{file}: {DAMAGED} ({error})") from error
        ColumnChecker(file).check_present(present, present)
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
    with hub_builder(repo_id, config, revision) as (builder, config):
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


def folder_files(folder: Path, config: str | None) -> tuple[str, list[str]]:
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
def hub_builder(repo_id: str, config: str | None, revision: str | None) -> Iterator[tuple[Any, str]]:
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
