"""Publish a folder in the parquet layout as a dataset on the Hub: checked first, then one commit."""

import fnmatch
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spi_diffusers.data.card import (
    BEGIN,
    EPISODES_FILE,
    STATS_FILE,
    declared_files,
    read_card,
    read_stats_file,
    refresh_header,
)
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.layout import folder_configs
from spi_diffusers.data.parquet_rows import folder_rows
from spi_diffusers.data.summary import scanned_summary
from spi_diffusers.data.tasks import TASKS
from spi_diffusers.files import CARD_FILE, sha256_of
from spi_diffusers.hub.client import HubError
from spi_diffusers.hub.upload_plan import UploadOptions, UploadPlan, plan_upload
from spi_diffusers.progress import progress_bar

#: What a config's folder may hold; nothing else is published.
_ROWS = "train-*.parquet"
_BESIDE = (EPISODES_FILE, STATS_FILE, "cost_return.png")


@dataclass(frozen=True)
class DatasetFiles:
    """Files of a dataset folder: `paths` are published, the card first; `left_out` are not. `configs` are
    tasks, in the order of the card.
    """

    folder: Path
    configs: tuple[str, ...]
    paths: tuple[str, ...]
    left_out: tuple[str, ...]


def find_files(folder: Path) -> DatasetFiles:
    """Find the files of a folder in the parquet layout that make up the dataset. DatasetError: no folder, no
    card, a config without rows or statistics, or rows that are declared outside `<config>/train-*.parquet`.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: is no folder; name a dataset folder, as `spi data convert` makes one")
    configs = folder_configs(folder)
    wanted = [CARD_FILE]
    for config in configs:
        if Path(config).name != config or config.startswith("."):
            raise DatasetError(f"{folder / CARD_FILE}: the config {config!r} is not a plain folder name")
        rows = sorted(path.name for path in (folder / config).glob(_ROWS))
        if not (folder / config / STATS_FILE).is_file():
            raise DatasetError(
                f"{folder / config}: has no {STATS_FILE}, so nothing says whether its rows are right; `spi "
                f"data convert {folder} NEW_FOLDER` makes a folder that has"
            )
        names = rows + [name for name in _BESIDE if (folder / config / name).is_file()]
        wanted += [f"{config}/{name}" for name in names]
    _check_declared_files(folder, configs)
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    return DatasetFiles(folder, tuple(configs), tuple(wanted), tuple(sorted(present - set(wanted))))


def check_folder(files: DatasetFiles, *, progress: bool = True) -> None:
    """Check that every config loads and is what its `stats.json` and the card say; DatasetError says what
    does not agree.
    """
    for config in progress_bar(files.configs, desc="checking", unit=" config", disable=not progress):
        stats = _read_stats(files.folder / config / STATS_FILE, config)
        _check_file_entries(files, config, stats)
        rows = folder_rows(files.folder, config)
        summary = scanned_summary(rows, TASKS.get(config), progress=False)  # whatever fits memory or not
        for key, actual in (
            ("sha256", summary.sha256),
            ("num_transitions", rows.num_rows),
            ("num_episodes", len(summary.episodes)),
        ):
            if stats.get(key) != actual:
                raise DatasetError(
                    f"{files.folder / config / STATS_FILE}: {key} is {stats.get(key)!r}, but the rows give "
                    f"{actual!r}; `spi data convert` writes both anew"
                )
        card = (files.folder / CARD_FILE).read_text(encoding="utf-8")
        if summary.sha256 not in card:
            raise DatasetError(
                f"{files.folder / CARD_FILE}: does not name the checksum of config {config!r} "
                f"({summary.sha256}), so it describes other data; `spi data convert` writes it anew"
            )


def plan_push(
    files: DatasetFiles, repo_id: str, options: UploadOptions, *, prune: bool = False
) -> UploadPlan:
    """Compare a dataset folder with a repository on the Hub; nothing is changed.

    Rows and tables of a config that the folder has replace those on the Hub; files that are none of ours
    (such as .gitattributes) stay. Configs that only the Hub has are removed by `prune`; without it HubError,
    as the new card would not list them.
    """
    content: dict[str, Path | bytes] = {path: files.folder / path for path in files.paths}
    content[CARD_FILE] = published_card(files, repo_id).encode("utf-8")

    def stale(path: str) -> bool:
        config, _, name = path.partition("/")
        if not name or not (name in _BESIDE or fnmatch.fnmatchcase(name, _ROWS)):
            return False
        return prune or config in files.configs

    plan = plan_upload(repo_id, content, options, repo_type="dataset", stale=stale)
    missing = sorted(
        {path.partition("/")[0] for path in plan.others if fnmatch.fnmatchcase(path, f"*/{_ROWS}")}
    )
    if missing:
        raise HubError(
            f"{repo_id}: holds {', '.join(missing)} on the Hub, which {files.folder} does not, and its card "
            f"would not list any more. Add these to the folder first (`spi data convert {repo_id} "
            f"{files.folder} --task {' '.join(missing)}`), or give --prune to delete them from the Hub"
        )
    return plan


def published_card(files: DatasetFiles, repo_id: str) -> str:
    """The folder's card with load commands that name the repository, and size and license as they are now."""
    card = read_card(files.folder / CARD_FILE)
    refresh_header(
        card, [_read_stats(files.folder / config / STATS_FILE, config) for config in files.configs]
    )
    # Only where the folder itself is loaded: words on its card may tell of other datasets.
    head, mark, rest = card.text.partition(BEGIN)
    if here := re.search(r'load_transitions\("((?:[^"\\]|\\.)*)"', head):
        calls = rf'(load_transitions|load_dataset)\("{re.escape(here[1])}"'
        head = re.sub(calls, lambda match: f'{match[1]}("{repo_id}"', head)
    card.text = head + mark + rest
    return str(card).rstrip() + "\n"


