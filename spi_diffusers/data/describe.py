"""What a dataset holds: episodes, returns, costs, and how much of it keeps each cost limit."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spi_diffusers.data.costs import CostLimit
from spi_diffusers.data.survey import common_length, found_range, remarks
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.files import local_path, to_json
from spi_diffusers.messages import decimals, shown_limit

if TYPE_CHECKING:
    from rich.table import Table

_BLUE, _ORANGE = "#2b6cb0", "#c05621"


def describe_dataset(
    dataset: TransitionDataset, cost_limits: Sequence[CostLimit] | None = None
) -> dict[str, Any]:
    """Describe a dataset in numbers.

    Args:
        dataset: what to describe.
        cost_limits: limits per episode; by default the task's own, else the quartiles of the episodes' cost.
            Of several costs each is a tuple, a number for each cost.

    Returns:
        A dictionary ready for JSON: `source`, `task` (DSRL id or None), `sha256` (of the content),
            `transitions`, `episodes`, `terminated_episodes` (ended by the task itself; the others were
            truncated), `max_episode_steps` (over which a limit counts; None where training would ask),
            `observation_dim`, `action_dim`, `action_low` and `action_high` (lists: the range that training
            takes); `length`, `return` and `cost_return` of the episodes, each with `min`, `quarter`,
            `median`, `mean`, `three_quarters`, `max`; of several costs the same of each by its name, in
            `cost_returns`, and `cost_return` is of their sum, each in its own unit; `costly_steps` (share of
            the steps with a cost above 0); `limits`, each with `cost_limit`, `episodes` (how many keep it),
            `share` (of all), `best_return` (among them; None if none keeps it) and `best_normalized_reward`
            (None without a task); and `remarks`: what is odd, a sentence each.

    Raises:
        ValueError: a limit is negative or not finite.
    """
    episodes, task = dataset.episodes, dataset.task
    if cost_limits is None:
        cost_limits = episodes.usual_cost_limits(task)
    steps = task.max_episode_steps if task is not None else common_length(episodes)
    actions = found_range(dataset)
    limits = []
    for limit in sorted(set(cost_limits)):
        if not all(math.isfinite(each) and each >= 0 for each in np.atleast_1d(limit)):
            raise ValueError(f"a cost limit must be a finite number of at least 0, got {limit!r}")
        count = int(episodes.keep(limit).sum())
        best = episodes.best_return_within(limit)
        normalized = None if best is None or task is None else float(task.normalize_reward(best))
        limits.append(
            {
                "cost_limit": list(map(float, limit)) if isinstance(limit, tuple) else float(limit),
                "episodes": count,
                "share": count / len(episodes),
                "best_return": best,
                "best_normalized_reward": normalized,
            }
        )
    return {
        "source": dataset.source,
        "task": task.name if task is not None else None,
        "sha256": dataset.sha256,
        "transitions": len(dataset),
        "episodes": len(episodes),
        "terminated_episodes": int(episodes.terminated.sum()),
        "max_episode_steps": steps,
        "observation_dim": dataset.observation_dim,
        "action_dim": dataset.action_dim,
        "action_low": list(actions.low),
        "action_high": list(actions.high),
        "length": _spread(episodes.length),
        "cost_return": _spread(episodes.cost_return),
        **_each_cost(dataset),
        "costly_steps": (dataset.transitions.cost > 0).double().mean().item(),
        "limits": limits,
        "return": _spread(episodes.return_),
        "remarks": remarks(dataset),
    }


def description_tables(description: dict[str, Any]) -> "list[Table]":
    """Make the tables that `spi data describe` prints: of the episodes' spread, and of the cost limits."""
    from rich.table import Table

    d = description
    title = (
        f"{d['task'] or d['source']}: {d['episodes']} episodes, {d['transitions']} transitions, "
        f"observation / action {d['observation_dim']} / {d['action_dim']}"
    )
    steps = d["max_episode_steps"]
    counts_over = "" if steps is None else f"A limit counts over {steps} steps. "
    ranges = sorted({*zip(d["action_low"], d["action_high"], strict=True)})
    in_ranges = ", ".join(f"[{low:.4g}, {high:.4g}]" for low, high in ranges[:4]) + ", ..." * (
        len(ranges) > 4
    )
    caption = (
        f"{d['terminated_episodes']} episodes were ended by the task, the other "
        f"{d['episodes'] - d['terminated_episodes']} by time; {d['costly_steps']:.1%} of the steps cost "
        f"something. {counts_over}Actions are taken to lie in {in_ranges}. SHA-256 {d['sha256'][:16]}"
    )
    spread = Table(title=title, caption=caption)
    spread.add_column("of an episode")
    for name in ("min", "25%", "median", "mean", "75%", "max"):
        spread.add_column(name, justify="right")
    costs = {f"cost return, {name}": values for name, values in d.get("cost_returns", {}).items()}
    costs = costs or {"cost return": d["cost_return"]}
    for name, values in {"return": d["return"], **costs, "length": d["length"]}.items():
        digits = decimals(max(map(abs, values.values())))
        spread.add_row(name, *(f"{value:.{digits}f}" for value in values.values()))
    within, digits = Table(title="Within a cost limit"), decimals(max(map(abs, d["return"].values())))
    for name in ("cost limit", "episodes", "share", "best return", "normalized"):
        within.add_column(name, justify="right")
    for entry in d["limits"]:
        best, normalized = entry["best_return"], entry["best_normalized_reward"]
        within.add_row(
            *(shown_limit(entry["cost_limit"]), str(entry["episodes"]), f"{entry['share']:.1%}"),
            "none" if best is None else f"{best:.{digits}f}",
            "" if normalized is None else f"{normalized:.2f}",
        )
    return [spread, within]


