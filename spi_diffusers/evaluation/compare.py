"""Several policies side by side, from their results files: nothing is played again."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from spi_diffusers.evaluation.diverged import DivergedRun
from spi_diffusers.evaluation.metrics import EvaluationEntry
from spi_diffusers.evaluation.summary import SeedStatistic, SeedSummary, shown, shown_share, summarize_seeds
from spi_diffusers.evaluation.tables import policy_name

if TYPE_CHECKING:
    from rich.table import Table

_MARKDOWN_COLUMNS = (
    *("rank", "policy", "actions", "normalised reward", "normalised cost", "episodes within"),
    *("seeds x episodes", "data"),
)


@dataclass(frozen=True)
class ComparedPolicy:
    """A policy by its results.

    Attributes:
        name: Folder or id on the Hub, as tables call it.
        entries: All of its results.
        diverged: Training runs that have none, as they diverged.
    """

    name: str
    entries: tuple[EvaluationEntry, ...]
    diverged: tuple[DivergedRun, ...] = ()


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
        for summary in summarize_seeds(policy.entries):
            if task not in (None, summary.task) or not _wanted(summary.cost_limit, cost_limits):
                continue
            row = (policy.name, summary, _datasets(policy.entries, summary))
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
        for run in policy.diverged:
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
        table.caption = "✓ normalised cost at most 1; those come first, by reward"
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


def _with_spread(statistic: SeedStatistic) -> str:
    return f"{shown(statistic.mean)} ±{shown(statistic.spread)}"
