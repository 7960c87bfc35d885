"""DSRL's HDF5 files from their Hub dataset: resumed, retried, verified, and put in place atomically.

`hf_hub_download` neither resumes a download (it deletes what has arrived) nor verifies the content of a file
that comes over plain HTTP. So the bytes are received here, by the Hub client's own session: a download that
stops goes on where it stopped, also in a new process, and every file is compared with the size and the
checksum that the Hub records for it.
"""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.network import explain, is_transient, with_retries
from spi_diffusers.data.tasks import DSRL_DATASET_REPO, Task

logger = logging.getLogger(__name__)

#: Bytes that are received before they are written.
CHUNK = 1 << 20


@dataclass(frozen=True)
class HubFile:
    """One of DSRL's files as the Hub describes it.

    `digest` is the content's SHA-256 (64 digits), or git's SHA-1 of the blob (40 digits) where git itself
    keeps the file. `commit` is None for a file fetched before, where the Hub cannot be reached.
    """

    path: str
    size: int
    digest: str
    commit: str | None

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the content, where it is known."""
        return self.digest if len(self.digest) == 64 else None


def download_dsrl_file(task: Task, *, revision: str | None = None) -> Path:
    """Fetch a task's file from DSRL's repository unless it is there; see `fetch` for errors."""
    return fetch(find_dsrl_files([task], revision=revision)[task.name])


def find_dsrl_files(tasks: Sequence[Task], *, revision: str | None = None) -> dict[str, HubFile]:
    """Ask the Hub for the sizes and checksums of the files of tasks; for `fetch`, by task name.

    Without a connection, files that were fetched before are taken, unless a revision is asked for: nothing
    here tells which revision they belong to. DatasetError where that is not possible.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    names = [task.dataset_file for task in tasks]

    def ask() -> tuple[Any, Any]:
        commit = api.dataset_info(DSRL_DATASET_REPO, revision=revision).sha
        return commit, api.get_paths_info(DSRL_DATASET_REPO, names, revision=commit, repo_type="dataset")

    try:
        commit, found = with_retries(ask, what=f"{DSRL_DATASET_REPO}: asking for the files")
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        is_offline = is_transient(error) and not isinstance(error, HfHubHTTPError)
        if is_offline and revision is None:
            return _kept_files(tasks, error)
        raise DatasetError(_cannot_download(tasks, explain(error))) from error
    files = {
        item.path: HubFile(item.path, item.size, item.lfs.sha256 if item.lfs else item.blob_id, str(commit))
        for item in found
        if isinstance(item, RepoFile)
    }
    if missing := [task for task in tasks if task.dataset_file not in files]:
        reason = f"there is no such file in revision {revision or 'main'}"
        raise DatasetError(_cannot_download(missing, reason))
    return {task.name: files[task.dataset_file] for task in tasks}


def fetch(file: HubFile) -> Path:
    """Fetch a file into the Hub client's cache (`hf cache` knows how to empty it), and verify it.

    DatasetError if that fails for good; what has arrived is kept, and the next try resumes there.
    """
    target = _folder() / file.digest / Path(file.path).name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Two processes (torchrun!) share one download: the second finds the file when it gets the lock.
        with FileLock(target.with_name(f"{target.name}.lock")):
            if target.exists():
                if _is_intact(target, file):
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
                _download(file, part)
                if _is_intact(part, file):
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
            f"{DSRL_DATASET_REPO}: {file.path} cannot be downloaded to {target.parent}: {explain(error)}. "
            "What has arrived is kept; the next try goes on there"
        ) from error
    raise DatasetError(
        f"{DSRL_DATASET_REPO}: {file.path} arrives damaged: twice its content did not have the checksum "
        f"{file.digest} that the Hub gives for it. Something between here and the Hub (a proxy, a mirror) "
        "changes the file"
    )


def _download(file: HubFile, part: Path) -> None:
    """Fill `part` up to the file's size; go on where it ends, try again while that may help."""

    def arrived() -> int:
        return part.stat().st_size if part.exists() else 0

    def receive() -> None:
        if arrived() > file.size:
            part.unlink()
        missing, free = file.size - arrived(), shutil.disk_usage(part.parent).free
        if free < missing:
            raise OSError(f"{missing / 1e6:.0f} MB are needed, and {free / 1e6:.0f} MB are free")
        if missing:
            _receive(file, part, arrived())
        if arrived() < file.size:
            raise ConnectionError(f"the connection ended at {arrived()} of {file.size} bytes")

    with_retries(receive, what=f"Downloading {file.path}", progress=arrived)


def _receive(file: HubFile, part: Path, start: int) -> None:
    """Append a file's bytes from `start` on to `part`, as long as they come."""
    from huggingface_hub import HfApi, constants, get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers, tqdm

    url = hf_hub_url(
        DSRL_DATASET_REPO, file.path, repo_type="dataset", revision=file.commit, endpoint=HfApi().endpoint
    )
    # Compressed transfers have other byte positions than the file, so they could not be resumed.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        is_resumed = response.status_code == 206  # a server may send the whole file all the same
        with (
            part.open("ab" if is_resumed else "wb", buffering=0) as stream,  # outlives a killed process
            tqdm(
                total=file.size, initial=start * is_resumed, unit="B", unit_scale=True, desc=part.stem
            ) as bar,
        ):
            for chunk in response.iter_bytes(CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))


def _folder() -> Path:
    from huggingface_hub import cached_assets_path

    return cached_assets_path("spi-diffusers", namespace="dsrl", subfolder="files")


def _is_intact(path: Path, file: HubFile) -> bool:
    if path.stat().st_size != file.size:
        return False
    hasher = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest() == file.digest


def _kept_files(tasks: Sequence[Task], error: Exception) -> dict[str, HubFile]:
    """The newest file of each task that `fetch` has kept; its folder is named after its digest."""
    kept = {
        task: sorted(_folder().glob(f"*/{task.dataset_file}"), key=lambda path: path.stat().st_mtime)
        for task in tasks
    }
    if missing := [task for task, paths in kept.items() if not paths]:
        raise DatasetError(_cannot_download(missing, explain(error))) from error
    for paths in kept.values():
        logger.warning("The Hub cannot be reached; taking %s, which was fetched before.", paths[-1])
    newest = {task: paths[-1] for task, paths in kept.items()}
    return {
        task.name: HubFile(path.name, path.stat().st_size, path.parent.name, None)
        for task, path in newest.items()
    }


def _cannot_download(tasks: Sequence[Task], reason: str) -> str:
    what = ", ".join(f"{task.dataset_file} of {task.name}" for task in tasks[:3])
    more = f" and {len(tasks) - 3} more" if len(tasks) > 3 else ""
    return f"{DSRL_DATASET_REPO}: {what}{more} cannot be downloaded: {reason}"
