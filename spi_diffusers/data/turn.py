"""One writer at a time where several processes change the same file or folder."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock


@contextlib.contextmanager
def turn(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes of this user on this machine from changing something meanwhile.

    Args:
        path: the file or folder; need not exist.
    """
    # Not beside it: a lock file would end up in a published folder. One per user, who owns it.
    user = os.getuid() if hasattr(os, "getuid") else ""
    name = hashlib.sha256(f"{user}:{Path(path).resolve()}".encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"spi-diffusers-{name}.lock"):
        yield
