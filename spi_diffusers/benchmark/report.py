"""Tables and figures of a results file: what it holds is drawn, what it does not hold is named."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spi_diffusers.benchmark.cells import Outcome
from spi_diffusers.benchmark.figures import (
    LOST_NOTE,
    common_curve_tasks,
    learning_curves,
    plot_averages,
    plot_learning_curves,
    plot_pixel_world,
    plot_profile,
)
from spi_diffusers.benchmark.suites import Cell, algorithms_of, title_of
from spi_diffusers.benchmark.tables import (
    diverged_list,
    episodes_table,
    improvement_table,
    limits_data,
    published_table,
    results_table,
    statistics_table,
    table_data,
)
from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.evaluation.entries import DivergedRun, EvaluationEntry, describe_key
from spi_diffusers.evaluation.plots import plot_limits
from spi_diffusers.evaluation.results import ResultsFileError, merge_results, read_results
from spi_diffusers.evaluation.summary import SeedSummary, behavior_rows
from spi_diffusers.files import local_path, written_aside

TABLES_FILE = "tables.md"
_TABLES = {"table1": ("Table 1: comparison", 4), "table2": ("Table 2: ablation", 6)}


@dataclass
class Report:
    """What was made, as `parts` of Markdown and `files` in `folder`, and what could not be, and why."""

    folder: Path
    parts: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The tables, as Markdown."""
        return "\n\n".join(self.parts or ["The results hold nothing that the tables show."]) + "\n"

    def figure(self, name: str) -> Path:
        """Where a figure goes, which counts as written."""
        self.files.append(self.folder / name)
        return self.files[-1]


def write_report(results: Iterable[str | os.PathLike[str]], folder: str | os.PathLike[str]) -> Report:
    """Make tables and figures from results files alone.

    An evaluation that several files hold must be the same in all. Figures of an earlier report in `folder`
    are replaced or removed. ResultsFileError if a file cannot be read, two hold different results of the same
    policy, or results on one task are of different data; FileNotFoundError and OSError as usual.
    """
    folder = local_path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; name a folder")
    entries, diverged = _read_all(results)
    report = Report(folder, files=[folder / TABLES_FILE])
    plot_pixel_world(report.figure("figure_2_pixel_world.png"))
    for suite in _TABLES:
        _compare(suite, entries, diverged, report)
    _draw_learning_curves(entries, diverged, report)
    _draw_limits(entries, diverged, report)
    if diverged:
        report.parts += ["## Diverged training runs", diverged_list(diverged)]
    with written_aside(folder / TABLES_FILE) as aside:
        aside.write_text(report.text, encoding="utf-8")
    _remove_old_figures(report)
    return report


def write_task_results(
    outcomes: Mapping[Cell, Outcome], datasets: Mapping[str, str | None], folder: Path
) -> list[Path]:
    """Put each task's results into `<task>.json`, and draw them against the limit as `<task>_limits.png`.

    Other results that a file holds stay. `datasets` is `--dataset` by a task's short name: its own figures
    are drawn, too. Returns what was written; ResultsFileError if a task's file cannot be read.
    """
    from spi_diffusers.data.streaming import open_transitions

    files = []
    for task in dict.fromkeys(cell.task for cell, outcome in outcomes.items() if outcome.entries):
        new = [entry for cell, outcome in outcomes.items() if cell.task == task for entry in outcome.entries]
        entries = merge_results(folder / f"{task}.json", new)
        limits = sorted({entry.cost_limit for entry in entries})
        behavior = behavior_rows(open_transitions(datasets[task], task), limits)
        plot_limits(entries, folder / f"{task}_limits.png", behavior)
        files += [folder / f"{task}.json", folder / f"{task}_limits.png"]
    return files


def _compare(suite: str, entries: list[EvaluationEntry], diverged: list[DivergedRun], report: Report) -> None:
    """Table 1 or 2 and its two figures of averages."""
    title, number = _TABLES[suite]
    data = table_data(suite, entries, diverged)
    if not data.rows:
        report.left_out.append(f"{title}: the results hold none of its algorithms")
        return
    if data.common_tasks:
        for place, score in ((number, "reward"), (number + 1, "cost")):
            path = report.figure(f"figure_{place}_average_{score}.png")
            plot_averages(data, score, path, f"Figure {place}: average {score}")
        plot_profile(data, report.figure(f"profile_{suite}.png"))
    else:
        report.left_out.append(f"Figures {number} and {number + 1}: no task has results of every algorithm")
    for task, missing in data.left_out.items():
        names = ", ".join(map(title_of, missing))
        report.left_out.append(f"{get_task(task).short_name} in the averages of {title}: nothing of {names}")
    statistics = statistics_table(data, table_data(suite, entries, diverged, feedback=False))
    report.parts += [f"## {title}", results_table(data), statistics, episodes_table(data)]
    if better := improvement_table(data):
        report.parts.append(better)
    report.parts.append(published_table(suite))


