"""The paper's tables from a results file, as Markdown: ours, the statistics over seeds, the paper's own."""

from collections.abc import Mapping, Sequence

import numpy as np

from spi_diffusers.benchmark.paper import paper_table
from spi_diffusers.benchmark.selection import TableData, best_safe, statistics_not_fed_back, title_of
from spi_diffusers.benchmark.statistics import AlgorithmStatistics, ScoreStatistic, within_limit
from spi_diffusers.benchmark.suites import LIMIT_FREE, systems_of
from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.results import DivergedRun, EvaluationEntry
from spi_diffusers.evaluation.summary import keeps_limit, shown, shown_range, shown_share

_NUMBERS = {"table1": "Table 1", "table2": "Table 2"}
_RESULTS_NOTE = (
    "Normalised reward / normalised cost, mean ± deviation over training seeds. A normalised cost "
    "of at most 1 keeps the limit (DSRL's rule); ✗ does not. **Bold**: the highest reward among "
    "those that keep the limit. † n: n seeds diverged; they have no figures, so the system is not "
    "ranked."
)
#: What tables call safe SPI where it is not told its running cost, as no baseline is.
NOT_FED_BACK = f"{title_of('spi')}, cost not fed back"
_FEEDBACK_NOTE = (
    " Safe SPI is told its running cost, which no other system takes, but where it says that it is not."
)


def results_table(data: TableData) -> str:
    """Normalised reward / normalised cost of every system on every task; the best safe reward is bold."""
    header = ["task (limit, seeds)", *map(title_of, data.systems)]
    rows = []
    for task in data.tasks:
        known = get_task(task)
        groups = {system: data.entries.get((task, system), []) for system in data.systems}
        lost = {system: data.diverged_of(task, system) for system in data.systems}
        best = data.best_safe(task)
        cells = [_cell(group, lost[system], bold=system == best) for system, group in groups.items()]
        rows.append([f"{known.short_name} ({known.cost_limits[0]:g}, {_seeds(groups)})", *cells])
    return "\n".join([*_markdown(header, rows), "", _RESULTS_NOTE])


def within_table(data: TableData) -> str:
    """Share of the episodes within the limit and the worst seed, of every system on every task."""

    def cell(group: Sequence[EvaluationEntry]) -> str:
        if not group:
            return ""
        worst = max(entry.normalized_cost for entry in group)
        return f"{shown_share(within_limit(group))}, {shown(worst)}"

    rows = []
    for task in data.tasks:
        groups = [data.entries.get((task, system), []) for system in data.systems]
        known = get_task(task)
        rows.append([f"{known.short_name} ({known.cost_limits[0]:g})", *map(cell, groups)])
    header = ["episodes within the limit, worst seed's normalised cost", *map(title_of, data.systems)]
    return "\n".join(_markdown(header, rows))


def limits_table(by_task: Mapping[str, Sequence[EvaluationEntry]], diverged: Sequence[DivergedRun]) -> str:
    """Normalised reward / normalised cost of every system at every limit.

    Args:
        by_task: What `limit_entries` chose.
        diverged: Runs that diverged.
    """
    known = systems_of("limits")
    present = {entry.algorithm for entries in by_task.values() for entry in entries}
    present |= {run.algorithm for run in diverged if run.task in by_task}
    systems = [name for name in known if name in present]
    rows = []
    for task, entries in by_task.items():
        for limit in sorted({entry.cost_limit for entry in entries}):
            groups = {
                system: [e for e in entries if (e.algorithm, e.cost_limit) == (system, limit)]
                for system in systems
            }
            lost = {
                system: sum(
                    (run.task, run.algorithm) == (task, system) and run.cost_limit in (None, limit)
                    for run in diverged
                )
                for system in systems
            }
            best = best_safe(groups, lost)
            cells = [_cell(groups[name], lost[name], bold=name == best) for name in systems]
            rows.append([f"{get_task(task).short_name} ({limit:g}, {_seeds(groups)})", *cells])
    header = ["task (limit, seeds)", *map(title_of, systems)]
    one = " and ".join(title_of(name) for name in systems if name in LIMIT_FREE)
    note = f"One policy of {one} for all limits; the others are trained for each limit. {_RESULTS_NOTE}"
    return "\n".join([*_markdown(header, rows), "", note])


