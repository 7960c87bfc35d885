"""What the page does with a file of own data: describe it, train a policy briefly, assess that one."""

import html
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spi_diffusers.data.describe import describe_dataset, description_tables, save_description
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.evaluation.assess import QUICK_TRANSITIONS, assess
from spi_diffusers.evaluation.assessment import Assessment

if TYPE_CHECKING:
    from rich.table import Table

#: Updates of a brief training: a minute or two on two cores.
BRIEF_UPDATES = 1_000
#: And at most, on a page that others wait for.
MOST_UPDATES = 5_000


@dataclass(frozen=True)
class Described:
    """What a file holds: the tables of `spi data describe`, its remarks, and its picture, (H, W, 3) uint8."""

    tables: "list[Table]"
    remarks: list[str]
    picture: np.ndarray


def describe(file: str | Path, cost_limits: Sequence[float] = ()) -> Described:
    """Describe a file as `spi data describe` does; DatasetError says what cannot be read, ValueError which
    limit cannot be used.
    """
    from PIL import Image

    dataset = load_transitions(file)
    description = describe_dataset(dataset, cost_limits or None)
    # The folder of an upload means nothing to anybody.
    description["source"] = name = Path(file).name
    remarks = [remark.replace(str(file), name) for remark in description["remarks"]]
    with tempfile.TemporaryDirectory(prefix="spi-space-") as folder:
        _, path = save_description(dataset, description, folder)
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    return Described(description_tables(description), remarks, pixels)


def train_and_assess(
    file: str | Path,
    *,
    cost_limits: Sequence[float] = (),
    risk: float,
    updates: int = BRIEF_UPDATES,
    max_episode_steps: int | None = None,
    on_update: Callable[[int, int], Any] | None = None,
) -> Assessment:
    """Train a policy on a file, and say what to expect of it by the episodes that training held out.

    Args:
        file: What `--dataset` takes, with usual names of columns.
        cost_limits: Limits per episode, in units of cost; none: quartiles of what the data's episodes cost.
        risk: Share of the episodes that may exceed the limit, in (0, 1).
        updates: Training updates, at most `MOST_UPDATES`.
        max_episode_steps: Steps over which a limit counts, where the data does not tell.
        on_update: Gets the updates done and all of them, now and then.

    Raises:
        ValueError: The data or an argument cannot be used; a message names it.
        TrainingDivergedError: A loss is no longer finite.
    """
    from spi_diffusers.training.train import train

    if updates > MOST_UPDATES:
        raise ValueError(f"updates must be at most {MOST_UPDATES:,} on this page, got {updates:,}")
    tell = on_update or (lambda done, of: None)
    settings: dict[str, Any] = {"updates": updates, "log_every": max(updates // 20, 1)}
    settings |= {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    policy: Any = train(
        dataset=str(file),
        progress=False,
        callback=lambda progress: tell(progress.step, progress.updates),
        **settings,
    )
    how: dict[str, Any] = {"cost_limits": cost_limits or None, "risk": risk}
    found = assess(policy, max_transitions=QUICK_TRANSITIONS, **how)
    return replace(found, dataset={**found.dataset, "id": Path(file).name})


def numbers(text: str) -> list[float]:
    """The numbers in a text, between blanks or commas; ValueError names what is none."""
    found = []
    for word in text.replace(",", " ").split():
        try:
            found.append(float(word))
        except ValueError:
            raise ValueError(f"cost limits must be numbers, such as 10 20 40; got {word!r}") from None
    return found


def as_html(tables: "Sequence[Table]", remarks: Sequence[str]) -> str:
    """Tables of `rich` and sentences as HTML that takes the page's colors."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=110, record=True)
    console.print(*tables)
    text = console.export_html(inline_styles=True, code_format="{code}")
    listed = "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks)
    return f'<pre style="overflow-x: auto; line-height: 1.2">{text}</pre><ul>{listed}</ul>'
