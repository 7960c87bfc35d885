"""The paper's figures from a results file; Figure 2 from the Pixel world itself."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spi_diffusers.benchmark.statistics import AlgorithmStatistics, performance_profile, score_statistic
from spi_diffusers.benchmark.suites import title_of, weights_of
from spi_diffusers.benchmark.tables import TableData, paper_table
from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.evaluation.entries import DivergedRun, EvaluationEntry
from spi_diffusers.evaluation.plots import figure_at
from spi_diffusers.evaluation.summary import shown_range

_OURS, _PAPER_COLOR = "#0072B2", "#BBBBBB"
_CURVES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_LIMIT: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 3)), "linewidth": 1.0}
_SINGLE_NOTE = "‡ n: n tasks have a single seed, of whose spread the interval knows nothing"
LOST_NOTE = "† n: n training runs diverged and are not in it"
#: Discount of Figure 2; the paper names none.
PIXEL_GAMMA = 0.9


@dataclass(frozen=True)
class CurveData:
    """Learning curves of one draw of (eta, mu, phi).

    `points` are entries, one per task and seed, by the share of training done, in (0, 1]:
    tasks are trained for different numbers of updates. `diverged` counts training runs, which have no points.
    """

    weights: tuple[float, float, float]
    points: dict[float, list[EvaluationEntry]]
    diverged: int = 0

    @property
    def finished_tasks(self) -> set[str]:
        """DSRL's names of the tasks on which it was trained to the end."""
        return {entry.task for entry in self.points.get(1.0, ())}