def commit_message(files: DatasetFiles) -> str:
    """What the commit is called if the user does not say."""
    shown = ", ".join(files.configs[:3]) + (
        f" and {len(files.configs) - 3} more" if files.configs[3:] else ""
    )
    return f"Transitions of {shown}"


def _check_declared_files(folder: Path, configs: Mapping[str, dict[str, Any]]) -> None:
    """Every file pattern of the card must lie within what is published."""
    for name, entry in configs.items():
        for pattern in itertools.chain(*declared_files(entry).values()):
            config, _, file = pattern.partition("/")
            if config not in configs or not fnmatch.fnmatchcase(file, _ROWS):
                raise DatasetError(
                    f"{folder / CARD_FILE}: config {name!r} takes rows from {pattern!r}; only "
                    f"`<config>/{_ROWS}` is published"
                )


def _read_stats(path: Path, config: str) -> dict[str, Any]:
    stats = read_stats_file(path)
    if stats.get("config") != config:
        raise DatasetError(f"{path}: does not belong to config {config!r}")
    return stats


def _check_file_entries(files: DatasetFiles, config: str, stats: dict[str, Any]) -> None:
    """Compare the parquet files with the checksums in the statistics, both ways."""
    where = files.folder / config / STATS_FILE
    listed = [entry for entry in stats.get("files") or [] if isinstance(entry, dict)]
    entries = {str(entry.get("path")): entry for entry in listed}
    present = {path for path in files.paths if path.startswith(f"{config}/") and path.endswith(".parquet")}
    for path in sorted(present | entries.keys()):
        if path not in entries:
            raise DatasetError(f"{files.folder / path}: is not listed in {where}; where does it come from?")
        if path not in present:
            raise DatasetError(f"{files.folder / path}: is missing, but {where} lists it")
        file, entry = files.folder / path, entries[path]
        size, sha256 = file.stat().st_size, sha256_of(file)
        if (size, sha256) != (entry.get("bytes"), entry.get("sha256")):
            raise DatasetError(
                f"{file}: has changed since it was written: its SHA-256 is {sha256[:16]}... ({size} bytes), "
                f"but {where} says {str(entry.get('sha256'))[:16]}... ({entry.get('bytes')} bytes)"
            )
