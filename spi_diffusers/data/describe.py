"""What a dataset holds: episodes, returns, costs, and how much of it keeps each cost limit."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spi_diffusers.data.tasks import DEFAULT_COST_LIMITS
from spi_diffusers.data.transitions import TransitionDataset

if TYPE_CHECKING:
    from rich.table import Table

_BLUE, _ORANGE = "#2b6cb0", "#c05621"


@dataclass(frozen=True)
class Spread:
    """Minimum, quartiles, mean and maximum of one number per episode."""

    min: float
    quarter: float
    median: float
    mean: float
    three_quarters: float
    max: float


@dataclass(frozen=True)
class WithinLimit:
    """The episodes that keep a cost limit.

    Attributes:
        cost_limit: the limit on the cost return, inclusive.
        episodes: how many keep it.
        share: the same, of all episodes.
        best_return: the largest return among them; None when there are none.
        best_normalized_reward: that return between DSRL's references; None without a task.
    """

    cost_limit: float
    episodes: int
    share: float
    best_return: float | None
    best_normalized_reward: float | None


@dataclass(frozen=True)
class DatasetDescription:
    """A dataset in numbers; all JSON-serialisable.

    Attributes:
        source: where it comes from.
        task: DSRL id, where it is known.
        sha256: fingerprint of the content.
        transitions: number of rows.
        episodes: number of episodes.
        terminated_episodes: how many of them the task itself ended; the others were truncated.
        observation_dim: length of an observation.
        action_dim: length of an action.
        length: steps of an episode.
        return_: undiscounted sum of rewards of an episode.
        cost_return: undiscounted sum of costs of an episode.
        costly_steps: share of the steps with a cost above 0.
        limits: one entry per cost limit.
    """

    source: str
    task: str | None
    sha256: str
    transitions: int
    episodes: int
    terminated_episodes: int
    observation_dim: int
    action_dim: int
    length: Spread
    return_: Spread
    cost_return: Spread
    costly_steps: float
    limits: tuple[WithinLimit, ...]


def describe_dataset(
    dataset: TransitionDataset, cost_limits: Sequence[float] | None = None
) -> DatasetDescription:
    """Describe a dataset in numbers.

    Args:
        dataset: what to describe.
        cost_limits: limits per episode; by default the task's own, else 10, 20 and 40.

    Returns:
        The description.

    Raises:
        ValueError: a limit is negative or not finite.
    """
    episodes, task = dataset.episodes, dataset.task
    if cost_limits is None:
        cost_limits = task.cost_limits if task is not None else DEFAULT_COST_LIMITS
    limits = []
    for limit in sorted(set(cost_limits)):
        if not (math.isfinite(limit) and limit >= 0):
            raise ValueError(f"a cost limit must be a finite number of at least 0, got {limit!r}")
        count = int((episodes.cost_return <= limit).sum())
        best = episodes.best_return_within(limit)
        normalized = None if best is None or task is None else float(task.normalize_reward(best))
        limits.append(WithinLimit(float(limit), count, count / len(episodes), best, normalized))
    return DatasetDescription(
        source=dataset.source,
        task=task.name if task is not None else None,
        sha256=dataset.sha256,
        transitions=len(dataset),
        episodes=len(episodes),
        terminated_episodes=int(episodes.terminated.sum()),
        observation_dim=dataset.observation_dim,
        action_dim=dataset.action_dim,
        length=_spread(episodes.length),
        return_=_spread(episodes.return_),
        cost_return=_spread(episodes.cost_return),
        costly_steps=(dataset.transitions.cost > 0).double().mean().item(),
        limits=tuple(limits),
    )


def description_tables(description: DatasetDescription) -> "list[Table]":
    """Make the tables that `spi data describe` prints: of the episodes' spread, and of the cost limits."""
    from rich.table import Table

    d = description
    title = (
        f"{d.task or d.source}: {d.episodes} episodes, {d.transitions} transitions, observation / action "
        f"{d.observation_dim} / {d.action_dim}"
    )
    caption = (
        f"{d.terminated_episodes} episodes were ended by the task, the other "
        f"{d.episodes - d.terminated_episodes} by time; {d.costly_steps:.1%} of the steps cost something. "
        f"SHA-256 {d.sha256[:16]}"
    )
    spread = Table(title=title, caption=caption)
    spread.add_column("of an episode")
    for name in ("min", "25%", "median", "mean", "75%", "max"):
        spread.add_column(name, justify="right")
    for name, values in (("return", d.return_), ("cost return", d.cost_return), ("length", d.length)):
        spread.add_row(name, *(f"{value:.1f}" for value in asdict(values).values()))
    within = Table(title="Within a cost limit")
    for name in ("cost limit", "episodes", "share", "best return", "normalised"):
        within.add_column(name, justify="right")
    for entry in d.limits:
        within.add_row(
            f"{entry.cost_limit:g}",
            str(entry.episodes),
            f"{entry.share:.1%}",
            "none" if entry.best_return is None else f"{entry.best_return:.1f}",
            "" if entry.best_normalized_reward is None else f"{entry.best_normalized_reward:.2f}",
        )
    return [spread, within]


def save_description(
    dataset: TransitionDataset, description: DatasetDescription, folder: str | os.PathLike[str]
) -> list[Path]:
    """Write a description as `description.json` and `description.png` into a folder; return both paths."""
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    as_json = asdict(description)
    as_json["return"] = as_json.pop("return_")
    text, picture = folder / "description.json", folder / "description.png"
    text.write_text(json.dumps(as_json, indent=2) + "\n", encoding="utf-8")
    _draw(dataset, description).savefig(picture)
    return [text, picture]


def _draw(dataset: TransitionDataset, description: DatasetDescription) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), dpi=100, layout="constrained")
    scatter, returns, costs, lengths = FigureCanvasAgg(figure).figure.subplots(2, 2).flat
    episodes = dataset.episodes
    figure.suptitle(
        f"{description.task or Path(description.source).name}: {description.episodes} episodes, "
        f"{description.transitions} transitions"
    )
    scatter.scatter(episodes.cost_return, episodes.return_, s=9, alpha=0.6, linewidths=0, color=_BLUE)
    scatter.set_xlabel("cost return (dashed: cost limits)")
    scatter.set_ylabel("return (bars: best within each limit)")
    for entry in description.limits:
        if entry.best_return is not None:
            scatter.hlines(entry.best_return, 0, entry.cost_limit, color=_ORANGE, linewidth=1.2)
    for axes, values, name in (
        (returns, episodes.return_, "return"),
        (costs, episodes.cost_return, "cost return"),
        (lengths, episodes.length, "length in steps"),
    ):
        axes.hist(values.numpy(), bins=40, color=_BLUE)
        axes.set_xlabel(name)
        axes.set_ylabel("episodes")
    for axes in (scatter, costs):
        for entry in description.limits:
            axes.axvline(entry.cost_limit, color=_ORANGE, linewidth=0.8, linestyle="--")
    return figure


def _spread(values: torch.Tensor) -> Spread:
    values = values.double()
    quarter, median, three_quarters = values.quantile(values.new_tensor([0.25, 0.5, 0.75])).tolist()
    return Spread(
        values.min().item(), quarter, median, values.mean().item(), three_quarters, values.max().item()
    )
