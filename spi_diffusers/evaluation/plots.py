"""Plots of training and evaluation; matplotlib is imported when one is drawn, and needs no display."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.evaluation.entries import EvaluationEntry, each
from spi_diffusers.evaluation.summary import BehaviorRow, SeedSummary, spread_over, summarize_seeds
from spi_diffusers.evaluation.tables import policy_name
from spi_diffusers.files import written_aside
from spi_diffusers.messages import shown_limit
from spi_diffusers.training.metrics import read_training_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spi_diffusers.evaluation.rollouts import Rollout


# Okabe and Ito's colors, which differ for color-blind readers too.
_SAFE, _PAPER, _BEST, _UNSAFE = "#0072B2", "#D55E00", "#009E73", "#CC3311"
_SAFE_COLORS = (_SAFE, "#56B4E9", "#CC79A7", "#000000")
_OTHER_COLORS = (_PAPER, "#E69F00", "#8B4513", "#882255", "#44AA99", "#999933", "#AA4499", "#117733")
_DATA = "#8A8A8A"
_MARKERS = "osD^vP"

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "savefig.dpi": 200,
}

# Panels of the training curves: title, axis, curves by name; a panel without any curve is left out.
_PANELS: tuple[tuple[str, str, bool, Mapping[str, str]], ...] = (
    ("Noise loss (Eq. 9)", "mean squared error", False, {"policy/noise_loss": "noise model"}),
    ("Guidance loss (Eq. 6)", "scaled value, negated", False, {"policy/guidance_loss": "noise model"}),
    (
        "Critic losses (Eq. 10, 11)",
        "squared error, both twins",
        True,
        {
            "critic/reward_loss": "reward $Q^r$",
            "critic/safety_loss": "safety $Q^{c'}$",
            "critic/cost_loss": "cost $Q^c$",
        },
    ),
    (
        "Critic values",
        "mean over the batch",
        False,
        {"critic/reward_value": "reward $Q^r$", "critic/safety_value": "safety $Q^{c'}$"},
    ),
    ("Speed", "updates per second", False, {"updates_per_second": "updates/s"}),
    ("Learning rate", "", False, {"lr": "learning rate"}),
)
_CURVE_COLORS = (_SAFE, _PAPER, _BEST)


def plot_training(metrics: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> "Figure":
    """Draw the training curves from a run's `metrics.jsonl`, which may be live, and save them at `path`.

    The suffix gives the format (.png, .pdf, .svg). ValueError: the log cannot be read, or holds none of the
    metrics that are drawn.
    """
    log = read_training_log(metrics)
    if "lr" in log and np.ptp(log["lr"][1]) == 0:
        del log["lr"]  # a constant needs no panel
    panels = [panel for panel in _PANELS if any(name in log for name in panel[3])]
    if not panels:
        raise ValueError(
            f"{metrics} holds none of the metrics that are drawn, only {sorted(log) or 'nothing'}"
        )
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with figure_at(path, (3.4 * columns, 2.6 * rows)) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (title, label, is_log, curves) in zip(grid.flat, panels, strict=False):
            shown = [(curves[name], *log[name]) for name in curves if name in log]
            for (name, steps, values), color in zip(shown, _CURVE_COLORS, strict=False):
                axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                axes.plot(steps, _smooth(values), color=color, label=name)
            axes.set(title=title, ylabel=label, xlabel="update", xmargin=0.01)
            axes.xaxis.set_major_formatter(_thousands)
            if is_log and all((values[np.isfinite(values)] > 0).all() for _, _, values in shown):
                axes.set_yscale("log")
            elif title == "Speed":
                axes.set_ylim(bottom=0)
            if len(shown) > 1:
                axes.legend()
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
    return figure


def plot_limits(
    entries: Iterable[EvaluationEntry],
    path: str | os.PathLike[str] | None = None,
    behavior: Sequence[BehaviorRow] = (),
    name_of: Callable[[SeedSummary], str] = policy_name,
    note: str = "",
) -> "Figure":
    """Draw reward and cost of one task's entries against the limit, one curve per way of choosing actions.

    Several costs have a panel each. Bars span one standard deviation: over training seeds where there are
    several, else over episodes. The best episode of `behavior` within each limit is marked. `name_of` names a
    curve in the legend; `note` is one more line of the title. ValueError: no entries, or of several tasks.
    """
    groups, task = _grouped(entries, name_of)
    limits = _limits(groups)
    # Limits stand side by side as categories, and the curves of one limit beside each other.
    span = min(0.8, 0.1 * len(groups))
    shifts = (np.arange(len(groups)) - (len(groups) - 1) / 2) * span / max(len(groups), 1)
    # A panel of the reward, then one of each cost.
    names = groups[0].summaries[0].cost_names or ("cost",)
    with figure_at(path, (4.3 * (1 + len(names)), 4.1)) as figure:
        reward_axes, *all_costs = figure.subplots(1, 1 + len(names))
        handles: list[Any] = []
        for group, shift in zip(groups, shifts, strict=True):
            x = np.array([limits.index(summary.cost_limit) for summary in group.summaries]) + shift
            for axes in (reward_axes, *all_costs):
                is_cost = axes is not reward_axes
                statistics = [
                    summary.each_cost[all_costs.index(axes)] if is_cost else summary.reward
                    for summary in group.summaries
                ]
                means = np.array([statistic.mean for statistic in statistics])
                spread = np.array([statistic.spread for statistic in statistics])
                below = np.minimum(spread, means) if is_cost else spread
                bars = axes.errorbar(
                    x, means, yerr=[below, spread], capsize=3, label=group.name, **group.style
                )
            handles.append(bars)
        best = [row for row in behavior if row.task == task.name and row.cost_limit in limits]
        best = [row for row in best if row.best_return is not None]
        if best:
            mark: dict[str, Any] = {"color": _BEST, "marker": "*", "markersize": 10, "linestyle": "none"}
            x = np.array([limits.index(row.cost_limit) for row in best])
            label = "data: best episode within the limit"
            for which, axes in enumerate(all_costs):
                axes.plot(x, [each(row.best_cost_return)[which] for row in best], zorder=4, **mark)
            handles += reward_axes.plot(x, [row.best_return for row in best], zorder=4, label=label, **mark)
        for axes in (reward_axes, *all_costs):
            axes.set_xlabel("cost limit per episode")
            axes.set_xticks(range(len(limits)), [shown_limit(limit) for limit in limits])
            axes.set_xlim(-0.6, len(limits) - 0.4)
        for which, (axes, name) in enumerate(zip(all_costs, names, strict=True)):
            line = _draw_limits(axes, [each(limit)[which] for limit in limits])
            axes.set(title=name.capitalize(), ylabel=f"{name} return")
        handles.append(line)
        reward_axes.set(title="Reward", ylabel="return")
        _add_normalized_axis(reward_axes, task)
        over = spread_over(summary for group in groups for summary in group.summaries)
        title = f"{task.name}: mean ± standard deviation over {over}"
        figure.suptitle(f"{title}\n{note}" if note else title, fontsize=10.5)
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def plot_cost_return(
    cost_returns: Any,
    returns: Any,
    path: str | os.PathLike[str] | None,
    entries: Iterable[EvaluationEntry],
    rollouts: "Iterable[tuple[str, Rollout]]" = (),
    risk: float | None = None,
) -> "Figure":
    """Draw the data's episodes in the plane of cost return and return, both (E,), the policy's on top.

    Means of `entries`, which are of one task, have one standard deviation over episodes; `rollouts` (what
    `on_rollout` of `evaluate` gets) are drawn as dots, those that were told a limit at this `risk`.
    ValueError: no entries, entries of several tasks, or data of different lengths.
    """
    cost_returns, returns = np.asarray(cost_returns, dtype=float), np.asarray(returns, dtype=float)
    if cost_returns.ndim != 1 or cost_returns.shape != returns.shape or len(returns) == 0:
        raise ValueError(
            f"need one cost return and one return per episode, got {cost_returns.shape} and {returns.shape}"
        )
    groups, task = _grouped(entries)
    played = list(rollouts)
    with figure_at(path, (6.4, 4.6)) as figure:
        axes = figure.subplots()
        axes.scatter(
            cost_returns,
            returns,
            s=9,
            color=_DATA,
            alpha=0.35,
            linewidth=0,
            label=f"behavior data, {len(returns)} episodes",
        )
        frontier = [(cost, returns[cost_returns <= cost].max()) for cost in np.unique(cost_returns)]
        axes.step(
            *zip(*frontier, strict=True),
            where="post",
            color=_BEST,
            linewidth=1.1,
            label="data: best return within a cost",
        )
        for group in groups:
            is_same = not group.knows_limit or group.summaries[0].risk == risk
            _draw_policy(axes, group, played if is_same else [])
        for limit in _limits(groups):
            axes.axvline(limit, color="black", linestyle=(0, (4, 3)), linewidth=0.8, zorder=1)
            axes.annotate(
                f"limit {limit:g}",
                (limit, 0.01),
                xycoords=("data", "axes fraction"),
                xytext=(2, 0),
                textcoords="offset points",
                rotation=90,
                fontsize=7.5,
                va="bottom",
            )
        axes.set(title=task.name, xlabel="cost return", ylabel="return")
        _add_normalized_axis(axes, task)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


@dataclass(frozen=True)
class _Group:
    """One way of choosing actions, over the limits."""

    name: str
    summaries: list[SeedSummary]
    style: dict[str, Any]

    @property
    def knows_limit(self) -> bool:
        return self.summaries[0].told_limit


def _grouped(
    entries: Iterable[EvaluationEntry], name_of: Callable[[SeedSummary], str] = policy_name
) -> tuple[list[_Group], Task]:
    """Summaries by policy, each sorted by limit; safe extraction first."""
    summaries = summarize_seeds(entries)
    tasks = sorted({summary.task for summary in summaries})
    if len(tasks) != 1:
        raise ValueError(f"a plot shows entries of one task, got {tasks or 'none'}")
    by_name: dict[str, list[SeedSummary]] = {}
    for summary in sorted(summaries, key=lambda s: (not s.told_limit, not s.feedback)):
        by_name.setdefault(name_of(summary), []).append(summary)
    groups: list[_Group] = []
    for name, members in by_name.items():
        told = members[0].told_limit
        # The first safe curve and the first other one have the same colors in every plot.
        colors = _SAFE_COLORS if told else _OTHER_COLORS
        rank = sum(group.knows_limit == told for group in groups)
        style = {
            "color": colors[rank % len(colors)],
            "marker": _MARKERS[len(groups) % len(_MARKERS)],
            "markersize": 5.5,
            "linestyle": "-" if told else "--",
        }
        groups.append(_Group(name, members, style))
    return groups, get_task(tasks[0])


def _limits(groups: list[_Group]) -> list[Any]:
    """All limits, of one cost numbers, of several tuples. ValueError: some are of another number of costs."""
    limits = {summary.cost_limit for group in groups for summary in group.summaries}
    if len({len(each(limit)) for limit in limits}) > 1:
        raise ValueError("a plot shows policies of the same costs, but these have different numbers of costs")
    return sorted(limits, key=each)


def _draw_policy(axes: "Axes", group: _Group, rollouts: "list[tuple[str, Rollout]]") -> None:
    color = group.style["color"]
    # A policy that knows no limit has the same mean at each: draw it once.
    for summary in group.summaries if group.knows_limit else group.summaries[:1]:
        told = (summary.extraction, summary.cost_limit if group.knows_limit else None, summary.feedback)
        for extraction, played in rollouts:
            if (extraction, played.cost_limit, played.feedback) == told:
                dots = {"s": 12, "color": color, "alpha": 0.45, "linewidth": 0, "zorder": 3}
                axes.scatter(played.cost_returns, played.returns, **dots)
        axes.errorbar(
            summary.cost.mean,
            summary.reward.mean,
            xerr=[[min(summary.cost.std, summary.cost.mean)], [summary.cost.std]],
            yerr=summary.reward.std,
            **(group.style | {"linestyle": "none", "capsize": 2, "elinewidth": 1.2, "zorder": 5}),
            markeredgecolor="white",
            label=f"{group.name}, mean ± std" if summary is group.summaries[0] else None,
        )
        if group.knows_limit:
            axes.annotate(
                f"{summary.cost_limit:g}",
                (summary.cost.mean, summary.reward.mean),
                xytext=(5, 5),
                textcoords="offset points",
                color=color,
                fontweight="bold",
                zorder=6,
            )


def _draw_limits(axes: "Axes", limits: list[float]) -> Any:
    """A line at each limit across its column, and what lies above it shaded; returns one of the lines."""
    top = max(axes.get_ylim()[1], 1.1 * max(limits))
    style: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 3)), "linewidth": 1.0, "zorder": 1}
    for column, limit in enumerate(limits):
        ends = [column - 0.48, column + 0.48]
        (line,) = axes.plot(ends, [limit, limit], label="limit", **style)
        axes.fill_between(ends, limit, top, color=_UNSAFE, alpha=0.06, linewidth=0, zorder=0)
    axes.set_ylim(0, top)
    return line


def _add_normalized_axis(axes: "Axes", task: Task) -> None:
    width = task.reward_max - task.reward_min

    def to_return(value: Any) -> Any:
        return np.asarray(value, dtype=float) * width + task.reward_min

    normalized = axes.secondary_yaxis("right", functions=(task.normalize_reward, to_return))
    normalized.set_ylabel("normalised reward")
    normalized.spines["right"].set_visible(True)


def _smooth(values: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Exponential moving average over about `share` of the curve, without the bias towards the start."""
    import pandas as pd  # type: ignore[import-untyped]

    finite = pd.Series(np.where(np.isfinite(values), values, np.nan))
    return finite.ewm(alpha=1.0 / max(1.0, share * len(values)), ignore_na=True).mean().to_numpy()


def _thousands(value: float, _position: int) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def _with_palette(file: Path) -> None:
    """Store a picture with 256 colors: a third of the size, as it goes with every policy."""
    from PIL import Image

    with Image.open(file) as picture:
        dpi, small = picture.info.get("dpi"), picture.convert("RGB").quantize(256)
    small.save(file, optimize=True, **({} if dpi is None else {"dpi": dpi}))


@contextlib.contextmanager
def figure_at(path: str | os.PathLike[str] | None, size: tuple[float, float]) -> "Iterator[Figure]":
    """A figure in the style of all, in inches, written to `path` at the end, complete or not at all.

    None writes none. ValueError: its suffix names no format; OSError: it cannot be written; what was there is
    untouched.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # A Figure of its own draws with Agg and leaves pyplot's state and backend alone.
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        formats = figure.canvas.get_supported_filetypes()
        if path is not None and Path(path).suffix[1:].lower() not in formats:
            known = ", ".join(f".{name}" for name in sorted(formats))
            raise ValueError(f"{path}: the suffix gives a picture's format, and must be one of {known}")
        yield figure
        if path is not None:
            with written_aside(path) as aside:
                figure.savefig(aside)
                if aside.suffix.lower() == ".png":
                    _with_palette(aside)
