"""Datasets in the parquet layout, from a local folder or the Hub: their configs, and loading one whole.

The layout: `README.md` with one YAML config per task, and `<task>/train-*.parquet` with one row per
transition: `observation`, `next_observation`, `action` (fixed-size float32 lists), `reward`, `cost`
(float32), `terminated`, `truncated` (bool), `episode_index`, `frame_index` (int64).
"""

import glob
import re
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from spi_diffusers.data.assembly import dataset_from_tables
from spi_diffusers.data.card import STATS_FILE, declared_configs, declared_files, written_config
from spi_diffusers.data.columns import ColumnChecker, DatasetError
from spi_diffusers.data.network import explain, fetch_snapshot, with_retries
from spi_diffusers.data.parquet import open_files, open_parquet
from spi_diffusers.data.roles import ColumnNames, natural_order
from spi_diffusers.data.tasks import TASKS, UnknownTaskError, get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.files import CARD_FILE

SPLIT = "train"

#: The config of a repository on the Hub whose card declares none, as `datasets` calls it.
_UNNAMED = "default"
_TRAIN = re.compile(r"(?<![^\W_])train(?![^\W_])")


# ---- whole configs in memory


def load_folder(
    folder: Path,
    config: str | None = None,
    columns: ColumnNames | None = None,
    *,
    source: str | None = None,
    clip_actions: bool = False,
) -> TransitionDataset:
    """Load a config, by default the only one, from a local folder in the parquet layout.

    The files are read directly: nothing is downloaded, and no copy is left in a cache. `columns` are named
    where they have other names than in the layout. `source` is what messages call the data. UnknownTaskError
    if `config` is neither a config nor a DSRL task; DatasetError if the folder lacks it (the message lists
    what there is), or a file is missing, damaged or fails the checks.
    """
    config, files = folder_files(folder, config)
    paths = [Path(file) for file in files]
    if columns in (None, ColumnNames()) and (folder / config / STATS_FILE).is_file():
        for path in paths:  # what `write_parquet_dataset` wrote has all columns
            names = open_parquet([path], str(path)).names
            ColumnChecker(str(path)).check_present(names, names)
    return _load_files(paths, config, columns, source or str(folder), clip_actions)


def load_hub(
    repo_id: str,
    config: str | None = None,
    columns: ColumnNames | None = None,
    *,
    revision: str | None = None,
    clip_actions: bool = False,
) -> TransitionDataset:
    """Load a config, by default the only one, of a Hub dataset; its files stay in the Hub client's cache.

    The dataset's source is `repo_id@commit`. UnknownTaskError as for `load_folder`; DatasetError if
    repository, revision or config does not exist, the Hub cannot be reached and nothing is cached, or the
    columns do not pass the checks.
    """
    card, config, declared = _hub_config(repo_id, config, revision)
    commit = card.name
    folder = hub_snapshot(repo_id, _wider(_patterns(repo_id, config, declared)), commit)
    files = [folder / name for name in _find(repo_id, config, declared, _in_folder(folder))]
    return _load_files(files, config, columns, f"{repo_id}@{commit}", clip_actions)


def _load_files(
    files: list[Path], config: str, columns: ColumnNames | None, source: str, clip_actions: bool
) -> TransitionDataset:
    label = f"{source} ({config})" if config not in source else source
    return dataset_from_tables(
        open_files(files, label, columns or ColumnNames()),
        *(label, columns, TASKS.get(config)),
        clip_actions=clip_actions,
    )


# ---- configs and their files


def folder_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """What the dataset card of a folder declares of each config (task), by name, in its order.

    DatasetError without a readable card that declares configs, or if the files of one are gone.
    """
    readme = folder / CARD_FILE
    if not readme.is_file():
        inside = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise DatasetError(
            f"{folder}: is not a dataset folder: it has no {CARD_FILE} that declares its configs (it holds "
            f"{inside}). `spi data convert` makes such a folder"
        )
    configs = declared_configs(readme)
    if not configs:
        raise DatasetError(f"{readme}: the YAML header declares no `configs`; one per task is needed")
    for name, config in configs.items():
        # Whichever is wanted, a folder of which a part is missing is told.
        if config == written_config(name) and not any((folder / name).glob("train-*.parquet")):
            raise DatasetError(
                f"{readme}: declares the config {name!r}, but there is no {name}/train-*.parquet; restore "
                "the files, or remove the config from `configs` in the YAML header"
            )
    return configs


def pick_config(where: str, names: Collection[str], wanted: str | None = None) -> str:
    """Pick the wanted one of the `names` of configs, or the only one.

    UnknownTaskError if it is neither a config nor a DSRL task; DatasetError if the dataset (`where` in
    messages) lacks it, or has several configs and none is wanted.
    """
    listing = ", ".join(names)
    if wanted is None:
        if len(names) == 1:
            return next(iter(names))
        raise DatasetError(f"{where}: holds several tasks; say which one: {listing}")
    if wanted not in names:
        try:
            get_task(wanted)
        except UnknownTaskError as error:
            raise UnknownTaskError(f"{error} Nor is it a config of {where}, which has {listing}") from None
        raise DatasetError(f"{where}: has no config for task {wanted}. Available: {listing}")
    return wanted


def folder_files(folder: Path, config: str | None) -> tuple[str, list[str]]:
    """The name of a local config, and the files of its rows in order; errors as for `load_folder`."""
    configs = folder_configs(folder)
    config = pick_config(str(folder), configs, config)
    files = _find(str(folder), config, configs[config], _in_folder(folder))
    return config, [str(folder / name) for name in files]