def _draw_learning_curves(
    entries: list[EvaluationEntry], diverged: list[DivergedRun], report: Report
) -> None:
    curves = learning_curves(entries, diverged)
    if not curves:
        report.left_out.append("Figures 8 and 9: the results hold no draw of eta, mu and phi")
        return
    tasks, others = common_curve_tasks(curves)
    if not tasks:
        report.left_out.append("Figures 8 and 9: no task has a finished training of every draw")
    elif others:
        names = ", ".join(get_task(task).short_name for task in others)
        report.left_out.append(f"{names} in Figures 8 and 9: not every draw has finished there")
    for place, score in ((8, "reward"), (9, "cost")) if tasks else ():
        path = report.figure(f"figure_{place}_random_weights_{score}.png")
        title = f"Figure {place}: {score} for random weights (Eq. 6)"
        plot_learning_curves(curves, tasks, score, path, title)
    data = table_data("sensitivity", entries, diverged)
    report.parts += ["## Random weights, at the end of training", results_table(data), statistics_table(data)]


def _draw_limits(entries: list[EvaluationEntry], diverged: list[DivergedRun], report: Report) -> None:
    data, variants = limits_data(entries, diverged), algorithms_of("limits")
    if not data.rows:
        report.left_out.append(
            "reward against the cost limit: no task has SPI and a baseline at several limits"
        )
        return
    for task in dict.fromkeys(task for task, _ in data.rows):
        chosen = [entry for (at, _, _), group in data.entries.items() if at == task for entry in group]
        lost = Counter(run.algorithm for run in diverged if run.task == task)

        def name_of(summary: SeedSummary, lost: Counter[str] = lost) -> str:
            how = "one per limit" if variants[summary.algorithm].per_limit else "one policy"
            mark = f" † {lost[summary.algorithm]}" if lost[summary.algorithm] else ""
            return f"{title_of(summary.algorithm)}, {how}{mark}"

        shown = {entry.algorithm for entry in chosen}
        notes = [LOST_NOTE] if shown & lost.keys() else []
        if gone := [title_of(name) for name in lost if name not in shown]:
            notes.append(f"all training runs of {', '.join(gone)} diverged")
        path = report.figure(f"limits_{get_task(task).short_name}.png")
        plot_limits(chosen, path, name_of=name_of, note="; ".join(notes))
    report.parts += ["## Every limit", results_table(data)]


def _remove_old_figures(report: Report) -> None:
    """Remove the figures of an earlier report that this one lacks: they would not fit its tables."""
    tasks = "|".join(task.short_name for task in TASKS.values())
    ours = r"figure_[4-9]_(average|random_weights)_(reward|cost)\.png|profile_table[12]\.png"
    ours += rf"|limits_({tasks})\.png"
    for old in sorted(report.folder.iterdir()):
        if re.fullmatch(ours, old.name) and old not in report.files:
            old.unlink()
            report.left_out.append(f"{old.name}: of an earlier report, removed")


def _read_all(
    files: Iterable[str | os.PathLike[str]],
) -> tuple[list[EvaluationEntry], list[DivergedRun]]:
    entries: dict[Any, tuple[EvaluationEntry, str]] = {}
    diverged: dict[Any, DivergedRun] = {}
    data: dict[str, tuple[str, str]] = {}
    for file in files:
        results = read_results(file)
        for entry in results:
            trained_on = entry.dataset.get("sha256", "")
            first, source = data.setdefault(entry.task, (trained_on, str(file))) if trained_on else ("", "")
            if first != trained_on:
                raise ResultsFileError(
                    f"{file} and {source}: results on {entry.task} are of different data (SHA-256 "
                    f"{trained_on[:8]} and {first[:8]}), which do not compare: leave one out."
                )
            known, where = entries.setdefault(entry.key, (entry, str(file)))
            if known != entry:
                raise ResultsFileError(
                    f"{file} and {where} hold different results of {describe_key(entry.key)}: leave one out."
                )
        diverged |= {run.key: run for run in results.diverged}
    for run in diverged.values():
        for entry, where in entries.values():
            if run.concerns(entry):
                raise ResultsFileError(
                    f"{where} holds results of {describe_key(entry.key)}, which by another file diverged: "
                    "leave one out."
                )
    return [entry for entry, _ in entries.values()], list(diverged.values())
