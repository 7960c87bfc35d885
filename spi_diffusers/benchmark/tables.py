"""The paper's tables from a results file, as Markdown: ours, the statistics over seeds, the paper's own."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from spi_diffusers.benchmark.statistics import (
    AlgorithmStatistics,
    ScoreStatistic,
    algorithm_statistics,
    diverged_of,
    within_limit,
)
from spi_diffusers.benchmark.suites import SAFE, SAFE_NOT_FED_BACK, algorithms_of, title_of
from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.evaluation.results import DivergedRun, EvaluationEntry
from spi_diffusers.evaluation.summary import keeps_limit, shown, shown_range, shown_share

_NUMBERS = {"table1": "Table 1", "table2": "Table 2"}
_RESULTS_NOTE = (
    "Normalised reward / normalised cost, mean ± deviation over training seeds. A normalised cost "
    "of at most 1 keeps the limit (DSRL's rule); ✗ does not. **Bold**: the highest reward among "
    "those that keep the limit. † n: n seeds diverged; they have no figures, so the algorithm is not "
    "ranked."
)
#: What tables call safe SPI where it is not told its running cost, as no baseline is.
NOT_FED_BACK = f"{title_of('spi')}, cost not fed back"
_FEEDBACK_NOTE = (
    " Safe SPI is told its running cost, which no other algorithm takes, but where it says that it is not."
)


# ---- which entries belong to a table


@dataclass(frozen=True)
class TableData:
    """What a table of the paper, or its figures of averages, is made from.

    Attributes:
        suite: "table1", "table2" or "sensitivity".
        algorithms: Names of the algorithms that have results, in the order of the table.
        tasks: DSRL's names of the tasks that have results, in DSRL's order.
        entries: By (task, algorithm): one entry per training seed, at the task's smallest limit.
        diverged: Runs that diverged.
    """

    suite: str
    algorithms: tuple[str, ...]
    tasks: tuple[str, ...]
    entries: dict[tuple[str, str], list[EvaluationEntry]]
    diverged: tuple[DivergedRun, ...]

    @property
    def fed_back(self) -> str | None:
        """The algorithm that is told its running cost, and is played once more without."""
        variants = algorithms_of(self.suite).values()
        return next((one.name for one in variants if SAFE_NOT_FED_BACK in one.ways), None)

    def groups(self, task: str) -> dict[str, list[EvaluationEntry]]:
        """Every algorithm's entries on a task, one per training seed."""
        return {name: self.entries.get((task, name), []) for name in self.algorithms}

    def best_safe(self, task: str) -> str | None:
        """Of the algorithms that keep a task's limit, see `best_safe`, the one with the most reward."""
        return best_safe(self.groups(task), self.diverged, task, get_task(task).cost_limits[0])

    @property
    def common_tasks(self) -> tuple[str, ...]:
        """The tasks on which every algorithm has results: averages over others would not compare."""
        return tuple(task for task in self.tasks if all(self.groups(task).values()))

    @property
    def left_out(self) -> dict[str, list[str]]:
        """The other tasks, and which algorithms have no results there."""
        missing = {
            task: [name for name, group in self.groups(task).items() if not group] for task in self.tasks
        }
        return {task: names for task, names in missing.items() if names}

    def statistics(self) -> list[AlgorithmStatistics]:
        """Every algorithm over the common tasks; empty where there are none."""
        common = self.common_tasks
        if not common:
            return []
        return [
            algorithm_statistics([e for task in common for e in self.entries[task, name]], self.diverged)
            for name in self.algorithms
        ]


