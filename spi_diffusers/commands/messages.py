"""How commands show what the package has to say."""

import logging
import sys
import warnings


def show_messages(quiet: bool = False) -> None:
    """Show warnings and log messages as plain lines.

    Args:
        quiet: hide the progress bars of the Hub's client.
    """
    package = logging.getLogger("spi_diffusers")
    if not package.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    from huggingface_hub.utils import disable_progress_bars

    if quiet:
        disable_progress_bars()
