"""The table of an evaluation, for the terminal."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.behaviour import BehaviourRow
from spi_diffusers.evaluation.metrics import BASELINE_EXTRACTION, EvaluationEntry
from spi_diffusers.evaluation.summary import (
    SeedStatistic,
    SeedSummary,
    keeps_limit,
    shown,
    shown_share,
    spread_over,
    summarize_seeds,
)

if TYPE_CHECKING:
    from rich.table import Table

#: What extractions are called in tables: "reward" is the paper's.
EXTRACTION_NAMES = {"safe": "safe", "reward": "paper (Eq. 12)"}


def results_tables(
    entries: Iterable[EvaluationEntry], behaviour: Iterable[BehaviourRow] = ()
) -> "list[Table]":
    """Lay entries out, one table per task: limits as sections, policies first, then the behaviour data.

    Entries of several training seeds become one row with the spread over the seeds and the worst seed. A
    row is marked as safe where the mean normalised cost is at most 1 (DSRL's rule).

    Args:
        entries: entries of a results file.
        behaviour: the behaviour data's own figures, of the same tasks and limits.

    Returns:
        One `rich` table per task, in the order of the names; print them with `rich.print`.

    Raises:
        ValueError: two entries have the same key.
    """
    summaries, rows = summarize_seeds(entries), list(behaviour)
    names = sorted({summary.task for summary in summaries} | {row.task for row in rows})
    return [
        _table(
            name,
            [summary for summary in summaries if summary.task == name],
            [r for r in rows if r.task == name],
        )
        for name in names
    ]


def policy_name(summary: SeedSummary) -> str:
    """What a row, or a curve, is called, e.g. "spi, safe"."""
    if summary.extraction == BASELINE_EXTRACTION:
        return summary.algorithm
    extraction = EXTRACTION_NAMES.get(summary.extraction, summary.extraction)
    blind = ", no feedback" if summary.extraction == "safe" and not summary.feedback else ""
    return f"{summary.algorithm}, {extraction}{blind}"


def _table(task: str, summaries: list[SeedSummary], behaviour: list[BehaviourRow]) -> "Table":
    from rich import box
    from rich.table import Table

    several_seeds = any(len(summary.train_seeds) > 1 for summary in summaries)
    table = Table(
        title=f"{task} ({_protocol(summaries)})" if summaries else task,
        box=box.HORIZONTALS,
        collapse_padding=True,
        pad_edge=False,
    )
    table.caption = f"✓ safe: normalised cost at most 1. ± deviation over {spread_over(summaries)}"
    if several_seeds:
        table.caption += ". Worst seed: lowest reward / highest cost"
    # In 80 columns numbers wrap before their spread, and nothing is cut off.
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("policy", overflow="fold")
    table.add_column("norm.\nreward", justify="right")
    table.add_column("norm.\ncost", justify="right")
    if several_seeds:
        table.add_column("worst\nseed", justify="right")
    table.add_column("within\nlimit", justify="right", no_wrap=True)
    table.add_column("return", justify="right")
    table.add_column("cost\nreturn", justify="right")
    table.add_column("steps/s", justify="right", no_wrap=True)

    for limit in sorted({s.cost_limit for s in summaries} | {row.cost_limit for row in behaviour}):
        first = f"{limit:g}"
        # The safe rows first: they are what the limit is about.
        for summary in sorted(
            (s for s in summaries if s.cost_limit == limit), key=lambda s: s.extraction != "safe"
        ):
            table.add_row(first, *_policy_cells(summary, several_seeds))
            first = ""
        for row in (row for row in behaviour if row.cost_limit == limit):
            for cells in _behaviour_cells(row, several_seeds):
                table.add_row(first, *cells, style="dim")
                first = ""
        table.add_section()
    return table


def _policy_cells(summary: SeedSummary, several_seeds: bool) -> list[str]:
    colour = "bold green" if summary.is_safe else "red"
    cells = [
        policy_name(summary),
        f"[{colour}]{_with_spread(summary.normalized_reward, 2)}[/]",
        f"[{colour}]{_mark(summary.normalized_cost.mean)} {_with_spread(summary.normalized_cost, 2)}[/]",
    ]
    if several_seeds:
        cells.append(f"{summary.normalized_reward.worst:.2f} /{summary.normalized_cost.worst:.2f}")
    return [
        *cells,
        shown_share(summary.within_limit),
        _with_spread(summary.reward, _digits(summary.reward.mean)),
        _with_spread(summary.cost, 1),
        f"{summary.steps_per_second:,.0f}",
    ]


def _behaviour_cells(row: BehaviourRow, several_seeds: bool) -> list[list[str]]:
    worst = [""] if several_seeds else []
    digits = _digits(row.reward_mean)
    mean = [
        f"data, mean of {row.episodes}",
        f"{row.normalized_reward:.2f}",
        f"{_mark(row.normalized_cost)} {row.normalized_cost:.2f}",
        *worst,
        shown_share(row.within_limit),
        f"{row.reward_mean:.{digits}f} ±{row.reward_std:.{digits}f}",
        f"{row.cost_mean:.1f} ±{row.cost_std:.1f}",
        "",
    ]
    if row.best_return is None or row.best_cost_return is None:
        return [mean, ["data, best within", "none", "", *worst, "", "", "", ""]]
    best = [
        "data, best within",
        f"{row.best_normalized_reward:.2f}",
        f"✓ {get_task(row.task).normalize_cost(row.best_cost_return, row.cost_limit):.2f}",
        *worst,
        "",
        f"{row.best_return:.{digits}f}",
        f"{row.best_cost_return:.1f}",
        "",
    ]
    return [mean, best]


def _mark(normalized_cost: float) -> str:
    """Says it where there is no colour too."""
    return "✓" if keeps_limit(normalized_cost) else "✗"


def _with_spread(statistic: SeedStatistic, digits: int) -> str:
    return f"{shown(statistic.mean, digits)} ±{shown(statistic.spread, digits)}"


def _digits(return_: float) -> int:
    return 0 if abs(return_) >= 100 else 2


def _protocol(summaries: list[SeedSummary]) -> str:
    def span(numbers: set[int], noun: str) -> str:
        least, most = min(numbers), max(numbers)
        return f"{least if least == most else f'{least} to {most}'} {noun}{'s' * (most > 1)}"

    return (
        f"{span({summary.episodes for summary in summaries}, 'episode')}, "
        f"{span({len(summary.train_seeds) for summary in summaries}, 'training seed')}"
    )
