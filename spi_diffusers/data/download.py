"""DSRL's HDF5 files from their Hub dataset: resumed, retried, verified, and put in place atomically.

Over plain HTTP the Hub's client does not look at what it receives: bytes that are wrong but of the right
number pass. So every file is compared with the size and SHA-256 that the Hub records for it. A download
that stops, for whatever reason, goes on where it stopped, also in a new process.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.network import is_transient, say, with_retries
from spi_diffusers.data.tasks import DSRL_DATASET_REPO, Task

logger = logging.getLogger(__name__)

#: How often a download is tried again in a row without having received anything new.
ATTEMPTS = 3


@dataclass(frozen=True)
class HubFile:
    """A file of a Hub dataset as the Hub describes it.

    Attributes:
        repo_id: the dataset repository.
        path: the file in it.
        commit: commit that the description belongs to; None where the Hub could not be reached, and the
            description is that of a file that was fetched before.
        size: in bytes.
        sha256: of the content, 64 hexadecimal digits; None where the Hub keeps the file in git itself.
        blob_id: git's SHA-1 of the file, 40 digits (for LFS files that of the pointer).
    """

    repo_id: str
    path: str
    commit: str | None
    size: int
    sha256: str | None
    blob_id: str

    @property
    def digest(self) -> str:
        """The digest that tells whether the content is right."""
        return self.sha256 or self.blob_id


def find_dsrl_files(
    tasks: Sequence[Task],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    wait: float = 1.0,
) -> dict[str, HubFile]:
    """Ask the Hub for the sizes and checksums of DSRL's files; again where it is busy or broken.

    Args:
        tasks: whose files.
        revision: branch, tag or commit.
        token: access token; True takes the stored one.
        endpoint: address of the Hub, where it is not the usual one.
        wait: seconds before the first new try; doubled with every further one.

    Returns:
        The files by task name.

    Raises:
        DatasetError: the Hub cannot be reached, or has no such repository, revision or file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint, token=token)
    names = [task.dataset_file for task in tasks]

    def ask() -> tuple[Any, Any]:
        commit = api.dataset_info(DSRL_DATASET_REPO, revision=revision).sha
        return commit, api.get_paths_info(DSRL_DATASET_REPO, names, revision=commit, repo_type="dataset")

    try:
        commit, found = with_retries(ask, what=f"{DSRL_DATASET_REPO}: asking for the files", wait=wait)
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        raise DatasetError(_cannot_download(tasks, error)) from error
    by_path = {item.path: item for item in found if isinstance(item, RepoFile)}
    missing = [task for task in tasks if task.dataset_file not in by_path]
    if missing:
        raise DatasetError(
            _cannot_download(missing, f"there is no such file in revision {revision or 'main'}")
        )
    return {
        task.name: _hub_file(by_path[task.dataset_file], DSRL_DATASET_REPO, str(commit)) for task in tasks
    }


def download_dsrl_file(
    task: Task,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    folder: Path | None = None,
    endpoint: str | None = None,
    wait: float = 1.0,
) -> Path:
    """Fetch a task's file from DSRL's dataset repository; one that is there already is not fetched again.

    Without a connection, a file that was fetched before is used, unless a revision is asked for.

    Args:
        task: whose file.
        revision: branch, tag or commit.
        token: access token; True takes the stored one.
        folder: where files are kept, by default a folder in the Hub client's cache.
        endpoint: address of the Hub, where it is not the usual one.
        wait: seconds before the first new try; doubled with every further one.

    Returns:
        The verified file.

    Raises:
        DatasetError: it cannot be downloaded; what has arrived is kept, and the next try goes on there.
    """
    folder = folder or default_folder()
    found = find_or_reuse_dsrl_files(
        [task], folder, revision=revision, token=token, endpoint=endpoint, wait=wait
    )
    return fetch(found[task.name], folder, token=token, endpoint=endpoint, wait=wait)


def find_or_reuse_dsrl_files(
    tasks: Sequence[Task],
    folder: Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    wait: float = 1.0,
) -> dict[str, HubFile]:
    """Ask the Hub as `find_dsrl_files` does; without a connection, take what was fetched before.

    That is done unless a revision is asked for, as nothing here tells which one a file belongs to.

    Args:
        tasks: whose files.
        folder: where files are kept.
        revision: branch, tag or commit.
        token: access token; True takes the stored one.
        endpoint: address of the Hub, where it is not the usual one.
        wait: seconds before the first new try; doubled with every further one.

    Returns:
        The files by task name, for `fetch` into the same folder.

    Raises:
        DatasetError: the Hub has no such repository, revision or file; or it cannot be reached, and a file
            was not fetched before.
    """
    try:
        return find_dsrl_files(tasks, revision=revision, token=token, endpoint=endpoint, wait=wait)
    except DatasetError as error:
        cause = error.__cause__
        if revision is not None or not isinstance(cause, Exception) or not _is_offline(cause):
            raise
        kept = {task: sorted(folder.glob(f"*/{task.dataset_file}"), key=_modified) for task in tasks}
        if missing := [task for task, paths in kept.items() if not paths]:
            raise DatasetError(_cannot_download(missing, cause)) from cause
    for paths in kept.values():
        logger.warning("The Hub cannot be reached; taking %s, which was fetched before.", paths[-1])
    return {task.name: _kept_file(paths[-1]) for task, paths in kept.items()}


