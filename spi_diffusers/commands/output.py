"""What commands print: messages of the package, and tables."""

import logging
import sys
import warnings
from typing import Any


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
