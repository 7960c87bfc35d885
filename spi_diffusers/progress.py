"""Progress bars that never stop the work. Imports tqdm when one is shown."""

import contextlib
import sys
from typing import Any


class _Lossy:
    """A stream that may be closed, or whose reader may be gone: what cannot be written is lost."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, if that is possible."""
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def progress_bar(items: Any = None, *, disable: bool, **settings: Any) -> Any:
    """A tqdm bar on standard error, or in a notebook; settings are tqdm's."""
    from tqdm.auto import tqdm

    return tqdm(items, disable=disable or sys.stderr is None, file=_Lossy(sys.stderr), **settings)
