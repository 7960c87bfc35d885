"""Policies that come with the package: BallCircle's in the wheel, others in a clone."""

from pathlib import Path
from typing import TYPE_CHECKING

from spi_diffusers.data.tasks import get_task
from spi_diffusers.files import INDEX_FILE

if TYPE_CHECKING:
    from spi_diffusers.pipelines import SPIPolicyPipeline

_PACKAGE = Path(__file__).parents[1]
#: In an installed package, and in a clone beside the package.
_PLACES = (_PACKAGE / "policies", _PACKAGE.parent / "policies")


def pretrained(task: str = "ballcircle") -> "SPIPolicyPipeline":
    """Load the trained policy of a task that comes with this installation.

    Examples:
        >>> policy = pretrained("ballcircle")
        >>> controller = policy.controller(cost_limit=20)

    Args:
        task: Name of a task, long or short.

    Raises:
        UnknownTaskError: There is no such task.
        FileNotFoundError: This installation holds no policy for it; the message names those that it holds.
    """
    from spi_diffusers.pipelines import SPIPolicyPipeline

    name = f"spi-{get_task(task).short_name}"
    files = [file for place in _PLACES for file in place.glob(f"spi-*/{INDEX_FILE}")]
    folders = {file.parent.name: file.parent for file in files}
    if name not in folders:
        held = ", ".join(sorted(folder.removeprefix("spi-") for folder in folders)) or "none"
        raise FileNotFoundError(
            f"this installation holds no policy for {task} (it holds: {held}). Train one: "
            f"spi train --task {get_task(task).short_name}"
        )
    return SPIPolicyPipeline.from_pretrained(folders[name])
