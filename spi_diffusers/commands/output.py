"""What commands print: streams that never stop the work, messages of the package, and tables."""

import codecs
import errno
import io
import logging
import os
import select
import sys
import warnings
from typing import Any

#: What stands for characters that a terminal has not got; for others, a question mark.
_PLAIN = {"✓": "+", "✗": "x", "±": "+-", "†": "*", "‡": "**", "…": "..."}


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in text), error.end


codecs.register_error("spi-plain", _in_plain)


class _Stream(io.FileIO):
    """Standard output or error. What cannot be written is lost, and nothing else stops or fails."""

    lost: OSError | None = None

    def write(self, content: Any) -> int:
        """Write bytes; returns how many, those that are lost included."""
        try:
            while (written := super().write(content)) is None:  # another process has made it non-blocking
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lost = error
            _discard(self.fileno())
            return memoryview(content).nbytes


def secure_streams() -> None:
    """Let what cannot be written to the interpreter's own streams be lost, instead of stopping the work.

    That is so where nobody reads any more, the disk is full, the stream is closed (`>&-`), or the terminal
    has not got a character. Streams that a notebook or a test has put in their place stay.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            _discard(number)  # else the next file that is opened gets the number, and the output
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                _discard(number)
        ours = io.TextIOWrapper(
            io.BufferedWriter(_Stream(number, "w", closefd=False)),
            stream.encoding if stream is not None else "utf-8",
            errors="spi-plain",
            line_buffering=stream is not None and stream.line_buffering,
            write_through=stream is not None and stream.write_through,
        )
        setattr(sys, name, ours)


def lost_output() -> OSError | None:
    """Why standard output could not be written; None if it could, or its reader has read enough."""
    stream = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    lost = stream.lost if isinstance(stream, _Stream) else None
    return None if lost is None or lost.errno == errno.EPIPE else lost


def _discard(number: int) -> None:
    """Let a file descriptor lead nowhere, also in the processes that are started from here."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(nowhere, number)
        os.close(nowhere)


def show_messages() -> None:
    """Show warnings and the package's log messages as plain lines."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    package = logging.getLogger("spi_diffusers")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO)


def hide_hub_bars() -> None:
    """Hide the progress bars of the Hub's client."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()


def print_tables(*tables: Any, width: int = 140) -> None:
    """Print rich tables; piped output, which has no width of its own, gets one in which no name is folded."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else width)
    for table in tables:
        console.print(table)