def statistics_table(data: TableData, not_fed_back: TableData | None = None) -> str:
    """Every system over the tasks that all have: mean, interquartile mean with interval, worst seed.

    Args:
        data: What the table is made from.
        not_fed_back: The same with safe SPI's results where it is not told its running cost, which then have
            a row of their own, if they are of all of the tasks.
    """
    statistics = data.statistics()
    missing = "; ".join(
        f"{get_task(task).short_name} ({', '.join(title_of(s) for s in systems)})"
        for task, systems in data.left_out.items()
    )
    if not statistics:
        return (
            f"No task has results of every system, so there are no averages to compare. Missing: {missing}."
        )
    tasks = len(data.common_tasks)
    header = ["", "normalised reward", "reward, IQM", "normalised cost", "cost, IQM", "tasks kept"]
    header += ["episodes within", "worst seed", "seeds", "updates", "minutes"]
    rows = [_statistics_row(row, tasks, title_of(row.algorithm)) for row in statistics]
    alone = statistics_not_fed_back(data, not_fed_back) if not_fed_back else None
    if alone:  # below safe SPI's own row, the first, if there is one
        rows.insert("spi" in data.systems, _statistics_row(alone, tasks, NOT_FED_BACK))
    return "\n".join(
        [
            f"Over {tasks} task{'s' * (tasks > 1)}: "
            f"{', '.join(get_task(task).short_name for task in data.common_tasks)}."
            + (f" Left out, as systems have no results there: {missing}." if missing else ""),
            "",
            *_markdown(header, rows),
            "",
            "Mean over the tasks ± deviation over training seeds; IQM: interquartile mean over all tasks "
            "and seeds, every task weighing alike, with the 95% bootstrap interval, seeds resampled within "
            "every task; with as few seeds as three it is narrower than that. ‡ n: n tasks have a single "
            "seed, of whose spread deviations and intervals know nothing. Tasks kept: mean normalised cost "
            "at most 1. Worst seed: lowest reward / highest cost of a seed on a task. Updates and minutes of "
            "one training." + (_FEEDBACK_NOTE if "spi" in data.systems else ""),
        ]
    )


def published_table(suite: str) -> str:
    """The paper's own figures, marked as such."""
    table = paper_table(suite)
    systems = list(table.average)
    rows = [
        [get_task(task).short_name, *(_pair(row[system]) for system in systems)]
        for task, row in table.rows.items()
    ]
    rows.append(["average", *(_pair(table.average[system]) for system in systems)])
    return "\n".join(
        [
            *_markdown(["paper, other data", *map(title_of, systems)], rows),
            "",
            f"The paper's {_NUMBERS[suite]}, as published: trained on DSRL's datasets, which are not ours. "
            "It does not say what cost limit its costs are relative to.",
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


def _cell(group: list[EvaluationEntry], lost: int, *, bold: bool) -> str:
    mark = f" † {lost}" if lost else ""
    if not group:
        return f"diverged{mark}" if lost else ""
    rewards = [entry.normalized_reward for entry in group]
    costs = [entry.normalized_cost for entry in group]
    reward = f"**{_with_spread(rewards)}**" if bold else _with_spread(rewards)
    return f"{reward} / {_with_spread(costs)}{'' if keeps_limit(float(np.mean(costs))) else ' ✗'}{mark}"


def _with_spread(values: list[float]) -> str:
    text = shown(float(np.mean(values)))
    return f"{text} ± {shown(float(np.std(values, ddof=1)))}" if len(values) > 1 else text


def _seeds(groups: Mapping[str, list[EvaluationEntry]]) -> str:
    counts = [len(group) for group in groups.values() if group]
    return f"{shown_range(counts)} seed{'s' * (max(counts, default=0) != 1)}"


def _statistics_row(row: AlgorithmStatistics, tasks: int, name: str) -> list[str]:
    seeds = shown_range(row.seeds)
    if row.seeds[1] > 1 and row.single_seed_tasks:
        seeds += f" ‡ {row.single_seed_tasks}"
    return [
        name,
        _mean(row.reward),
        _iqm(row.reward),
        _mean(row.cost),
        _iqm(row.cost),
        f"{row.safe_tasks} of {tasks}",
        shown_share(row.within_limit),
        f"{shown(row.worst_reward)} / {shown(row.worst_cost)}",
        f"{seeds}{f' † {row.diverged}' if row.diverged else ''}",
        shown_range(row.updates),
        f"{row.train_seconds / 60:.1f}",
    ]


def _mean(score: ScoreStatistic) -> str:
    return shown(score.mean) + ("" if score.seed_std is None else f" ± {shown(score.seed_std)}")


def _iqm(score: ScoreStatistic) -> str:
    if score.interval is None:
        return shown(score.iqm)
    low, high = score.interval
    return f"{shown(score.iqm)} [{shown(low)}, {shown(high)}]"


def _pair(values: tuple[float, float]) -> str:
    reward, cost = values
    return f"{shown(reward)} / {shown(cost)}{' ✗' if cost > 1 else ''}"


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