def save_description(
    dataset: TransitionDataset, description: dict[str, Any], folder: str | os.PathLike[str]
) -> list[Path]:
    """Write a description as `description.json` and `description.png` into a folder; return both paths."""
    folder = local_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text, picture = folder / "description.json", folder / "description.png"
    text.write_bytes(to_json(description))
    _draw(dataset, description).savefig(picture)
    return [text, picture]


def _draw(dataset: TransitionDataset, description: dict[str, Any]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), dpi=100, layout="constrained")
    scatter, returns, costs, lengths = FigureCanvasAgg(figure).figure.subplots(2, 2).flat
    episodes = dataset.episodes
    figure.suptitle(
        f"{description['task'] or Path(description['source']).name}: {description['episodes']} episodes, "
        f"{description['transitions']} transitions"
    )
    scatter.scatter(episodes.cost_return, episodes.return_, s=9, alpha=0.6, linewidths=0, color=_BLUE)
    one = "cost_returns" not in description
    cost = "cost return" if one else "sum of the costs, each in its own unit"
    scatter.set_xlabel(f"{cost} (dashed: cost limits)" if one else cost)
    scatter.set_ylabel("return (bars: best within each limit)")
    # Of several costs the axis is their sum, where no limit has a place.
    limits = description["limits"] if one else []
    for entry in limits:
        if entry["best_return"] is not None:
            scatter.hlines(entry["best_return"], 0, entry["cost_limit"], color=_ORANGE, linewidth=1.2)
    for axes, values, name in (
        (returns, episodes.return_, "return"),
        (costs, episodes.cost_return, cost),
        (lengths, episodes.length, "length in steps"),
    ):
        axes.hist(values.numpy(), bins=40, color=_BLUE)
        axes.set_xlabel(name)
        axes.set_ylabel("episodes")
    for axes in (scatter, costs):
        for entry in limits:
            axes.axvline(entry["cost_limit"], color=_ORANGE, linewidth=0.8, linestyle="--")
    return figure


def _each_cost(dataset: TransitionDataset) -> dict[str, Any]:
    """What is said of several costs besides."""
    names, costs = dataset.cost_names, dataset.episodes.cost_returns
    if len(names) == 1:
        return {}
    return {"cost_returns": {name: _spread(costs[:, k]) for k, name in enumerate(names)}}


def _spread(values: torch.Tensor) -> dict[str, float]:
    values = values.double()
    quarter, median, three_quarters = values.quantile(values.new_tensor([0.25, 0.5, 0.75])).tolist()
    return {
        "min": values.min().item(),
        "quarter": quarter,
        "median": median,
        "mean": values.mean().item(),
        "three_quarters": three_quarters,
        "max": values.max().item(),
    }
