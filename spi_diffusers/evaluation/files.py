"""Files that are either complete or not there: written aside, then moved into place."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the name of a new file to write; move it to `path` once it is complete and on the disk.

    If anything fails on the way (a full disk, an interrupt), the new file is removed, and what was at
    `path` before is untouched. Missing folders are made.

    Args:
        path: where the file shall be.

    Yields:
        A path in the same folder with the same suffix, which the caller writes.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: the file cannot be written; the message names the path.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it")
    # The suffix stays: matplotlib and ffmpeg choose the format by it.
    aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _flush_to_disk(aside)
        os.replace(aside, path)
        _flush_to_disk(path.parent)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(NotADirectoryError):  # a parent is a file: reported above
            aside.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    # A rename can reach the disk before the content does, and the power can fail between the two.
    if path.is_dir() and os.name != "posix":
        return  # only POSIX can open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