def common_curve_tasks(curves: Sequence[CurveData]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tasks on which all curves go to the end, and the other ones; names and order are DSRL's.

    A draw of which every run diverged is on no task, so it does not count.
    """
    finished = [curve.finished_tasks for curve in curves if curve.points]
    shared = set.intersection(*finished) if finished else set()
    present = {entry.task for curve in curves for group in curve.points.values() for entry in group}
    in_order = [name for name in TASKS if name in present]
    return tuple(t for t in in_order if t in shared), tuple(t for t in in_order if t not in shared)


def learning_curves(
    entries: Iterable[EvaluationEntry], diverged: Iterable[DivergedRun] = ()
) -> list[CurveData]:
    """The learning curves of the sensitivity suite, one per draw, in the order of their weights.

    A point of a task holds what is done of the longest training that the task has. A draw of which every
    run diverged has no points.
    """
    drawn: dict[tuple[float, float, float], list[EvaluationEntry]] = {}
    for entry in entries:
        if weights := weights_of(entry.algorithm):
            drawn.setdefault(weights, []).append(entry)
    lost = [weights for run in diverged if (weights := weights_of(run.algorithm))]
    last: dict[str, int] = {}
    for entry in (entry for group in drawn.values() for entry in group):
        last[entry.task] = max(last.get(entry.task, 0), entry.updates)
    curves = []
    for weights in sorted({*drawn, *lost}):
        points: dict[float, list[EvaluationEntry]] = {}
        for entry in drawn.get(weights, ()):
            points.setdefault(round(entry.updates / max(last[entry.task], 1), 2), []).append(entry)
        curves.append(CurveData(weights, dict(sorted(points.items())), lost.count(weights)))
    return curves


def plot_averages(data: TableData, score: str, path: str | os.PathLike[str], title: str) -> None:
    """Draw every algorithm's `score` ("reward" or "cost") over the common tasks, and the paper's average.

    ValueError if no task has results of every algorithm.
    """
    statistics, tasks = data.statistics(), data.common_tasks
    if not statistics:
        raise ValueError("no task has results of every algorithm, so there are no averages to compare.")
    published = paper_table(data.suite)
    with figure_at(path, (max(5.6, 1.0 + 1.05 * len(statistics)), 3.8)) as figure:
        axes = figure.subplots()
        scores = [getattr(row, score) for row in statistics]
        means = [one.mean for one in scores]
        axes.bar(
            np.arange(len(scores)) - 0.2, means, 0.38, color=_OURS, label="ours, 95% interval over seeds"
        )
        for place, one in enumerate(scores):
            if one.mean_interval is not None:  # some task has several seeds
                low, high = one.mean_interval
                bar = np.maximum([[one.mean - low], [high - one.mean]], 0.0)
                axes.errorbar(place - 0.2, one.mean, yerr=bar, color="black", capsize=3, linewidth=1.0)
        if all(task in published.rows for task in tasks):
            column = ("reward", "cost").index(score)
            theirs = {
                place + 0.2: np.mean([published.rows[task][row.algorithm][column] for task in tasks])
                for place, row in enumerate(statistics)
                if row.algorithm in published.average
            }
            label = "paper, other data, same tasks"
            axes.bar(list(theirs), list(theirs.values()), 0.38, color=_PAPER_COLOR, label=label)
        if score == "cost":
            axes.axhline(1.0, label="limit", **_LIMIT)
        names = [
            _in_mathtext(row.algorithm) + _single_mark(row) + _lost_mark(row.diverged) for row in statistics
        ]
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
        axes.grid(axis="x", visible=False)
        over = f"over {len(tasks)} task{'s' * (len(tasks) > 1)}"
        axes.set(title=f"{title}, {over}", ylabel=f"normalised {score}")
        notes = [_SINGLE_NOTE] if any(map(_single_mark, statistics)) else []
        notes += [LOST_NOTE] if any(row.diverged for row in statistics) else []
        figure.legend(loc="outside lower center", ncols=2, title="\n".join(notes) or None)


def plot_profile(data: TableData, path: str | os.PathLike[str]) -> None:
    """Draw every algorithm's performance profile over the common tasks, of which there must be one."""
    rewards, tasks = np.linspace(0.0, 1.2, 241), data.common_tasks
    with figure_at(path, (6.4, 4.2)) as figure:
        axes = figure.subplots()
        for place, name in enumerate(data.algorithms):
            shares = performance_profile([data.groups(task)[name] for task in tasks], rewards)
            line = "-" if place < len(_CURVES) else "--"
            color = _CURVES[place % len(_CURVES)]
            label = _in_mathtext(name)
            axes.step(rewards, 100 * shares, line, color=color, label=label, where="post", linewidth=1.4)
        axes.set(
            title=f"Trainings that keep the limit, over {len(tasks)} task{'s' * (len(tasks) > 1)}",
            xlabel="and earn at least this normalized reward",
            ylabel="share in %",
            ylim=(0, 102),
        )
        figure.legend(loc="outside lower center", ncols=4)


def plot_learning_curves(
    curves: Sequence[CurveData],
    tasks: Sequence[str],
    score: str,
    path: str | os.PathLike[str],
    title: str,
) -> None:
    """Draw the average `score` ("reward" or "cost") over `tasks` along training, one curve per draw.

    A curve without points, as all of its runs diverged, is named in the legend only; all others must have all
    of the tasks. ValueError without curves or tasks.
    """
    if not curves or not tasks:
        raise ValueError("there are no learning curves of common tasks to draw.")
    seeds = set()
    with figure_at(path, (6.0, 4.0)) as figure:
        axes = figure.subplots()
        for curve, color in zip(curves, _CURVES * (1 + len(curves) // len(_CURVES)), strict=False):
            shares, means, spreads = [], [], []
            for share, entries in curve.points.items():
                groups = [
                    [getattr(entry, f"normalized_{score}") for entry in entries if entry.task == task]
                    for task in tasks
                ]
                if not all(groups):
                    continue  # an average over other tasks would bend the curve
                seeds |= {len(group) for group in groups}
                statistic = score_statistic(groups)
                shares.append(100 * share)
                means.append(statistic.mean)
                spreads.append(statistic.seed_std or 0.0)
            eta, mu, phi = curve.weights
            label = rf"$\eta$ {eta:.2f}, $\mu$ {mu:.2f}, $\phi$ {phi:.2f}{_lost_mark(curve.diverged)}"
            axes.plot(shares, means, color=color, marker="o", markersize=3.5, label=label)
            low, high = np.array(means) - spreads, np.array(means) + spreads
            axes.fill_between(shares, low, high, color=color, alpha=0.15, linewidth=0)
        if score == "cost":
            axes.axhline(1.0, label="limit", **_LIMIT)
            axes.set_ylim(bottom=0)
        names = ", ".join(get_task(task).short_name for task in tasks)
        over = f"{shown_range(seeds)} training seed{'s' * (max(seeds) != 1)}"
        band = ", band: ± deviation over them" if max(seeds) > 1 else ""
        axes.set(title=title, xlabel="share of the training that is done, in %", ylabel=f"normalised {score}")
        figure.suptitle(f"{names}\n{over}{band}", fontsize=8)
        figure.legend(
            loc="outside lower center",
            ncols=2,
            title=LOST_NOTE if any(curve.diverged for curve in curves) else None,
        )


def plot_pixel_world(path: str | os.PathLike[str]) -> None:
    """Draw Figure 2: on longer Pixel worlds the cost c vanishes at the start, its remap c' does not.

    Policies are compared by values that solve the Bellman equation in the environment's own dynamics: the
    white trajectory into the trap, one that never ends, and the way to the goal. Two things are seen that the
    paper does not say. Their difference shrinks as gamma^n with c and with c' alike; what c' cures is that
    the value itself goes to 0. And c' counts the steps that are left: the goal, which ends the episode two
    steps sooner than the trap, has the lowest value.
    """
    lengths = np.arange(3, 41)
    values = pixel_world_values(lengths, PIXEL_GAMMA)
    with figure_at(path, (9.6, 3.6)) as figure:
        world, cost_axes, safety_axes = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
        world.imshow(_white_trajectory_picture(6))
        world.set(title="3 x 6 Pixel world, white trajectory", xticks=[], yticks=[])
        world.grid(visible=False)
        cost_axes.plot(lengths, values["cost"], color=_CURVES[1], label=r"into the trap: $\gamma^n$")
        cost_axes.plot(lengths, np.zeros(len(lengths)), color=_CURVES[2], label="not into the trap: 0")
        cost_axes.set(title="$Q^c$ at the start vanishes", xlabel="columns n", ylabel="discounted cost c")
        safety_axes.plot(lengths, values["safety_stay"], color=_CURVES[2], label="without an end")
        safety_axes.plot(lengths, values["safety"], color=_CURVES[1], label="into the trap")
        safety_axes.plot(lengths, values["safety_goal"], color=_CURVES[0], label="to the goal, where it ends")
        safety_axes.set(
            title="$Q^{c'}$ at the start does not", xlabel="columns n", ylabel="discounted c' = 1 - c"
        )
        for axes in (cost_axes, safety_axes):
            axes.legend()
            axes.set_ylim(bottom=0)
        figure.suptitle(
            rf"Figure 2: values of the initial position, $\gamma$ = {PIXEL_GAMMA:g}", fontsize=10.5
        )


def pixel_world_values(lengths: Sequence[int] | np.ndarray, gamma: float) -> dict[str, np.ndarray]:
    """Values of the start on Pixel worlds with several numbers of columns, for a discount in [0, 1).

    "cost" and "safety" are the discounted c and c' of the white trajectory, "safety_stay" the discounted c'
    of walking up against the border, "safety_goal" that of the straight way to the goal; one value per
    length.
    """
    from spi_diffusers.envs.pixel_world import DOWN, RIGHT, UP, safe_policy, transition_table, white_policy

    values: dict[str, list[float]] = {"cost": [], "safety": [], "safety_stay": [], "safety_goal": []}
    for n in lengths:
        world = transition_table(int(n))
        white, straight = white_policy(int(n)), safe_policy(int(n))
        stay = np.eye(4)[np.full(len(white), UP)]
        safety = 1.0 - world.cost
        for name, policy, signal, first in (
            ("cost", white, world.cost, DOWN),
            ("safety", white, safety, DOWN),
            ("safety_stay", stay, safety, UP),
            ("safety_goal", straight, safety, RIGHT),
        ):
            values[name].append(float(world.action_values(policy, signal, gamma)[world.start, first]))
    return {name: np.array(column) for name, column in values.items()}


def _single_mark(row: AlgorithmStatistics) -> str:
    """As in the table: where no task has several seeds, the missing interval says it."""
    return f" ‡ {row.single_seed_tasks}" if row.single_seed_tasks and row.seeds[1] > 1 else ""


def _lost_mark(diverged: int) -> str:
    return f" † {diverged}" if diverged else ""


def _in_mathtext(algorithm: str) -> str:
    return title_of(algorithm).replace("Q^c'", "$Q^{c'}$").replace("Q^r", "$Q^r$")


def _white_trajectory_picture(num_columns: int) -> np.ndarray:
    from spi_diffusers.envs.pixel_world import PixelWorldEnv, white_trajectory

    env = PixelWorldEnv(num_columns, continuous=False, render_mode="rgb_array")
    env.reset()
    for move in white_trajectory(num_columns)[:-1]:
        env.step(move)
    picture = env.render()
    assert picture is not None
    return picture