def table_data(
    suite: str,
    entries: Iterable[EvaluationEntry],
    diverged: Sequence[DivergedRun] = (),
    *,
    feedback: bool = True,
) -> TableData:
    """The entries of a table.

    Args:
        suite: "table1", "table2" or "sensitivity".
        entries: All that there are.
        diverged: Runs that diverged.
        feedback: Whether safe SPI's entries are those where it is told its running cost.
    """
    known = algorithms_of(suite)
    found: dict[tuple[str, str], list[EvaluationEntry]] = {}
    for entry in _entries_of(suite, entries, feedback):
        if entry.cost_limit == get_task(entry.task).cost_limits[0]:
            found.setdefault((entry.task, entry.algorithm), []).append(entry)
    # An algorithm of which every run diverged must be seen too.
    lost = {
        (run.task, run.algorithm)
        for run in diverged
        if run.algorithm in known and run.cost_limit in (None, get_task(run.task).cost_limits[0])
    }
    present = found.keys() | lost
    return TableData(
        suite,
        tuple(name for name in known if any(algorithm == name for _, algorithm in present)),
        tuple(name for name in TASKS if any(task == name for task, _ in present)),
        found,
        tuple(diverged),
    )


def limit_entries(entries: Iterable[EvaluationEntry]) -> dict[str, list[EvaluationEntry]]:
    """By task: all algorithms' entries, where safe SPI and at least one more have two or more limits."""
    told = {name for name, variant in algorithms_of("limits").items() if SAFE in variant.ways}
    by_task: dict[str, list[EvaluationEntry]] = {}
    for entry in _entries_of("limits", entries):
        by_task.setdefault(entry.task, []).append(entry)
    chosen = {}
    for task in (name for name in TASKS if name in by_task):
        limits: dict[str, set[float]] = {}
        for entry in by_task[task]:
            limits.setdefault(entry.algorithm, set()).add(entry.cost_limit)
        several = {name for name, values in limits.items() if len(values) > 1}
        if several & told and len(several) > 1:
            chosen[task] = by_task[task]
    return chosen


def _entries_of(
    suite: str, entries: Iterable[EvaluationEntry], feedback: bool = True
) -> Iterable[EvaluationEntry]:
    ways = {name: variant.way(feedback) for name, variant in algorithms_of(suite).items()}
    return (entry for entry in entries if (entry.extraction, entry.feedback) == ways.get(entry.algorithm))


def best_safe(
    groups: Mapping[str, Sequence[EvaluationEntry]],
    diverged: Iterable[DivergedRun],
    task: str,
    limit: float,
) -> str | None:
    """The algorithm with the highest mean reward among those whose mean cost keeps the limit.

    Args:
        groups: Each algorithm's entries, one per training seed.
        diverged: Runs that diverged; an algorithm that lost any here is out.
        task: DSRL's name of the task.
        limit: Cost limit.
    """
    rewards = {
        name: float(np.mean([entry.normalized_reward for entry in group]))
        for name, group in groups.items()
        if group
        and keeps_limit(float(np.mean([entry.normalized_cost for entry in group])))
        and not diverged_of(diverged, task, name, limit)
    }
    return max(rewards, key=lambda name: rewards[name], default=None)


def statistics_not_fed_back(data: TableData, not_fed_back: TableData) -> AlgorithmStatistics | None:
    """Safe SPI where it is not told its running cost, as no baseline is, over the tasks of a table.

    Args:
        data: The table.
        not_fed_back: `table_data(..., feedback=False)` of the same results.

    Returns:
        Its statistics; None where a common task of the table lacks such results.
    """
    name = data.fed_back
    groups = [not_fed_back.entries.get((task, name or ""), []) for task in data.common_tasks]
    if not groups or not all(groups):
        return None
    return algorithm_statistics([entry for group in groups for entry in group], data.diverged)


# ---- tables of our results


def results_table(data: TableData) -> str:
    """Normalised reward / normalised cost of every algorithm on every task; the best safe reward is bold."""
    rows = [
        _results_row(task, get_task(task).cost_limits[0], data.groups(task), data.diverged)
        for task in data.tasks
    ]
    return "\n".join(
        [*_markdown(["task (limit, seeds)", *map(title_of, data.algorithms)], rows), "", _RESULTS_NOTE]
    )