def hub_files(repo_id: str, config: str | None, revision: str | None) -> tuple[str, list[str], str]:
    """The name of a config on the Hub, the files of its rows, and the commit; errors as for `load_hub`.

    None is downloaded: they are named in the client's cache if it holds all of them, else on the Hub
    (`hf://`).
    """
    from huggingface_hub import HfFileSystem

    card, config, declared = _hub_config(repo_id, config, revision)
    wanted: dict[str, Any] = {"allow_patterns": _wider(_patterns(repo_id, config, declared))}
    wanted |= {"repo_type": "dataset", "revision": card.name, "local_files_only": True}
    try:
        folder = fetch_snapshot(repo_id, **wanted)
        files = _find(repo_id, config, declared, _in_folder(folder))
        return config, [str(folder / name) for name in files], card.name
    except (OSError, DatasetError):  # they are not, or not all, in the cache
        root = f"datasets/{repo_id}@{card.name}/"

    def find(pattern: str) -> list[str]:
        listed = partial(HfFileSystem().glob, root + pattern)
        return [path.removeprefix(root) for path in with_retries(listed, what=f"{repo_id}: listing files")]

    try:
        files = _find(repo_id, config, declared, find)
    except DatasetError:
        raise
    except Exception as error:  # huggingface_hub, fsspec and httpx raise many unrelated types here
        raise _not_loaded(repo_id, revision, error) from error
    return config, [f"hf://{root}{name}" for name in files], card.name


def hub_snapshot(repo_id: str, patterns: list[str], revision: str | None) -> Path:
    """The folder, named by its commit, with those files of a Hub dataset that match; else a DatasetError."""
    try:
        return fetch_snapshot(repo_id, repo_type="dataset", revision=revision, allow_patterns=patterns)
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        raise _not_loaded(repo_id, revision, error) from error


def hub_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """What the card of a snapshot declares of each config, by name; one without a name where it has none."""
    readme = folder / CARD_FILE
    return (declared_configs(readme) if readme.is_file() else {}) or {_UNNAMED: {}}


def _hub_config(repo_id: str, config: str | None, revision: str | None) -> tuple[Path, str, dict[str, Any]]:
    """The card's folder, named by the commit; the name of a config, and what the card says of it."""
    folder = hub_snapshot(repo_id, [CARD_FILE], revision)
    configs = hub_configs(folder)
    config = pick_config(repo_id, configs, config)
    return folder, config, configs[config]


def _not_loaded(repo_id: str, revision: str | None, error: Exception) -> DatasetError:
    return DatasetError(
        f"{repo_id}: cannot be loaded from the Hub (revision {revision or 'main'!r}): {explain(error)}. (No "
        "local file or folder has that name.)"
    )


def _patterns(where: str, config: str, declared: dict[str, Any]) -> list[str]:
    """The patterns of a config's files, below its folder; every parquet file where the card names none."""
    by_split = declared_files(declared) if declared.get("data_files") else {SPLIT: ["**/*.parquet"]}
    if not by_split.get(SPLIT):
        raise DatasetError(f"{where}: config {config!r} declares no files for the split {SPLIT!r}")
    folder = PurePosixPath(str(declared.get("data_dir") or "."))
    patterns = [str(folder / pattern) for pattern in by_split[SPLIT]]
    for pattern in patterns:
        if pattern.startswith("/") or ":/" in pattern or ".." in PurePosixPath(pattern).parts:
            raise DatasetError(
                f"{where}: config {config!r} takes rows from {pattern!r}; only the dataset's own files "
                "are read"
            )
    return patterns


def _wider(patterns: list[str]) -> list[str]:
    """What a download asks for: the client's * stands for any text, with slashes, and ** for no less."""
    return sorted({form for one in patterns for form in (one, one.replace("**/", ""), glob.escape(one))})


def _find(
    where: str, config: str, declared: dict[str, Any], find: Callable[[str], Iterable[str]]
) -> list[str]:
    """The names of a config's files; `find` gives those of the dataset that match a pattern."""
    names = [
        name
        for pattern in _patterns(where, config, declared)
        for name in sorted(find(pattern), key=natural_order)
    ]
    names = [name for name in dict.fromkeys(names) if not name.startswith(".") and "/." not in name]
    if not declared.get("data_files"):  # of a repository without a card, what is not for tests
        names = [name for name in names if _TRAIN.search(name)] or names
    if not names:
        raise DatasetError(f"{where}: config {config!r} has no files for the split {SPLIT!r}")
    if not all(name.endswith(".parquet") for name in names):
        raise DatasetError(
            f"{where}: config {config!r} is not in parquet files, and nothing else loads. `spi data convert "
            "TABLE FOLDER` turns a CSV table into such files"
        )
    return names


def _in_folder(folder: Path) -> Callable[[str], Iterable[str]]:
    """`find` for a local folder, whose own name is never a pattern."""

    def find(pattern: str) -> Iterable[str]:
        if (folder / pattern).is_file():
            return [pattern]
        try:  # ** alone stands for folders
            found = list(folder.glob(f"{pattern}/*" if pattern.endswith("**") else pattern))
        except ValueError as error:
            raise DatasetError(f"{folder / CARD_FILE}: {pattern!r} is no pattern of files: {error}") from None
        return (path.relative_to(folder).as_posix() for path in found if path.is_file())

    return find
