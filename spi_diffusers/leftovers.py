"""What is half written: its hidden names, and its removal once the process that wrote it is gone."""

import contextlib
import functools
import hashlib
import itertools
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

#: Of this process, in the names of what it writes; a forked one has another number.
_PROCESS = secrets.token_hex(4)
_numbers = itertools.count()
#: By `name_aside`; `id` is a process's number on its machine.
_ASIDE = re.compile(
    r"\.(?P<stem>.*)\.(?P<machine>[0-9a-f]{8})-(?P<id>\d+)-(?P<process>[0-9a-f]{8})-\d+\.tmp(?P<suffix>\.[^.]+)?"
)
#: After it, what another machine has left half written counts as left by a killed process.
_LEFTOVER_SECONDS = 24 * 3600


def name_aside(path: Path, place: Path | None = None) -> Path:
    """A new hidden name for what becomes `path` once it is complete; in the same folder, or in `place`.

    It has the suffix of `path`, as matplotlib and ffmpeg choose the format by it, and tells which process of
    which machine writes there, so that `remove_leftovers` finds what a killed one has left.
    """
    mark = f"{_machine()}-{os.getpid()}-{_PROCESS}-{next(_numbers)}"
    return (place or path.parent) / f".{path.stem}.{mark}.tmp{path.suffix}"


@contextlib.contextmanager
def hidden_folder(path: Path, place: Path | None = None) -> Iterator[Path]:
    """A new folder by `name_aside`; what is not moved elsewhere is removed in the end."""
    aside = name_aside(path, place)
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@functools.cache
def _machine() -> str:
    """Where process numbers mean the same: this host since its last start, and in it this container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # only Linux has them
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def remove_leftovers(folder: Path, of: Path | None = None) -> None:
    """Remove what killed processes have left half written in a folder; only hidden names by `name_aside`.

    Whether a process of another machine or container lives is not known here: what it has left is removed
    once nothing in it has changed for a day.

    Args:
        folder: The folder; need not exist.
        of: Only what was to become this file or folder.
    """
    try:
        entries = list(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        found = _ASIDE.fullmatch(entry.name)
        if found is None or (of is not None and found["stem"] + (found["suffix"] or "") != of.name):
            continue
        if found["machine"] != _machine():
            gone = time.time() - _last_change(entry) > _LEFTOVER_SECONDS
        elif int(found["id"]) == os.getpid():
            gone = found["process"] != _PROCESS
        else:
            import psutil

            gone = not psutil.pid_exists(int(found["id"]))
        if gone and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif gone:
            with contextlib.suppress(OSError):
                entry.unlink()


def _last_change(path: Path) -> float:
    """When a file, or anything in a folder, was last changed, in seconds since 1970; now if it just goes."""
    try:
        return max(part.lstat().st_mtime for part in (path, *path.rglob("*")))
    except OSError:
        return time.time()