def within_table(data: TableData) -> str:
    """Share of the episodes within the limit and the worst seed, of every algorithm on every task."""

    def cell(group: Sequence[EvaluationEntry]) -> str:
        if not group:
            return ""
        worst = max(entry.normalized_cost for entry in group)
        return f"{shown_share(within_limit(group))}, {shown(worst)}"

    rows = []
    for task in data.tasks:
        known = get_task(task)
        rows.append(
            [f"{known.short_name} ({known.cost_limits[0]:g})", *map(cell, data.groups(task).values())]
        )
    header = ["episodes within the limit, worst seed's normalised cost", *map(title_of, data.algorithms)]
    return "\n".join(_markdown(header, rows))


def limits_table(by_task: Mapping[str, Sequence[EvaluationEntry]], diverged: Sequence[DivergedRun]) -> str:
    """Normalised reward / normalised cost of every algorithm at every limit.

    Args:
        by_task: What `limit_entries` chose.
        diverged: Runs that diverged.
    """
    known = algorithms_of("limits")
    present = {entry.algorithm for entries in by_task.values() for entry in entries}
    present |= {run.algorithm for run in diverged if run.task in by_task}
    names = [name for name in known if name in present]
    rows = []
    for task, entries in by_task.items():
        for limit in sorted({entry.cost_limit for entry in entries}):
            groups = {
                name: [e for e in entries if (e.algorithm, e.cost_limit) == (name, limit)] for name in names
            }
            rows.append(_results_row(task, limit, groups, diverged))
    header = ["task (limit, seeds)", *map(title_of, names)]
    one = " and ".join(title_of(name) for name in names if not known[name].per_limit)
    note = f"One policy of {one} for all limits; the others are trained for each limit. {_RESULTS_NOTE}"
    return "\n".join([*_markdown(header, rows), "", note])


def statistics_table(data: TableData, not_fed_back: TableData | None = None) -> str:
    """Every algorithm over the tasks that all have: mean, interquartile mean with interval, worst seed.

    Args:
        data: What the table is made from.
        not_fed_back: The same with safe SPI's results where it is not told its running cost, which then have
            a row of their own, if they are of all of the tasks.
    """
    statistics = data.statistics()
    missing = "; ".join(
        f"{get_task(task).short_name} ({', '.join(map(title_of, names))})"
        for task, names in data.left_out.items()
    )
    if not statistics:
        return (
            f"No task has results of every algorithm: there are no averages to compare. Missing: {missing}."
        )
    tasks = len(data.common_tasks)
    header = ["", "normalised reward", "reward, IQM", "normalised cost", "cost, IQM", "tasks kept"]
    header += ["episodes within", "worst seed", "seeds", "updates", "minutes"]
    rows = [_statistics_row(row, title_of(row.algorithm)) for row in statistics]
    alone = statistics_not_fed_back(data, not_fed_back) if not_fed_back else None
    told = data.fed_back in data.algorithms
    if alone:  # below its own row, the first, if there is one
        rows.insert(told, _statistics_row(alone, NOT_FED_BACK))
    return "\n".join(
        [
            f"Over {tasks} task{'s' * (tasks > 1)}: "
            f"{', '.join(get_task(task).short_name for task in data.common_tasks)}."
            + (f" Left out, as algorithms have no results there: {missing}." if missing else ""),
            "",
            *_markdown(header, rows),
            "",
            "Mean over the tasks ± deviation over training seeds; IQM: interquartile mean over all tasks "
            "and seeds, every task weighing alike, with the 95% bootstrap interval, seeds resampled within "
            "every task; with as few seeds as three it is narrower than that. ‡ n: n tasks have a single "
            "seed, of whose spread deviations and intervals know nothing. Tasks kept: mean normalised cost "
            "at most 1. Worst seed: lowest reward / highest cost of a seed on a task. Updates and minutes of "
            "one training." + (_FEEDBACK_NOTE if told else ""),
        ]
    )


def diverged_list(runs: Sequence[DivergedRun]) -> str:
    """Which seeds diverged, a line each."""
    lines = []
    for run in runs:
        limit = "" if run.cost_limit is None else f" for limit {run.cost_limit:g}"
        what = f"{get_task(run.task).short_name}, {title_of(run.algorithm)}{limit}, seed {run.train_seed}"
        lines.append(f"* {what}: {run.message}")
    return "\n".join(lines)