def default_folder() -> Path:
    """Say where downloaded files are kept: in the Hub client's cache, which `hf cache` knows how to empty."""
    from huggingface_hub import cached_assets_path

    return cached_assets_path("spi-diffusers", namespace="dsrl", subfolder="files")


def fetch(
    file: HubFile,
    folder: Path,
    *,
    token: str | bool | None = None,
    endpoint: str | None = None,
    wait: float = 1.0,
) -> Path:
    """Fetch one file into `folder/<checksum>/<name>`, and verify it.

    Args:
        file: what to fetch.
        folder: where to.
        token: access token; True takes the stored one.
        endpoint: address of the Hub, where it is not the usual one.
        wait: seconds before the first new try; doubled with every further one.

    Returns:
        The verified file.

    Raises:
        DatasetError: the download fails for good, or what the server sends is not what the Hub describes.
    """
    from filelock import FileLock

    target = folder / file.digest / Path(file.path).name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Two processes (torchrun!) share one download: the second finds the file when it gets the lock.
        with FileLock(target.with_name(f"{target.name}.lock")):
            if target.exists():
                if _is_intact(target, file.size, file.digest):
                    return target
                if file.commit is None:
                    raise DatasetError(
                        f"{target}: is damaged, and the Hub cannot be reached; once it can, the file is "
                        "fetched again"
                    )
                logger.warning("%s: is damaged; fetching it again.", target)
                target.unlink()
            part = target.with_name(f"{target.name}.part")
            for last in (False, True):
                _download(file, part, token=token, endpoint=endpoint, wait=wait)
                if _is_intact(part, file.size, file.digest):
                    part.replace(target)
                    return target
                # Nothing tells which bytes are wrong, so none of them are of use.
                part.unlink()
                if not last:
                    logger.warning("%s: arrived damaged (wrong checksum); fetching it again.", file.path)
    except DatasetError:
        raise
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        raise DatasetError(
            f"{file.repo_id}: {file.path} cannot be downloaded to {target.parent}: {say(error)}. What has "
            "arrived is kept; the next try goes on there"
        ) from error
    raise DatasetError(
        f"{file.repo_id}: {file.path} arrives damaged: twice its content did not have the checksum "
        f"{file.digest} that the Hub gives for it. Something between here and the Hub (a proxy, a mirror) "
        "changes the file"
    )


def _download(
    file: HubFile, part: Path, *, token: str | bool | None, endpoint: str | None, wait: float
) -> None:
    """Fill `part` up to the file's size; go on where it ends, try again while that may help."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(file.repo_id, file.path, repo_type="dataset", revision=file.commit, endpoint=endpoint)
    # Compressed transfers have other byte positions than the file, so they could not be resumed.
    headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
    failures = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        if have > file.size:
            part.unlink()
            have = 0
        free = shutil.disk_usage(part.parent).free
        if free < file.size - have:
            raise OSError(f"{(file.size - have) / 1e6:.0f} MB are needed, and {free / 1e6:.0f} MB are free")
        try:
            with part.open("ab", buffering=0) as stream:  # what has arrived outlives a killed process
                http_get(
                    url,
                    stream,
                    resume_size=have,
                    headers=headers,
                    expected_size=file.size,
                    displayed_filename=Path(file.path).name,
                )
            return
        except Exception as error:
            arrived = part.stat().st_size if part.exists() else 0
            failures = 1 if arrived > have else failures + 1
            # What has brought something new is worth going on with, whatever ended it.
            if failures > ATTEMPTS or not (arrived > have or is_transient(error)):
                raise
            pause = min(wait * 2 ** (failures - 1), 30.0)
            logger.warning(
                "%s: stopped at %.1f of %.1f MB (%s); going on in %.0f s.",
                *(file.path, arrived / 1e6, file.size / 1e6, say(error), pause),
            )
            time.sleep(pause)


def _is_intact(path: Path, size: int, digest: str) -> bool:
    """Compare size and digest; 64 digits are a SHA-256, 40 digits git's SHA-1 of a blob."""
    if path.stat().st_size != size:
        return False
    hasher = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest() == digest


def _is_offline(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    return not isinstance(error, HfHubHTTPError) and is_transient(error)


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def _kept_file(path: Path) -> HubFile:
    """Describe a file that `fetch` has kept: its folder is named after its digest."""
    digest = path.parent.name
    return HubFile(
        repo_id=DSRL_DATASET_REPO,
        path=path.name,
        commit=None,
        size=path.stat().st_size,
        sha256=digest if len(digest) == 64 else None,
        blob_id=digest,
    )


def _hub_file(item: Any, repo_id: str, commit: str) -> HubFile:
    return HubFile(
        repo_id=repo_id,
        path=item.path,
        commit=commit,
        size=item.size,
        sha256=item.lfs.sha256 if item.lfs is not None else None,
        blob_id=item.blob_id,
    )


def _cannot_download(tasks: Sequence[Task], reason: "str | Exception") -> str:
    what = ", ".join(f"{task.dataset_file} of {task.name}" for task in tasks[:3])
    more = f" and {len(tasks) - 3} more" if len(tasks) > 3 else ""
    text = reason if isinstance(reason, str) else say(reason)
    return f"{DSRL_DATASET_REPO}: {what}{more} cannot be downloaded: {text}"
