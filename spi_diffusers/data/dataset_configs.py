"""The configs of a dataset in the parquet layout: which there are, and what `datasets` opens one with."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spi_diffusers.data.card import read_card, written_config
from spi_diffusers.data.columns import COLUMNS, DatasetError
from spi_diffusers.data.tasks import TASKS, UnknownTaskError, get_task

SPLIT = "train"
#: More rows than files have, so that each arrives as few large Arrow batches.
ONE_BATCH = 1 << 30


def folder_configs(folder: Path) -> list[str]:
    """List the configs (tasks) that the dataset card of a folder declares.

    Args:
        folder: holds `README.md` with `configs` in its YAML header.

    Returns:
        Config names in the order of the card.

    Raises:
        DatasetError: there is no card, or its YAML header cannot be read or declares no configs, or one whose
            files are gone.
    """
    readme = folder / "README.md"
    if not readme.is_file():
        inside = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise DatasetError(
            f"{folder}: is not a dataset folder: it has no README.md that declares its configs (it holds "
            f"{inside}). spi_diffusers.data.writing.write_parquet_dataset makes such a folder"
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
    """Pick a config of those that a dataset has.

    Args:
        where: what to call the dataset in messages.
        names: of its configs.
        wanted: DSRL id or config's name; may be left out where there is only one.

    Returns:
        The config's name.

    Raises:
        UnknownTaskError: `wanted` is neither a config of the dataset nor a task of DSRL's.
        DatasetError: the dataset has no data of the task, or several configs and none is wanted.
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


@contextmanager
def folder_builder(folder: Path, config: str) -> Iterator[tuple[Any, list[str]]]:
    """The builder of a local config, and its files; what is done with them fails as a `DatasetError`."""
    import datasets

    try:
        # A builder makes a cache folder even when it only streams; give it one that goes away again.
        with tempfile.TemporaryDirectory() as cache:
            builder = datasets.load_dataset_builder(
                str(folder), config, cache_dir=cache, batch_size=ONE_BATCH, **_verify_checksums()
            )
            files = [str(file) for file in (builder.config.data_files or {}).get(SPLIT, [])]
            _check_files(folder, config, files)
            yield builder, files
    except DatasetError:
        raise
    except Exception as error:  # datasets, fsspec and Arrow raise many unrelated types here
        if _is_no_parquet(error):
            raise DatasetError(f"{folder}: config {config!r} {_NO_PARQUET}") from error
        raise DatasetError(
            f"{folder}: config {config!r} cannot be read: {type(error).__name__}: {error}"
        ) from error


@contextmanager
def hub_builder(
    repo_id: str, config: str | None, revision: str | None, token: str | bool | None
) -> Iterator[tuple[Any, str]]:
    """The builder of a config on the Hub, and its name; what is done with it fails as a `DatasetError`."""
    import datasets

    try:
        hub: dict[str, Any] = {"revision": revision, "token": token}
        if config is None:
            config = pick_config(repo_id, datasets.get_dataset_config_names(repo_id, **hub), None)
        try:
            builder = datasets.load_dataset_builder(repo_id, config, **hub, **_verify_checksums())
        except Exception:
            if config not in TASKS:  # says which there are; without the Hub, the cache knows no list
                pick_config(repo_id, datasets.get_dataset_config_names(repo_id, **hub), config)
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
            f"{type(error).__name__}: {str(error).rstrip('.')}. (No local file or folder has that name.)"
        ) from error


_NO_PARQUET = (
    "is not in parquet files, and nothing else loads. `spi data convert TABLE FOLDER` makes such files of a "
    "CSV table"
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


def _check_files(folder: Path, config: str, files: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not files:
        raise DatasetError(f"{folder}: config {config!r} declares no files for the split {SPLIT!r}")
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                f"{file}: is not a parquet file, or it is cut off or damaged ({error})"
            ) from error
        for column in COLUMNS:
            if column not in schema.names:
                raise DatasetError(
                    f"{file}: column {column!r} is missing; the file has {', '.join(schema.names)}"
                )


def _verify_checksums() -> dict[str, Any]:
    # Random-looking floats are stored as they are, so damaged ones decompress without an error; only
    # the pages' checksums tell (where the writer made them: `write_parquet_dataset` does).
    import pyarrow.dataset as ds

    return {"fragment_scan_options": ds.ParquetFragmentScanOptions(page_checksum_verification=True)}
