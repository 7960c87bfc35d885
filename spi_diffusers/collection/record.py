"""The settings that decide a collection, as they are recorded while it is under way and once it is done.

Under way, they are in `collect.json` of the work folder; done, under `collection` in the `stats.json` of the
dataset. They tell whether the same command given again goes on, has nothing left to do, or means other data.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spi_diffusers.collection.config import CollectConfig
from spi_diffusers.collection.errors import CollectionError
from spi_diffusers.data.card import EPISODES_FILE, STATS_FILE
from spi_diffusers.data.tasks import Task

#: Where in `stats.json` the settings of a finished collection are.
STATS_KEY = "collection"
_WORK_FILE = "collect.json"
_FORMAT_VERSION = 1


def collection_record(task: Task, config: CollectConfig, seed: int, full_precision: bool) -> dict[str, Any]:
    """What decides the episodes that are collected, as it is read back from JSON.

    Args:
        task: The task.
        config: How it is collected.
        seed: Of the collection.
        full_precision: Whether all bits are kept.

    Returns:
        JSON values by name.
    """
    record = {
        "format_version": _FORMAT_VERSION,
        "task": task.name,
        "seed": seed,
        "full_precision": full_precision,
        **asdict(config),
    }
    return json.loads(json.dumps(record))


def claim_work(work: Path, record: dict[str, Any]) -> None:
    """Mark a work folder as that of one collection, or make sure that it is marked so.

    Args:
        work: The work folder.
        record: The collection's.

    Raises:
        CollectionError: The folder belongs to another collection, or its mark cannot be read.
    """
    check_work(work, record)
    file = work / _WORK_FILE
    if not file.exists():
        aside = file.with_suffix(".partial")
        aside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(aside, file)


def check_work(work: Path, record: dict[str, Any]) -> None:
    """Make sure that a work folder, where there is one, does not belong to another collection.

    Args:
        work: The work folder.
        record: The collection's.

    Raises:
        CollectionError: It does, or its mark cannot be read.
    """
    file = work / _WORK_FILE
    if not file.exists():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CollectionError(f"{file}: is not JSON ({error}); remove {work} to start again") from error
    if not isinstance(found, dict):
        raise CollectionError(f"{file}: holds no settings; remove {work} to start again")
    differing = [name for name in record.keys() | found.keys() if record.get(name) != found.get(name)]
    if differing:
        name = min(differing)
        raise CollectionError(
            f"{work}: holds a collection with {name}={found.get(name)!r}, not {record.get(name)!r}; give the "
            f"same settings to go on with it, or remove {work} to start again"
        )


def is_collected(
    task: Task, folder: Path, config: CollectConfig, *, seed: int, max_bytes: int, full_precision: bool
) -> bool:
    """Whether a folder has the dataset that a collection with these settings writes.

    Args:
        task: The task.
        folder: The dataset's folder.
        config: How it is collected.
        seed: Of the collection.
        max_bytes: What the dataset is thinned to.
        full_precision: Whether all bits are kept.

    Returns:
        False also where nothing says by which settings the folder's dataset was collected, or a file is gone.
    """
    dataset = folder / task.name
    if not (any(dataset.glob("train-*.parquet")) and (dataset / EPISODES_FILE).is_file()):
        return False
    try:
        stats = json.loads((dataset / STATS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    record = collection_record(task, config, seed, full_precision) | {"max_bytes": max_bytes}
    return isinstance(stats, dict) and stats.get(STATS_KEY) == record
