"""How commands show what the package has to say."""

import logging
import sys
import warnings


def show_messages(quiet: bool = False) -> None:
    """Show warnings and log messages as plain lines.

    Args:
        quiet: hide the progress bars of the Hub's client.
    """
    log_to_stderr()
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    from huggingface_hub.utils import disable_progress_bars

    if quiet:
        disable_progress_bars()


def log_to_stderr() -> None:
    """Show the package's log messages as plain lines."""
    package = logging.getLogger("spi_diffusers")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO)
