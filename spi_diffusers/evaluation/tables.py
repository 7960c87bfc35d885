"""Tables of results: of an evaluation, and of several policies side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.results import BASELINE_EXTRACTION, EvaluationEntry, Results
from spi_diffusers.evaluation.summary import (
    BehaviorRow,
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


def results_tables(entries: Iterable[EvaluationEntry], behavior: Iterable[BehaviorRow] = ()) -> "list[Table]":
    """Lay entries out, one table per task: limits as sections, policies first, then the behavior data.

    Entries of several training seeds become one row with the spread over the seeds and the worst seed. A
    row is marked as safe where the mean normalized cost is at most 1 (DSRL's rule).

    Args:
        entries: entries of a results file.
        behavior: the behavior data's own figures, of the same tasks and limits.

    Returns:
        One `rich` table per task, in the order of the names; print them with `rich.print`.

    Raises:
        ValueError: two entries have the same key.
    """
    summaries, rows = summarize_seeds(entries), list(behavior)
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


def _table(task: str, summaries: list[SeedSummary], behavior: list[BehaviorRow]) -> "Table":
    from rich import box
    from rich.table import Table

    several_seeds = any(len(summary.train_seeds) > 1 for summary in summaries)
    table = Table(
        title=f"{task} ({_protocol(summaries)})" if summaries else task,
        box=box.HORIZONTALS,
        collapse_padding=True,
        pad_edge=False,
    )
    table.caption = f"✓ safe: normalized cost at most 1. ± deviation over {spread_over(summaries)}"
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

    for limit in sorted({s.cost_limit for s in summaries} | {row.cost_limit for row in behavior}):
        first = f"{limit:g}"
        # The safe rows first: they are what the limit is about.
        for summary in sorted(
            (s for s in summaries if s.cost_limit == limit), key=lambda s: s.extraction != "safe"
        ):
            table.add_row(first, *_policy_cells(summary, several_seeds))
            first = ""
        for row in (row for row in behavior if row.cost_limit == limit):
            for cells in _behavior_cells(row, several_seeds):
                table.add_row(first, *cells, style="dim")
                first = ""
        table.add_section()
    return table


def _policy_cells(summary: SeedSummary, several_seeds: bool) -> list[str]:
    color = "bold green" if summary.is_safe else "red"
    cells = [
        policy_name(summary),
        f"[{color}]{_with_spread(summary.normalized_reward, 2)}[/]",
        f"[{color}]{_mark(summary.normalized_cost.mean)} {_with_spread(summary.normalized_cost, 2)}[/]",
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


def _behavior_cells(row: BehaviorRow, several_seeds: bool) -> list[list[str]]:
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
    """Says it where there is no color too."""
    return "✓" if keeps_limit(normalized_cost) else "✗"


def _with_spread(statistic: SeedStatistic, digits: int = 2) -> str:
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


_MARKDOWN_COLUMNS = (
    *("rank", "policy", "actions", "normalized reward", "normalized cost", "episodes within"),
    *("seeds x episodes", "data"),
)


@dataclass(frozen=True)
class ComparedPolicy:
    """A policy by its results.

    Attributes:
        name: Folder or id on the Hub, as tables call it.
        results: All of its results.
    """

    name: str
    results: Results


@dataclass(frozen=True)
class ComparisonRow:
    """One policy, acting in one way, at one cost limit.

    Attributes:
        policy: Its name.
        summary: Its figures over the training seeds.
        datasets: What its seeds were trained on: checksums, or revisions of Hub datasets.
        rank: Place among all policies at this task and limit, from 1.
    """

    policy: str
    summary: SeedSummary
    datasets: tuple[str, ...]
    rank: int


def compare_policies(
    policies: Iterable[ComparedPolicy],
    *,
    task: str | None = None,
    cost_limits: Sequence[float] | None = None,
    best_only: bool = False,
) -> list[ComparisonRow]:
    """Rank policies at every task and cost limit: first those that keep the limit on average, by reward.

    Those that break it follow, the least costly first, so that no reward makes up for it.

    Args:
        policies: With names that differ.
        task: Only this task (DSRL's name).
        cost_limits: Only these limits.
        best_only: Of every policy, and of every algorithm in a results file, only the best way to act.

    Returns:
        Rows, sorted by task, limit and rank.

    Raises:
        ValueError: Two policies have the same name, or no result fits.
    """
    rows: dict[tuple[str, float], list[tuple[str, SeedSummary, tuple[str, ...]]]] = {}
    names: set[str] = set()
    for policy in policies:
        if policy.name in names:
            raise ValueError(f"{policy.name} is named twice")
        names.add(policy.name)
        found: dict[tuple[str, float, str], list[tuple[str, SeedSummary, tuple[str, ...]]]] = {}
        for summary in summarize_seeds(policy.results):
            if task not in (None, summary.task) or not _wanted(summary.cost_limit, cost_limits):
                continue
            row = (policy.name, summary, _datasets(policy.results, summary))
            # A results file may hold several algorithms, each with ways to act of its own.
            key = (summary.task, summary.cost_limit, summary.algorithm)
            found.setdefault(key, []).append(row)
        for (of_task, limit, _), candidates in found.items():
            ranked = sorted(candidates, key=lambda row: _order(row[1]))
            rows.setdefault((of_task, limit), []).extend(ranked[:1] if best_only else ranked)
    if not rows:
        wanted = [task or "", *(f"limit {limit:g}" for limit in cost_limits or ())]
        raise ValueError(f"no results{' for ' + ', '.join(filter(None, wanted)) if any(wanted) else ''}")
    return [
        ComparisonRow(name, summary, datasets, rank)
        for key in sorted(rows)
        for rank, (name, summary, datasets) in enumerate(sorted(rows[key], key=lambda row: _order(row[1])), 1)
    ]


def comparison_notes(rows: Sequence[ComparisonRow]) -> list[str]:
    """What makes rows of one task incomparable: other data, fewer seeds, other numbers of episodes."""
    notes = []
    for task in sorted({row.summary.task for row in rows}):
        of_task = [row for row in rows if row.summary.task == task]
        if len({row.datasets for row in of_task}) > 1:
            notes.append(f"{task}: not all were trained on the same data; see the column of the data.")
        protocols = {tuple(sorted(row.summary.episodes_per_seed)) for row in of_task}
        if len(protocols) > 1:
            notes.append(f"{task}: not all have as many training seeds and episodes.")
    return notes


def missing_notes(
    policies: Iterable[ComparedPolicy],
    rows: Sequence[ComparisonRow],
    *,
    task: str | None = None,
    cost_limits: Sequence[float] | None = None,
) -> list[str]:
    """What was asked for and is in no row: policies, limits, and training runs that diverged.

    Args:
        policies: That were compared.
        rows: What came of it.
        task: As for `compare_policies`.
        cost_limits: As for `compare_policies`.
    """
    notes = []
    for policy in policies:
        limits = {row.summary.cost_limit for row in rows if row.policy == policy.name}
        absent = [f"{limit:g}" for limit in cost_limits or () if limit not in limits]
        if not limits:
            notes.append(f"{policy.name}: has no results that were asked for, and is not in the table.")
        elif absent:
            notes.append(f"{policy.name}: has no results for a cost limit of {', '.join(absent)}.")
        for run in policy.results.diverged:
            if task in (None, run.task) and (cost_limits is None or run.cost_limit in (None, *cost_limits)):
                notes.append(
                    f"{policy.name}: training seed {run.train_seed} of {run.algorithm} on {run.task} "
                    "diverged; its figures are those of the other seeds."
                )
    return notes


def comparison_tables(rows: Sequence[ComparisonRow]) -> "list[Table]":
    """Rows as tables for the terminal, one per task, with a section per limit."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    tables = []
    for task in sorted({row.summary.task for row in rows}):
        table = Table(title=task, box=box.HORIZONTALS, pad_edge=False, collapse_padding=True)
        table.caption = "✓ normalized cost at most 1; those come first, by reward"
        for name, right in (("limit", True), ("rank", True), ("policy", False), ("actions", False)):
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for name in ("norm.\nreward", "norm.\ncost", "within\nlimit", "seeds x\nepisodes"):
            table.add_column(name, justify="right")
        table.add_column("data", overflow="fold")
        last = None
        for row in (row for row in rows if row.summary.task == task):
            summary = row.summary
            if last not in (None, summary.cost_limit):
                table.add_section()
            first = "" if last == summary.cost_limit else f"{summary.cost_limit:g}"
            last = summary.cost_limit
            style = "bold" if row.rank == 1 and summary.is_safe else None
            table.add_row(first, *map(escape, _cells(row)), style=style)  # a folder may be called run[v2]
        tables.append(table)
    return tables


def comparison_markdown(rows: Sequence[ComparisonRow]) -> str:
    """Rows as Markdown tables, one per task and limit."""
    lines: list[str] = []
    for task, limit in sorted({(row.summary.task, row.summary.cost_limit) for row in rows}):
        lines += [f"**{task}, cost limit {limit:g}**", "", _markdown(_MARKDOWN_COLUMNS), "|---" * 8 + "|"]
        for row in rows:
            if (row.summary.task, row.summary.cost_limit) == (task, limit):
                lines.append(_markdown(_cells(row)))
        lines.append("")
    return "\n".join(lines)


def comparison_records(rows: Sequence[ComparisonRow]) -> list[dict[str, Any]]:
    """Rows as plain values for JSON."""
    return [
        {"rank": row.rank, "policy": row.policy, "safe": row.summary.is_safe}
        | asdict(row.summary)
        | {"datasets": list(row.datasets)}
        for row in rows
    ]


def _markdown(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _order(summary: SeedSummary) -> tuple[bool, float]:
    safe = summary.is_safe
    return (not safe, -summary.normalized_reward.mean if safe else summary.normalized_cost.mean)


def _wanted(limit: float, limits: Sequence[float] | None) -> bool:
    return limits is None or limit in limits


def _datasets(entries: Iterable[EvaluationEntry], summary: SeedSummary) -> tuple[str, ...]:
    found = {
        entry.dataset.get("sha256") or entry.dataset.get("revision") or entry.dataset.get("id", "unknown")
        for entry in entries
        if entry.task == summary.task and entry.algorithm == summary.algorithm
    }
    return tuple(sorted(found))


def _cells(row: ComparisonRow) -> list[str]:
    summary = row.summary
    mark = "✓" if summary.is_safe else "✗"
    return [
        str(row.rank),
        row.policy,
        policy_name(summary),
        _with_spread(summary.normalized_reward),
        f"{mark} {_with_spread(summary.normalized_cost)}",
        shown_share(summary.within_limit),
        _episodes(summary),
        " ".join(name[:8] for name in row.datasets),
    ]


def _episodes(summary: SeedSummary) -> str:
    """Seeds x episodes, or what each seed played where they differ."""
    counts = summary.episodes_per_seed
    return f"{len(counts)} x {counts[0]}" if len(set(counts)) == 1 else " + ".join(map(str, counts))
