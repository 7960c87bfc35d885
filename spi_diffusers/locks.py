"""Locks between processes: an output folder held for a run, and turns at changing a file."""

import contextlib
import errno
import hashlib
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from spi_diffusers.files import local_path, read_json, to_json

logger = logging.getLogger(__name__)

#: In a folder that is held: what the operating system locks, and who holds it.
LOCK_FILE = ".in-use.lock"
HOLDER_FILE = ".in-use.json"
#: What file systems answer that have no locks.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class FolderInUseError(ValueError):
    """Another run works in this folder; the message names the folder and the run."""


@contextlib.contextmanager
def held(
    folder: str | os.PathLike[str], work: str, *, wait: float = 0.0, beside: bool = False
) -> Iterator[None]:
    """Hold an output folder, so that no other run works in it meanwhile; it is made if it is missing.

    The operating system frees a lock whose process has died, however it died. On a file system without locks
    there is a warning instead.

    Args:
        folder: The folder.
        work: What is done in it, for the message that others get, such as "training".
        wait: Seconds to wait for who holds it.
        beside: Lock it from beside it, and do not make it: it comes into being as a whole.

    Raises:
        FolderInUseError: Another run holds it; the message says which one.
        FileExistsError: It is a file.
        OSError: It cannot be written to.
    """
    folder = local_path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; name a folder.")
    place = folder.absolute()  # the work may change the current folder
    prefix = f".{place.name}" if beside else ""
    place = place.parent if beside else place
    new = [part for part in (place, *place.parents) if not part.exists()]
    lock_file, holder = place / f"{prefix}{LOCK_FILE}", place / f"{prefix}{HOLDER_FILE}"
    lock, ours = FileLock(lock_file), None
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait)
        ours = lock_file.stat()
    except Timeout:
        raise FolderInUseError(
            f"{folder}: {_who(holder)} works in this folder. Wait for its end, or choose another folder."
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _WITHOUT_LOCKS:
            raise OSError(
                error.errno, f"{folder}: cannot be written to: {error.strerror or error}"
            ) from error
        logger.warning("%s: its file system has no locks: run nothing else in this folder.", folder)
    try:
        with contextlib.suppress(OSError):  # the lock is what counts; a full disk has errors of its own
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            words = {"work": work, "process": os.getpid(), "machine": platform.node(), "since": since}
            holder.write_bytes(to_json(words))
        yield
    finally:
        with contextlib.suppress(OSError):
            # While it is still locked: later it may be another one's; so may it be now, if the work has
            # removed the folder.
            if ours is None or os.path.samestat(ours, lock_file.stat()):
                holder.unlink(missing_ok=True)
                lock_file.unlink()
        lock.release()
        with contextlib.suppress(OSError):
            for part in new:  # only if nothing came of it
                part.rmdir()


def _who(holder: Path) -> str:
    try:
        found = read_json(holder)
        process = f"process {found['process']} on {found['machine']}, since {found['since']}"
        return f"another {found['work']} ({process})"
    except (OSError, ValueError, KeyError):
        return "another process"  # that has only just begun, or is about to end


@contextlib.contextmanager
def turn(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes of this user on this machine from changing something meanwhile.

    Args:
        path: the file or folder; need not exist.
    """
    # Not beside it: a lock file would end up in a published folder. One per user, who owns it.
    user = os.getuid() if hasattr(os, "getuid") else ""
    name = hashlib.sha256(f"{user}:{local_path(path).resolve()}".encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"spi-diffusers-{name}.lock"):
        yield
