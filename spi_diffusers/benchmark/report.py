"""Tables and figures of a results file: what it holds is drawn, what it does not hold is named."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spi_diffusers.benchmark.figures import plot_averages, plot_learning_curves, plot_pixel_world
from spi_diffusers.benchmark.selection import learning_curves, limit_entries, table_data
from spi_diffusers.benchmark.tables import diverged_list, published_table, results_table, statistics_table
from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.diverged import DivergedRun
from spi_diffusers.evaluation.files import written_aside
from spi_diffusers.evaluation.metrics import EvaluationEntry, describe_key
from spi_diffusers.evaluation.plots import plot_limits
from spi_diffusers.evaluation.results import ResultsFileError, read_diverged, read_results

TABLES_FILE = "tables.md"
_TABLES = {"table1": ("Table 1: comparison", 4), "table2": ("Table 2: ablation", 6)}


@dataclass
class Report:
    """What was made.

    Attributes:
        text: The tables, as Markdown.
        files: What was written.
        left_out: What could not be made, and why.
    """

    text: str = ""
    files: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def write_report(results: Iterable[str | os.PathLike[str]], folder: str | os.PathLike[str]) -> Report:
    """Make tables and figures from results files alone.

    Args:
        results: The results files; an evaluation that several hold must be the same in all.
        folder: Where they go; files of the same names are replaced.

    Returns:
        What was made, and what could not be.

    Raises:
        FileNotFoundError: There is no such file.
        ResultsFileError: One cannot be read, or two hold different results of the same policy.
        OSError: A file cannot be written.
    """
    entries, diverged = _read_all(results)
    folder = Path(folder)
    report, parts = Report(), []
    report.files.append(plot_pixel_world(folder / "figure_2_pixel_world.png"))
    for suite, (title, number) in _TABLES.items():
        data = table_data(suite, entries, diverged)
        if not data.systems:
            report.left_out.append(f"{title}: the results hold none of its systems")
            continue
        parts += [f"## {title}", results_table(data), statistics_table(data), published_table(suite)]
        if not data.common_tasks:
            report.left_out.append(f"Figures {number} and {number + 1}: no task has results of every system")
            continue
        for place, score in ((number, "reward"), (number + 1, "cost")):
            path = folder / f"figure_{place}_average_{score}.png"
            report.files.append(plot_averages(data, score, path, f"Figure {place}: average {score}"))
    curves = learning_curves(entries)
    if curves:
        for place, score in ((8, "reward"), (9, "cost")):
            path = folder / f"figure_{place}_random_weights_{score}.png"
            title = f"Figure {place}: {score} for random weights (Eq. 6)"
            report.files.append(plot_learning_curves(curves, score, path, title))
    else:
        report.left_out.append("Figures 8 and 9: the results hold no draw of eta, mu and phi")
    by_task = limit_entries(entries)
    for task, chosen in by_task.items():
        path = folder / f"limits_{get_task(task).short_name}.png"
        report.files.append(plot_limits(chosen, path))
    if not by_task:
        report.left_out.append(
            "reward against the cost limit: no task has SPI and a baseline at several limits"
        )
    if diverged:
        parts += ["## Diverged training runs", diverged_list(diverged)]
    report.text = "\n\n".join(parts) + "\n" if parts else "The results hold nothing that the tables show.\n"
    with written_aside(folder / TABLES_FILE) as aside:
        aside.write_text(report.text, encoding="utf-8")
    report.files.insert(0, folder / TABLES_FILE)
    return report


def _read_all(
    files: Iterable[str | os.PathLike[str]],
) -> tuple[list[EvaluationEntry], list[DivergedRun]]:
    entries: dict[Any, tuple[EvaluationEntry, str]] = {}
    diverged: dict[Any, DivergedRun] = {}
    for file in files:
        for entry in read_results(file):
            known, where = entries.setdefault(entry.key, (entry, str(file)))
            if known != entry:
                raise ResultsFileError(
                    f"{file} and {where} hold different results of {describe_key(entry.key)}: leave one out."
                )
        diverged |= {run.key: run for run in read_diverged(file)}
    return [entry for entry, _ in entries.values()], list(diverged.values())
