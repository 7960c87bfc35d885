"""Datasets in the parquet layout, from a local folder or the Hub, through `datasets`.

The layout: `README.md` with one YAML config per task, and `<task>/train-*.parquet` with one row per
transition: `observation`, `next_observation`, `action` (fixed-size float32 lists), `reward`, `cost`
(float32), `terminated`, `truncated` (bool), `episode_index`, `frame_index` (int64).

Row by row access of `datasets` is some 200 times slower than a tensor gather, so the Arrow columns are
viewed as NumPy arrays without a copy and copied once, whole, into contiguous tensors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spi_diffusers.data.arrow import column_to_numpy
from spi_diffusers.data.columns import COLUMNS, INDEX_COLUMNS, ColumnChecker, DatasetError
from spi_diffusers.data.dataset_configs import (
    ONE_BATCH,
    SPLIT,
    folder_builder,
    folder_configs,
    hub_builder,
    pick_config,
)
from spi_diffusers.data.tasks import TASKS, Task
from spi_diffusers.data.transitions import TransitionDataset

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ConfigFiles:
    """The files that hold a config's rows.

    Attributes:
        config: name of the config.
        files: local paths or `hf://` addresses, in the order of their rows.
        source: what to call the data in messages.
    """

    config: str
    files: tuple[str, ...]
    source: str


def load_folder(
    folder: Path,
    task: Task | None = None,
    *,
    config: str | None = None,
    source: str | None = None,
    clip_actions: bool = False,
) -> TransitionDataset:
    """Load a config from a local folder in the parquet layout.

    The files are read directly: nothing is downloaded, and no copy is left in a cache.

    Args:
        folder: holds `README.md` and `<task>/train-*.parquet`.
        task: the task that it belongs to, where it is one of DSRL's.
        config: its name, by default the task's; may be left out where there is only one.
        source: what to call the data in messages, the folder by default.
        clip_actions: clip actions outside [-1, 1] instead of refusing them.

    Returns:
        The dataset.

    Raises:
        UnknownTaskError: `config` is neither a config nor a task of DSRL's.
        DatasetError: there is no such config (the message lists those there are), a file is missing,
            cut off or not parquet, or its columns do not pass the checks of
            `TransitionDataset.from_columns`.
    """
    import pyarrow as pa
    import pyarrow.parquet

    config = pick_config(str(folder), folder_configs(folder), config or (task.name if task else None))
    with folder_builder(folder, config) as (builder, files):
        # Others, such as pictures of the scene, would be decoded and take memory that nobody expects.
        present = pa.parquet.read_schema(files[0]).names
        builder.config.columns = [name for name in (*COLUMNS, *INDEX_COLUMNS) if name in present]
        stream = builder.as_streaming_dataset(split=SPLIT).with_format("arrow")
        table = pa.concat_tables(list(stream.iter(batch_size=ONE_BATCH)) or [_empty_table(files)])
    return _from_table(table, source or str(folder), config, task, clip_actions)


def find_folder_files(folder: Path, task: Task | None = None, *, config: str | None = None) -> ConfigFiles:
    """Find the files that hold the rows of a config of a local folder.

    Args:
        folder: as for `load_folder`.
        task: as for `load_folder`.
        config: as for `load_folder`.

    Returns:
        The files.

    Raises:
        UnknownTaskError: as `load_folder`.
        DatasetError: as `load_folder`.
    """
    config = pick_config(str(folder), folder_configs(folder), config or (task.name if task else None))
    with folder_builder(folder, config) as (_, files):
        return ConfigFiles(config, tuple(files), f"{folder} ({config})")


def find_hub_files(
    repo_id: str,
    task: Task | None = None,
    *,
    config: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> ConfigFiles:
    """Find the files that hold the rows of a config of a dataset on the Hub; none is downloaded.

    Args:
        repo_id: as for `load_hub`.
        task: as for `load_hub`.
        config: as for `load_hub`.
        revision: as for `load_hub`.
        token: as for `load_hub`.

    Returns:
        The files, as `hf://` addresses of one commit.

    Raises:
        UnknownTaskError: as `load_hub`.
        DatasetError: as `load_hub`; also if the files are only in the cache, offline.
    """
    wanted = config or (task.name if task else None)
    with hub_builder(repo_id, wanted, revision, token) as (builder, config):
        files = [str(file) for file in (getattr(builder.config, "data_files", None) or {}).get(SPLIT, [])]
        if not files or not all(file.startswith("hf://") for file in files):
            raise DatasetError(
                f"{repo_id}: config {config!r} has no files on the Hub that can be streamed; "
                "without a connection, what is cached can only be loaded as a whole"
            )
        return ConfigFiles(config, tuple(files), f"{repo_id}@{builder.hash or revision} ({config})")


def load_hub(
    repo_id: str,
    task: Task | None = None,
    *,
    config: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    clip_actions: bool = False,
) -> TransitionDataset:
    """Load a config from a dataset repository on the Hub; files are cached by `datasets`.

    Args:
        repo_id: `organisation/name`.
        task: the task that it belongs to, where it is one of DSRL's.
        config: its name, by default the task's; may be left out where there is only one.
        revision: branch, tag or commit.
        token: access token for a private repository; True takes the stored one.
        clip_actions: clip actions outside [-1, 1] instead of refusing them.

    Returns:
        The dataset; its source is `repo_id@commit`.

    Raises:
        UnknownTaskError: `config` is neither a config nor a task of DSRL's.
        DatasetError: the repository, the revision or the config does not exist, the Hub cannot be
            reached and nothing is cached, or the columns do not pass the checks of
            `TransitionDataset.from_columns`.
    """
    wanted = config or (task.name if task else None)
    with hub_builder(repo_id, wanted, revision, token) as (builder, config):
        builder.download_and_prepare()
        table = builder.as_dataset(split=SPLIT).data.table
    # For a Hub dataset the builder's hash is the commit, whether it came from the Hub or from the cache.
    source = f"{repo_id}@{builder.hash or revision or 'main'}"
    return _from_table(table, source, config, task, clip_actions)


def _empty_table(files: list[str]) -> "pa.Table":
    import pyarrow.parquet as pq

    return pq.read_schema(files[0]).empty_table()


def _from_table(
    table: "pa.Table", source: str, config: str, task: Task | None, clip_actions: bool
) -> TransitionDataset:
    label = f"{source} ({config})" if config not in source else source
    ColumnChecker(label).check_present(table.column_names, table.column_names)
    columns = {
        name: column_to_numpy(table.column(name), name, label)
        for name in (*COLUMNS, *INDEX_COLUMNS)
        if name in table.column_names
    }
    known = task if task is not None else TASKS.get(config)
    return TransitionDataset.from_columns(columns, task=known, source=label, clip_actions=clip_actions)
