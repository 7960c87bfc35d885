"""Write a dataset in the parquet layout: rows, episode table, statistics, and a dataset card."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spi_diffusers.data.card import EPISODES_FILE, STATS_FILE, make_card, read_stats, save_scatter
from spi_diffusers.data.columns import COLUMNS, VALUE_COLUMNS, VECTOR_COLUMNS
from spi_diffusers.data.costs import names_to_metadata
from spi_diffusers.data.tasks import RESERVED_NAMES, as_path, check_config_name
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.files import CARD_FILE, local_path, sha256_of, to_json
from spi_diffusers.leftovers import hidden_folder, remove_leftovers
from spi_diffusers.locks import turn

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN_FILE = "train-00000-of-00001.parquet"
#: Rows of a row group, at most.
ROW_GROUP_SIZE = 1 << 18


def write_parquet_dataset(
    dataset: TransitionDataset,
    folder: str | os.PathLike[str],
    *,
    config_name: str | None = None,
    source: str | None = None,
    description: str = "",
    license: str = "cc-by-4.0",
    location: str | None = None,
    more_stats: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a dataset as one config of a folder that `load_transitions` and `datasets` can load.

    The folder gets `README.md` (the card) and, under the config's name, `train-00000-of-00001.parquet`,
    `episodes.parquet`, `stats.json` and `cost_return.png`. The card's YAML names only the first, so
    `datasets` loads nothing else. A folder that exists keeps its other configs and its own words on the
    card. Everything is written aside and then renamed: a failure, e.g. a full disk, leaves the folder
    as it was. Of several processes that write into the same folder each waits for its turn. The same data
    gives the same bytes with the same versions of pyarrow and matplotlib.

    Args:
        dataset: what to write; the float32 values are kept exactly.
        folder: where to; made if it does not exist.
        config_name: name of the config, the dataset's task by default.
        source: where the data comes from, for the card; the last part of `dataset.source` by default.
        description: how the data was made, for the card (Markdown).
        license: license id as the Hub knows it.
        location: what a reader passes to `load_transitions`, for the card; by default the folder as seen
            from the current one, where it is in there, and else its whole path.
        more_stats: JSON values that `stats.json` shall hold besides what is written there anyway.
        overwrite: replace the config if the folder has it already.

    Returns:
        The folder.

    Raises:
        ValueError: neither the dataset nor the caller names the config, or the name is not a plain one, or
            the folder has a reserved name.
        FileExistsError: the folder has this config and `overwrite` is off, something that is no config has
            its name, or `folder` is a file.
        OSError: the disk is full, or the place cannot be written to.
        DatasetError: the folder has a card that cannot be read.
    """
    config = config_name or (dataset.task.name if dataset.task else None)
    if config is None:
        raise ValueError(f"{dataset.source}: has no task; name the config with config_name=")
    check_config_name(config)
    check_destination(folder)
    folder = local_path(folder)
    _check_replaceable(folder, config, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # On the same file system as the folder, which may be a mount point or a link.
        with hidden_folder(folder, folder if folder.exists() else folder.parent) as aside:
            staged = aside / "new" / config
            staged.mkdir(parents=True)
            stats = _write_config(dataset, staged, config)
            stats |= {
                "source": source if source is not None else Path(dataset.source).name,
                "license": license,
                "description": description,
                **(more_stats or {}),
            }
            (staged / STATS_FILE).write_bytes(to_json(stats))
            with turn(folder):
                _check_replaceable(folder, config, overwrite)  # another process may have written it meanwhile
                readme = folder / CARD_FILE
                there = read_stats(folder)
                tasks = [*(task for task in there if task["config"] != config), stats]
                card = make_card(
                    sorted(tasks, key=lambda task: task["config"]),
                    readme if readme.is_file() else None,
                    location=location or _location(folder),
                    replaced=[task for task in there if task["config"] == config],
                )
                (aside / "new" / CARD_FILE).write_text(str(card).rstrip() + "\n", encoding="utf-8")
                _move_into_place(aside, folder, config)
                for left_in in (folder, folder.parent):
                    remove_leftovers(left_in, of=folder)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"the dataset cannot be written ({error}); nothing that was there has changed",
            str(folder),
        ) from error
    return folder


def _location(folder: Path) -> str:
    """What to pass to `load_transitions` here to get the folder."""
    whole = folder.absolute()
    return as_path(str(whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole))


def check_destination(folder: str | os.PathLike[str]) -> None:
    """Refuse what cannot be a folder of datasets, before there is anything to write.

    ValueError if it has no name or a reserved one, FileExistsError if it is a file.
    """
    if not os.fspath(folder):  # an unset variable of a shell; it would be the current folder
        raise ValueError("the folder for the dataset has an empty name; '.' is the current folder")
    if str(Path(folder)) in RESERVED_NAMES:  # also as ./dsrl
        raise ValueError(f"{folder}: is a reserved name of a dataset; choose another folder")
    path = local_path(folder)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{folder}: is a file; name a folder")


