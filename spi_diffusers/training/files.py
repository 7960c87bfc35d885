"""Writing files so that a reader never sees half of one, and removing folders likewise."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk holds it.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file aside and rename it into place: the old content stays until the new one is complete.

    Raises:
        OSError: The disk is full, or the folder cannot be written; the old file is intact.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(aside, content)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_folder(aside: Path, target: Path) -> None:
    """Put a finished folder in place of `target`; what was there is moved out of the way, then removed.

    A kill between both moves leaves nothing under the name: the old folder is beside it, hidden, and the same
    call made again puts the new one there.

    Args:
        aside: The complete folder, on the same file system.
        target: Where it goes.
    """
    old = None
    if target.exists():
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        if old is not None:
            old.rename(target)
        raise
    sync_folder(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder such that a kill in between never leaves a part of it under its name."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Wait until the disk holds a folder's entries (renames)."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(content: Any) -> bytes:
    """JSON text as it is written to files: indented, keys in order of insertion, newline at the end."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
