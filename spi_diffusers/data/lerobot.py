"""Write a dataset as a LeRobot dataset of version 3.0, which LeRobot loads and the Hub previews.

`tables.py` reads it again, with the same values: beside LeRobot's own columns it has `next.cost`,
`next.terminated`, `next.truncated` and `next.observation.state`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spi_diffusers.data.card import size_category
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import check_destination, to_arrow
from spi_diffusers.files import CARD_FILE, check_new_folder, folder_aside, local_path, to_json

if TYPE_CHECKING:
    import pyarrow as pa

#: LeRobot's name of each of our columns.
LEROBOT_NAMES = {
    "observation": "observation.state",
    "next_observation": "next.observation.state",
    "action": "action",
    "reward": "next.reward",
    "cost": "next.cost",
    "terminated": "next.terminated",
    "truncated": "next.truncated",
    "episode_index": "episode_index",
    "frame_index": "frame_index",
}
#: Steps per second. Transitions have no clock; one step counts as one second.
FPS = 1
_VERSION = "v3.0"
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_FILE_BYTES, _CHUNK_FILES = 100_000_000, 1000  # LeRobot's own: size of a file, files of a folder

_README = """\
---
license: {license}
task_categories:
- reinforcement-learning
- robotics
tags:
- LeRobot
- offline-rl
- safe-rl
size_categories:
- {size}
configs:
- config_name: default
  data_files: data/*/*.parquet
---

# {name}

{episodes} episodes, {rows} steps, for [LeRobot](https://github.com/huggingface/lerobot) (version 3.0 of its
format). Source: {source}.

`next.cost` is the cost of a step, at least 0{costs}; `next.terminated` says that the task itself ended,
`next.truncated` that the episode was cut off, and `next.observation.state` is what the step led to. There is
no clock: one step counts as a second.
"""


def write_lerobot_dataset(
    dataset: TransitionDataset, folder: str | os.PathLike[str], *, license: str = "unknown"
) -> Path:
    """Write a dataset as a LeRobot dataset; everything is there at once, or nothing.

    Args:
        dataset: what to write; the float32 values are kept exactly.
        folder: where to; must not exist, or be empty.
        license: license id as the Hub knows it, for the card.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds something.
        OSError: the disk is full, or the place cannot be written to.
    """
    check_destination(folder)
    path = local_path(folder)
    check_new_folder(path)
    target = path.resolve()
    try:
        with folder_aside(target, replace=False) as aside:
            _write(dataset, aside, target.name, license)
    except OSError as error:
        raise OSError(error.errno, f"the dataset cannot be written ({error})", str(folder)) from error
    return path


def _write(dataset: TransitionDataset, folder: Path, name: str, license: str) -> None:
    import pandas as pd  # type: ignore[import-untyped]
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, episodes = _frames(dataset), dataset.episodes
    task = dataset.task.name if dataset.task else name
    meta: dict[str, list[Any]] = {
        "episode_index": list(range(len(episodes))),
        "tasks": [[task]] * len(episodes),
        "length": episodes.length.tolist(),
        "dataset_from_index": episodes.start.tolist(),
        "dataset_to_index": (episodes.start + episodes.length).tolist(),
        "data/chunk_index": [],
        "data/file_index": [],
        "meta/episodes/chunk_index": [0] * len(episodes),
        "meta/episodes/file_index": [0] * len(episodes),
    }
    for number, (first, last) in enumerate(_split(dataset, table.nbytes)):
        place = {"chunk_index": number // _CHUNK_FILES, "file_index": number % _CHUNK_FILES}
        start, stop = meta["dataset_from_index"][first], meta["dataset_to_index"][last - 1]
        path = folder / "data" / _FILE.format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(start, stop - start), path, compression="zstd", write_page_checksum=True)
        for key, value in place.items():
            meta[f"data/{key}"] += [value] * (last - first)
    path = folder / "meta" / "episodes" / _FILE.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(meta), path)
    # LeRobot takes the tasks' texts from the index of a pandas table.
    tasks = pd.DataFrame({"task_index": [0]}, index=pd.Index([task], name="task"))
    tasks.to_parquet(folder / "meta" / "tasks.parquet")
    (folder / "meta" / "stats.json").write_bytes(to_json(_statistics(table)))
    (folder / "meta" / "info.json").write_bytes(to_json(_info(dataset, table)))
    readme = _README.format(
        license=license,
        size=size_category(len(dataset)),
        name=name,
        episodes=len(episodes),
        rows=len(dataset),
        source=Path(dataset.source).name,
        costs=f" (of each: {', '.join(dataset.cost_names)})" if len(dataset.cost_names) > 1 else "",
    )
    (folder / CARD_FILE).write_text(readme, encoding="utf-8")


def _frames(dataset: TransitionDataset) -> "pa.Table":
    """One row per step, in LeRobot's columns; of a vector of one number it wants the number."""
    import numpy as np
    import pyarrow as pa

    ours = to_arrow(dataset)
    columns = {
        name: pa.array(column.combine_chunks().flatten())
        if pa.types.is_fixed_size_list(column.type) and column.type.list_size == 1
        else column
        for name, column in zip(LEROBOT_NAMES.values(), ours.columns, strict=True)
    }
    frame = dataset.frame_index.cpu().numpy()
    columns["next.done"] = pa.array((dataset.transitions.terminated | dataset.transitions.truncated).numpy())
    columns["timestamp"] = pa.array((frame / FPS).astype(np.float32))
    columns["index"] = pa.array(np.arange(len(dataset)))
    columns["task_index"] = pa.array(np.zeros(len(dataset), dtype=np.int64))
    return pa.table(columns, metadata=ours.schema.metadata)


def _split(dataset: TransitionDataset, size: int) -> Iterator[tuple[int, int]]:
    """First episode and the one after the last of each file."""
    rows = max(_FILE_BYTES * len(dataset) // size, 1)
    first, start = 0, 0
    for number, stop in enumerate((dataset.episodes.start + dataset.episodes.length).tolist()):
        if stop - start >= rows or number == dataset.num_episodes - 1:
            yield first, number + 1
            first, start = number + 1, stop


def _values(column: "pa.ChunkedArray") -> Any:
    """The values of a column, (N, D)."""
    import pyarrow as pa

    flat = column.combine_chunks()
    if pa.types.is_fixed_size_list(flat.type):
        return flat.flatten().to_numpy().reshape(len(flat), -1)
    return flat.to_numpy(zero_copy_only=False).reshape(len(flat), 1)


def _statistics(table: "pa.Table") -> dict[str, Any]:
    stats = {}
    for name in table.column_names:
        values = _values(table.column(name)).astype(float)
        stats[name] = {key: getattr(values, key)(axis=0).tolist() for key in ("min", "max", "mean", "std")}
        stats[name]["count"] = [len(values)]
    return stats


def _info(dataset: TransitionDataset, table: "pa.Table") -> dict[str, Any]:
    names = {LEROBOT_NAMES["cost"]: list(dataset.cost_names)} if len(dataset.cost_names) > 1 else {}
    return {
        "codebase_version": _VERSION,
        "robot_type": None,
        "total_episodes": dataset.num_episodes,
        "total_frames": len(dataset),
        "total_tasks": 1,
        "chunks_size": _CHUNK_FILES,
        "data_files_size_in_mb": _FILE_BYTES // 10**6,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {"train": f"0:{dataset.num_episodes}"},
        "data_path": f"data/{_FILE}",
        "video_path": None,
        "features": {
            name: {
                "dtype": str(_values(table.column(name).slice(0, 1)).dtype),
                "shape": [_values(table.column(name).slice(0, 1)).shape[1]],
                "names": names.get(name),
            }
            for name in table.column_names
        },
    }
