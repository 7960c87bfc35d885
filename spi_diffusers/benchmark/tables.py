"""The paper's tables from a results file, as Markdown: ours, the statistics over seeds, the paper's own."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from spi_diffusers.benchmark.statistics import (
    AlgorithmStatistics,
    ScoreStatistic,
    algorithm_statistics,
    diverged_of,
    improvement,
    within_limit,
    within_limit_interval,
)
from spi_diffusers.benchmark.suites import SAFE, SAFE_NOT_FED_BACK, algorithms_of, get_suite, title_of
from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.evaluation.entries import DivergedRun, EvaluationEntry
from spi_diffusers.evaluation.summary import keeps_limit, shown, shown_range, shown_share

_NUMBERS = {"table1": "Table 1", "table2": "Table 2"}
_RESULTS_NOTE = (
    "Normalized reward / normalized cost, mean ± deviation over training seeds. A normalized cost "
    "of at most 1 keeps the limit (DSRL's rule); ✗ does not. **Bold**: the highest reward among "
    "those that keep the limit. † n: n seeds diverged. Algorithms with a diverged run on a task are "
    "excluded from its ranking."
)
_TAILS = ("cost_p90", "cost_worst")
#: What tables call safe SPI where it is not told its running cost, as no baseline is.
NOT_FED_BACK = f"{title_of('spi')}, cost not fed back"
_FEEDBACK_NOTE = (
    " Safe SPI is told its running cost, which no other algorithm takes, but where it says that it is not."
)


# ---- which entries belong to a table


@dataclass(frozen=True)
class TableData:
    """What a table, or its figures of averages, is made from.

    `algorithms` have results, in the order of the table; `rows` are (DSRL's name of the task, cost limit), in
    DSRL's order; `entries` are by (task, limit, algorithm), one per training seed.
    """

    suite: str
    algorithms: tuple[str, ...]
    rows: tuple[tuple[str, float], ...]
    entries: dict[tuple[str, float, str], list[EvaluationEntry]]
    diverged: tuple[DivergedRun, ...]

    def groups(self, task: str, limit: float | None = None) -> dict[str, list[EvaluationEntry]]:
        """Every algorithm's entries on a task, one per training seed; without a limit, at its smallest."""
        limit = get_task(task).cost_limits[0] if limit is None else limit
        return {name: self.entries.get((task, limit, name), []) for name in self.algorithms}

    def best_safe(self, task: str, limit: float | None = None) -> str | None:
        """The algorithm with the highest mean reward among those whose mean cost keeps the limit.

        Algorithms with a diverged run on this task are excluded.
        """
        limit = get_task(task).cost_limits[0] if limit is None else limit
        rewards = {
            name: float(np.mean([entry.normalized_reward for entry in group]))
            for name, group in self.groups(task, limit).items()
            if group and keeps_limit(_mean_cost(group)) and not diverged_of(self.diverged, task, name, limit)
        }
        return max(rewards, key=lambda name: rewards[name], default=None)

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Tasks on which algorithms have no results, and which."""
        tasks = dict.fromkeys(task for task, _ in self.rows)
        missing = {task: [name for name, group in self.groups(task).items() if not group] for task in tasks}
        return {task: names for task, names in missing.items() if names}

    @property
    def common_tasks(self) -> tuple[str, ...]:
        """The tasks on which every algorithm has results: averages over others would not compare."""
        left_out = self.left_out
        return tuple(dict.fromkeys(task for task, _ in self.rows if task not in left_out))

    def statistics(self) -> list[AlgorithmStatistics]:
        """Every algorithm over the common tasks; empty where there are none."""
        groups = [self.groups(task) for task in self.common_tasks]
        return [
            algorithm_statistics([entry for group in groups for entry in group[name]], self.diverged)
            for name in self.algorithms
            if groups
        ]

    @property
    def fed_back(self) -> str | None:
        """The algorithm that is told its running cost, and is played once more without."""
        variants = get_suite(self.suite).variants
        return next((one.name for one in variants if SAFE_NOT_FED_BACK in one.ways), None)

    def statistics_not_fed_back(self, not_fed_back: "TableData") -> AlgorithmStatistics | None:
        """That algorithm where it is not told its running cost, over the common tasks; None if it lacks one.

        `not_fed_back` is `table_data(..., feedback=False)` of the same results.
        """
        groups = [not_fed_back.groups(task).get(self.fed_back or "") for task in self.common_tasks]
        if not groups or not all(groups):
            return None
        return algorithm_statistics([entry for group in groups for entry in group or ()], self.diverged)


def table_data(
    suite: str,
    entries: Iterable[EvaluationEntry],
    diverged: Sequence[DivergedRun] = (),
    *,
    feedback: bool = True,
) -> TableData:
    """The entries of a suite's table: at the smallest limits, or at all where the suite has them.

    With `feedback` off, those where the policy is not told its running cost, of an algorithm that has both.
    Suites play at the usual risk; results at another one are left out.
    """
    chosen = get_suite(suite)
    ways = {variant.name: variant.way(feedback) for variant in chosen.variants}

    def belongs(task: str, limit: float | None) -> bool:
        return limit is None or limit in chosen.limits_of(get_task(task))

    found: dict[tuple[str, float, str], list[EvaluationEntry]] = {}
    for entry in entries:
        shown_so = (entry.extraction, entry.feedback) == ways.get(entry.algorithm)
        limit: Any = entry.cost_limit  # of one cost, as all suites have
        if shown_so and entry.is_at_usual_risk and belongs(entry.task, limit):
            found.setdefault((entry.task, limit, entry.algorithm), []).append(entry)
    # An algorithm of which every run diverged must be seen too.
    lost = [run for run in diverged if run.algorithm in ways and belongs(run.task, run.cost_limit)]
    present = {algorithm for _, _, algorithm in found} | {run.algorithm for run in lost}
    rows = {(task, limit) for task, limit, _ in found}
    with_results = {task for task, _ in rows}
    rows |= {(run.task, get_task(run.task).cost_limits[0]) for run in lost if run.task not in with_results}
    order = list(TASKS)
    return TableData(
        suite,
        tuple(name for name in ways if name in present),
        tuple(sorted(rows, key=lambda row: (order.index(row[0]), row[1]))),
        found,
        tuple(diverged),
    )


def limits_data(entries: Sequence[EvaluationEntry], diverged: Sequence[DivergedRun] = ()) -> TableData:
    """The tasks on which safe SPI and at least one more algorithm have two or more limits."""
    data = table_data("limits", entries)
    told = {variant.name for variant in get_suite("limits").variants if SAFE in variant.ways}
    tasks = set()
    for task, _ in data.rows:
        count = Counter(name for at, _, name in data.entries if at == task)
        several = {name for name, limits in count.items() if limits > 1}
        if several & told and len(several) > 1:
            tasks.add(task)
    lost = [run for run in diverged if run.task in tasks]
    return table_data("limits", [entry for entry in entries if entry.task in tasks], lost)


# ---- tables of our results


def results_table(data: TableData) -> str:
    """Normalized reward / normalized cost of every algorithm in every row; the best safe reward is bold."""
    rows = []
    for task, limit in data.rows:
        groups = data.groups(task, limit)
        best = data.best_safe(task, limit)
        cells = [
            _cell(group, diverged_of(data.diverged, task, name, limit), bold=name == best)
            for name, group in groups.items()
        ]
        counts = [len(group) for group in groups.values() if group]
        seeds = f"{shown_range(counts)} seed{'s' * (max(counts, default=0) != 1)}"
        rows.append([f"{get_task(task).short_name} ({limit:g}, {seeds})", *cells])
    header = ["task (limit, seeds)", *map(title_of, data.algorithms)]
    note = _RESULTS_NOTE
    if get_suite(data.suite).limits != "smallest":
        known = algorithms_of(data.suite)
        one = " and ".join(title_of(name) for name in data.algorithms if not known[name].per_limit)
        note = f"One policy of {one} for all limits; the others are trained for each limit. {note}"
    return "\n".join([*_markdown(header, rows), "", note])


def episodes_table(data: TableData) -> str:
    """How the episodes of every algorithm in every row end, with more than their means: a line for each."""
    rows = []
    for task, limit in data.rows:
        for algorithm, group in data.groups(task, limit).items():
            if not group:
                continue
            low, high = within_limit_interval(group)
            within = f"{shown_share(within_limit(group))} [{shown_share(low)}, {shown_share(high)}]"
            worst = max(entry.normalized_cost for entry in group)
            tails = [_worst([getattr(entry, name) for entry in group], limit) for name in _TAILS]
            count = sum(entry.episodes for entry in group)
            at = f"{get_task(task).short_name} ({limit:g})"
            rows.append([at, title_of(algorithm), f"{count}", within, shown(worst), *tails])
    header = ["task (limit)", "algorithm", "episodes", "within the limit", "worst seed's mean cost"]
    header += ["90% cost at most", "worst cost"]
    if not any(any(row[-len(_TAILS) :]) for row in rows):
        header, rows = header[: -len(_TAILS)], [row[: -len(_TAILS)] for row in rows]
    note = (
        "Within the limit: with the 95% interval (Clopper-Pearson) of these trainings' episodes, which knows "
        "nothing of other training seeds. Costs are normalized; those of single episodes, of the worst seed, "
        "are not in all results."
    )
    return "\n".join([*_markdown(header, rows), "", note])


def _worst(costs: Sequence[Any], limit: float) -> str:
    return "" if None in costs else shown(max(costs) / limit)


def improvement_table(data: TableData) -> str | None:
    """How likely the first algorithm is better than each of the others; None if there are no others."""
    if not data.algorithms[1:] or not data.common_tasks:
        return None
    own, *others = data.algorithms
    rows = []
    for name in others:
        pairs = [(data.groups(task)[own], data.groups(task)[name]) for task in data.common_tasks]
        alike = [pair for pair in pairs if all(keeps_limit(_mean_cost(group)) for group in pair)]
        cells = [_improvement(pair) for pair in (alike, pairs)]
        rows.append([title_of(name), f"{len(alike)} of {len(pairs)}", *cells])
    header = [f"{title_of(own)} is better than", "tasks where both keep the limit", "there", "on all tasks"]
    note = (
        "Probability that a training of it is better than one of the other, on a task drawn at random, with "
        "the 95% bootstrap interval over seeds: few seeds make it too narrow. One that keeps the limit is "
        "better than one that does not; of two that do, the one with more reward; of two that do not, the "
        "one with less cost."
    )
    return "\n".join([*_markdown(header, rows), "", note])


def _improvement(pairs: list[tuple[list[EvaluationEntry], list[EvaluationEntry]]]) -> str:
    if not pairs:
        return ""
    found = improvement(pairs)
    ends = ", ".join(map(shown_share, found.interval or ()))
    return shown_share(found.probability) + (f" [{ends}]" if ends else "")


def _mean_cost(group: Sequence[EvaluationEntry]) -> float:
    return float(np.mean([entry.normalized_cost for entry in group]))


def statistics_table(data: TableData, not_fed_back: TableData | None = None) -> str:
    """Every algorithm over the tasks that all have: mean, interquartile mean with interval, worst seed.

    Results without feedback have a row of their own, if they are of all of the tasks.
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
    header = ["", "normalized reward", "reward, IQM", "normalized cost", "tasks kept"]
    header += ["episodes within", "worst seed", "seeds", "updates", "minutes"]
    rows = [_statistics_row(row, title_of(row.algorithm)) for row in statistics]
    alone = data.statistics_not_fed_back(not_fed_back) if not_fed_back else None
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
            "Mean over the tasks ± deviation over training seeds; IQM: interquartile mean of rewards "
            "over all tasks and seeds, every task weighing alike, with the 95% bootstrap interval, seeds "
            "resampled within every task; with as few seeds as three it is narrower than that. ‡ n: n tasks "
            "have a single seed; they add nothing to deviations and intervals. Tasks kept: mean normalized "
            "cost at most 1. Worst seed: lowest reward / highest cost of a seed on a task. Updates and "
            "minutes of one training." + (_FEEDBACK_NOTE if told else ""),
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
    """A table of the paper: (normalized reward, normalized cost) by DSRL's task and our algorithm's name."""

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


def _cell(group: list[EvaluationEntry], lost: int, *, bold: bool) -> str:
    mark = f" † {lost}" if lost else ""
    if not group:
        return f"diverged{mark}" if lost else ""
    reward = _with_spread([entry.normalized_reward for entry in group])
    costs = [entry.normalized_cost for entry in group]
    kept = keeps_limit(float(np.mean(costs)))
    return f"{f'**{reward}**' if bold else reward} / {_with_spread(costs)}{'' if kept else ' ✗'}{mark}"


def _statistics_row(row: AlgorithmStatistics, name: str) -> list[str]:
    seeds = shown_range(row.seeds)
    if row.seeds[1] > 1 and row.single_seed_tasks:
        seeds += f" ‡ {row.single_seed_tasks}"
    return [
        name,
        _mean(row.reward),
        _iqm(row.reward),
        _mean(row.cost),
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
    ends = ", ".join(map(shown, score.interval or ()))
    return f"{shown(score.iqm)} [{ends}]" if ends else shown(score.iqm)


def _pair(reward: float, cost: float) -> str:
    return f"{shown(reward)} / {shown(cost)}{' ✗' if cost > 1 else ''}"


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