# ---- the paper's own figures: of other data, so beside ours and never mixed with them


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        rows: By DSRL's task name and by our name of the algorithm: (normalised reward, normalised cost).
        average: The paper's own average row, by algorithm.
    """

    rows: dict[str, dict[str, tuple[float, float]]]
    average: dict[str, tuple[float, float]]


@cache
def paper_table(name: str) -> PaperTable:
    """One of the paper's tables, "table1" or "table2"."""
    text = resources.files("spi_diffusers.benchmark").joinpath("paper_results.json").read_text("utf-8")
    return PaperTable(**json.loads(text)[name])


def published_table(suite: str) -> str:
    """The paper's own figures, marked as such."""
    table = paper_table(suite)
    names = list(table.average)
    rows = [
        [get_task(task).short_name, *(_pair(*row[name]) for name in names)]
        for task, row in table.rows.items()
    ]
    rows.append(["average", *(_pair(*table.average[name]) for name in names)])
    return "\n".join(
        [
            *_markdown(["paper, other data", *map(title_of, names)], rows),
            "",
            f"The paper's {_NUMBERS[suite]}, as published: trained on DSRL's datasets, which are not ours. "
            "It does not say what cost limit its costs are relative to.",
        ]
    )


# ---- rows and cells


def _results_row(
    task: str, limit: float, groups: Mapping[str, Sequence[EvaluationEntry]], diverged: Sequence[DivergedRun]
) -> list[str]:
    best = best_safe(groups, diverged, task, limit)
    cells = []
    for name, group in groups.items():
        lost = diverged_of(diverged, task, name, limit)
        mark = f" † {lost}" if lost else ""
        if not group:
            cells.append(f"diverged{mark}" if lost else "")
            continue
        reward = _with_spread([entry.normalized_reward for entry in group])
        costs = [entry.normalized_cost for entry in group]
        kept = keeps_limit(float(np.mean(costs)))
        reward = f"**{reward}**" if name == best else reward
        cells.append(f"{reward} / {_with_spread(costs)}{'' if kept else ' ✗'}{mark}")
    counts = [len(group) for group in groups.values() if group]
    seeds = f"{shown_range(counts)} seed{'s' * (max(counts, default=0) != 1)}"
    return [f"{get_task(task).short_name} ({limit:g}, {seeds})", *cells]


def _statistics_row(row: AlgorithmStatistics, name: str) -> list[str]:
    seeds = shown_range(row.seeds)
    if row.seeds[1] > 1 and row.single_seed_tasks:
        seeds += f" ‡ {row.single_seed_tasks}"
    return [
        name,
        _mean(row.reward),
        _iqm(row.reward),
        _mean(row.cost),
        _iqm(row.cost),
        f"{row.safe_tasks} of {len(row.tasks)}",
        shown_share(row.within_limit),
        f"{shown(row.worst_reward)} / {shown(row.worst_cost)}",
        f"{seeds}{f' † {row.diverged}' if row.diverged else ''}",
        shown_range(row.updates),
        f"{row.train_seconds / 60:.1f}",
    ]


def _with_spread(values: list[float]) -> str:
    text = shown(float(np.mean(values)))
    return f"{text} ± {shown(float(np.std(values, ddof=1)))}" if len(values) > 1 else text


def _mean(score: ScoreStatistic) -> str:
    return shown(score.mean) + ("" if score.seed_std is None else f" ± {shown(score.seed_std)}")


def _iqm(score: ScoreStatistic) -> str:
    if score.interval is None:
        return shown(score.iqm)
    low, high = score.interval
    return f"{shown(score.iqm)} [{shown(low)}, {shown(high)}]"


def _pair(reward: float, cost: float) -> str:
    return f"{shown(reward)} / {shown(cost)}{' ✗' if cost > 1 else ''}"


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
