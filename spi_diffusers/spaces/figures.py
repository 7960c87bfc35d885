"""The page's figures: a step's candidates with the running cost, and the frontier with what was played."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spi_diffusers.evaluation.entries import EvaluationEntry
from spi_diffusers.evaluation.plots import figure_at
from spi_diffusers.evaluation.summary import summarize_seeds
from spi_diffusers.evaluation.video import Replay
from spi_diffusers.spaces.episode import Episode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which differ for color-blind readers too.
_FITS, _TOO_MUCH, _CHOSEN, _LIMIT = "#0072B2", "#CC3311", "#E69F00", "#000000"
_LINES = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9")
_DASHED = (0, (4, 3))


def plot_step(episode: Episode, step: int) -> "Figure":
    """Draw what the policy weighed at a step, and the cost up to it.

    Left, each candidate's expected return and cost over the steps left; a line leads to the cost with the
    margin for the risk, which must fit into the budget. Right, the cost so far, against the limit.

    ValueError: the episode has no such step.
    """
    if not 0 <= step < len(episode.decisions):
        raise ValueError(f"step must lie in 0 to {len(episode.decisions) - 1}, got {step}")
    decision = episode.decisions[step]
    limit: Any = episode.replay.cost_limit
    with figure_at(None, (8.6, 3.8)) as figure:
        candidates, running = figure.subplots(1, 2, width_ratios=(3, 2))
        candidates.hlines(decision.returns, decision.costs, decision.bounds, color="#B0B0B0", linewidth=1)
        for fits, color, label in ((True, _FITS, "fits"), (False, _TOO_MUCH, "does not fit")):
            rows = decision.feasible == fits
            place = decision.costs[rows], decision.returns[rows]
            candidates.scatter(*place, s=36, color=color, zorder=3, label=label if rows.any() else None)
        place = decision.costs[decision.chosen], decision.returns[decision.chosen]
        candidates.scatter(
            *place, s=170, facecolor="none", edgecolor=_CHOSEN, linewidth=2.2, zorder=4, label="chosen"
        )
        for row in (0, len(decision.weights) - 1):
            text = f"w = {decision.weights[row]:g}"
            place = decision.costs[row], decision.returns[row]
            candidates.annotate(text, place, xytext=(6, 6), textcoords="offset points", fontsize=8)
        budget = f"budget {decision.budget:.3g}"
        candidates.axvline(max(decision.budget, 0.0), color=_LIMIT, linestyle=_DASHED, label=budget)
        left = f"over the {decision.steps_left} steps left"
        candidates.set(xlabel=f"expected cost {left} (line: with margin)", ylabel="expected return")
        candidates.set_title(f"Step {step}: candidates by safety weight w")
        candidates.legend()
        costs = [episode.cost_before(done) for done in range(len(episode.decisions) + 1)]
        running.plot(costs, color="#B0B0B0", linewidth=1)
        running.plot(costs[: step + 1], color=_FITS if costs[step] <= limit else _TOO_MUCH)
        running.plot([step], [costs[step]], "o", color=_CHOSEN, markersize=8)
        running.axhline(limit, color=_LIMIT, linestyle=_DASHED, label=f"limit {limit:g}")
        running.set(xlabel="step", ylabel="cost so far", title=f"Running cost: {costs[step]:.3g}")
        running.legend()
    return figure


def plot_frontier(entries: Sequence[EvaluationEntry], replays: Sequence[Replay] = ()) -> "Figure":
    """Draw reward and cost against the limit: means of results by risk, and episodes played, the last large.

    Bars span one standard deviation over the episodes of the results.
    """
    summaries = summarize_seeds(entries)
    risks = sorted({summary.risk for summary in summaries}, key=lambda risk: risk or 0.0)
    with figure_at(None, (8.6, 3.8)) as figure:
        reward_axes, cost_axes = figure.subplots(1, 2)
        for number, risk in enumerate(risks):
            own = [summary for summary in summaries if summary.risk == risk]
            limits = [summary.cost_limit for summary in own]
            label = f"mean of {own[0].episodes} episodes" + ("" if risk is None else f", risk {risk:g}")
            style = {"color": _LINES[number % len(_LINES)], "marker": "o", "capsize": 3, "label": label}
            for axes, name in ((reward_axes, "reward"), (cost_axes, "cost")):
                figures = [getattr(summary, name) for summary in own]
                means, spread = np.array([[one.mean, one.std] for one in figures]).T
                below = spread if name == "reward" else np.minimum(spread, means)
                axes.errorbar(limits, means, yerr=[below, spread], **style)
        for number, replay in enumerate(replays):
            is_last = number == len(replays) - 1
            mark = {"marker": "*", "color": _CHOSEN, "linestyle": "none", "markersize": 15 if is_last else 8}
            mark |= {"zorder": 5, "label": "this episode" if is_last else "_earlier"}
            reward_axes.plot([replay.cost_limit], [replay.return_], **mark)
            cost_axes.plot([replay.cost_limit], [replay.cost_return], **mark)
        reward_axes.set(title="Reward against the limit", ylabel="return")
        cost_axes.set(title="Cost against the limit", ylabel="cost of the episode")
        for axes in (reward_axes, cost_axes):
            axes.set_xlabel("cost limit")
            axes.set_xlim(left=0)
        top = max(cost_axes.get_xlim()[1], cost_axes.get_ylim()[1])
        cost_axes.plot([0, top], [0, top], color=_LIMIT, linestyle=_DASHED, linewidth=1, label="limit")
        cost_axes.set(xlim=reward_axes.get_xlim(), ylim=(0, None))
        cost_axes.legend(loc="upper left")
    return figure