def has_config(folder: str | os.PathLike[str], config: str) -> bool:
    """Whether a folder has a config of a name, which may then be replaced; an empty folder is none.

    FileExistsError if a file, or a folder that is no config, has the name: it must not be replaced.
    """
    target = local_path(folder) / config
    if target.is_file():
        raise FileExistsError(f"{target}: is a file, so a config cannot have its name")
    if not target.exists() or not any(target.iterdir()):
        return False
    if (target / STATS_FILE).is_file() or any(target.glob("train-*.parquet")):
        return True
    raise FileExistsError(
        f"{target}: is a folder that holds no config of a dataset, and stays as it is; choose another "
        "folder or another name"
    )


def _check_replaceable(folder: Path, config: str, overwrite: bool) -> None:
    if has_config(folder, config) and not overwrite:
        raise FileExistsError(
            f"{folder / config}: exists already; pass overwrite=True or choose another folder"
        )


def to_arrow(dataset: TransitionDataset) -> "pa.Table":
    """Turn N transitions into an Arrow table of the parquet layout; floats share the tensors' memory.

    Its metadata says what several costs are called, and the range of the actions where that is stated.
    """
    import pyarrow as pa

    columns: dict[str, pa.Array] = {}
    for name in COLUMNS:
        values = dataset.transitions.recorded(name).cpu().contiguous().numpy()
        if values.ndim > 1:
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        else:
            columns[name] = pa.array(values)
    columns["episode_index"] = pa.array(dataset.episode_index.cpu().numpy())
    columns["frame_index"] = pa.array(dataset.frame_index.cpu().numpy())
    metadata = names_to_metadata(dataset.cost_names)
    if dataset.action_range is not None:
        metadata |= dataset.action_range.to_metadata()
    return pa.table(columns, metadata=metadata or None)


def _write_config(dataset: TransitionDataset, folder: Path, config: str) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = to_arrow(dataset)
    vectors = [*VECTOR_COLUMNS, *(["cost"] if len(dataset.cost_names) > 1 else [])]
    floats = [f"{name}.list.element" for name in vectors] + ["reward"]
    pq.write_table(
        table,
        folder / TRAIN_FILE,
        compression="zstd",
        compression_level=19,
        # Measured on BallCircle: splitting floats into byte planes saves 11% over plain zstd, and a
        # dictionary only costs. Large row groups: who has the memory reads all at once anyway, and who
        # streams reads a row group at a time.
        use_dictionary=False,
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT")
        | {"episode_index": "DELTA_BINARY_PACKED", "frame_index": "DELTA_BINARY_PACKED"},
        row_group_size=ROW_GROUP_SIZE,
        write_page_checksum=True,
    )
    episodes = dataset.episodes
    fields = {
        "episode_index": episodes.episode_index,
        "length": episodes.length,
        "return": episodes.return_,
        "cost_return": episodes.cost_return,
        "terminated": episodes.terminated,
    }
    episode_table = pa.table({name: pa.array(values.cpu().numpy()) for name, values in fields.items()})
    pq.write_table(episode_table, folder / EPISODES_FILE, compression="zstd")
    limits = episodes.usual_cost_limits(dataset.task)
    # Of several costs it shows the sum, where no limit has a place.
    drawn = [limit for limit in limits if not isinstance(limit, tuple)]
    save_scatter(episodes, folder / "cost_return.png", title=config, cost_limits=drawn)
    return {
        "config": config,
        "num_transitions": len(dataset),
        "num_episodes": dataset.num_episodes,
        "observation_dim": dataset.observation_dim,
        "action_dim": dataset.action_dim,
        "sha256": dataset.sha256,
        "files": [
            {
                "path": f"{config}/{name}",
                "bytes": (folder / name).stat().st_size,
                "sha256": sha256_of(folder / name),
            }
            for name in (TRAIN_FILE, EPISODES_FILE)
        ],
        "episodes": {name: _summary(fields[name]) for name in ("length", "return", "cost_return")},
        "best_return_within": [
            {"cost_limit": limit, "return": episodes.best_return_within(limit)} for limit in limits
        ],
        "columns": {
            name: _column_stats(dataset.transitions.recorded(name)) for name in VECTOR_COLUMNS + VALUE_COLUMNS
        },
        **({"cost_names": list(dataset.cost_names)} if len(dataset.cost_names) > 1 else {}),
        "num_terminated": int(dataset.transitions.terminated.sum()),
        "num_truncated": int(dataset.transitions.truncated.sum()),
    }


def _summary(values: torch.Tensor) -> dict[str, float]:
    values = values.double()
    return {
        "min": values.min().item(),
        "median": values.quantile(0.5).item(),
        "mean": values.mean().item(),
        "max": values.max().item(),
    }


def _column_stats(values: torch.Tensor) -> dict[str, Any]:
    values = values.double()
    return {
        "min": values.amin(0).tolist(),
        "max": values.amax(0).tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0, correction=0).tolist(),
    }


def _move_into_place(aside: Path, folder: Path, config: str) -> None:
    new = aside / "new"
    if not folder.exists():
        new.rename(folder)
        return
    target, old = folder / config, aside / "old"
    had_one = target.exists()
    if had_one:
        target.rename(old)
    try:
        (new / config).rename(target)
        (new / CARD_FILE).replace(folder / CARD_FILE)
    except BaseException:
        if had_one:
            shutil.rmtree(target, ignore_errors=True)
            old.rename(target)
        raise
