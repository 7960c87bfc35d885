"""Tables of results: of an evaluation, and of several policies side by side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from spi_diffusers.data.costs import CostLimit
from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation import BASELINE_EXTRACTION
from spi_diffusers.evaluation.certificate import Certificate, LimitCertificate, shown_bound
from spi_diffusers.evaluation.entries import EvaluationEntry, each
from spi_diffusers.evaluation.results import Results
from spi_diffusers.evaluation.summary import (
    BehaviorRow,
    SeedSummary,
    keeps_limit,
    shown_share,
    spread_over,
    summarize_seeds,
)
from spi_diffusers.messages import shown_limit

if TYPE_CHECKING:
    from rich.table import Table

#: What extractions are called in tables: "reward" is the paper's.
EXTRACTION_NAMES = {
    "safe": "safe",
    "reward": "paper (Eq. 12)",
    "fast": "safe, student",
    "limit": "told the limit",
}


def policy_name(summary: SeedSummary) -> str:
    """What a row, or a curve, is called, e.g. "spi, safe, risk 0.05"."""
    if summary.extraction == BASELINE_EXTRACTION:
        return summary.algorithm
    extraction = EXTRACTION_NAMES.get(summary.extraction, summary.extraction)
    blind = ", no feedback" if summary.told_limit and not summary.feedback else ""
    risk = "" if summary.risk is None else f", risk {summary.risk:g}"
    return f"{summary.algorithm}, {extraction}{blind}{risk}"


# ---- of an evaluation


def results_tables(entries: Iterable[EvaluationEntry], behavior: Iterable[BehaviorRow] = ()) -> "list[Table]":
    """One `rich` table per task: limits as sections, policies first, then the behavior data.

    Entries of several training seeds become one row with the spread over the seeds and the worst seed.
    ValueError: two entries have the same key.
    """
    summaries, rows = summarize_seeds(entries), list(behavior)
    tasks = sorted({summary.task for summary in summaries} | {row.task for row in rows})
    return [
        _table(task, [s for s in summaries if s.task == task], [row for row in rows if row.task == task])
        for task in tasks
    ]


def _table(task: str, summaries: list[SeedSummary], behavior: list[BehaviorRow]) -> "Table":
    several_seeds = any(len(summary.train_seeds) > 1 for summary in summaries)
    caption = f"✓ safe: normalized cost at most 1. ± deviation over {spread_over(summaries)}"
    if several_seeds:
        caption += ". Worst seed: lowest reward / highest cost"
    table = _empty_table(f"{task} ({_protocol(summaries)})" if summaries else task, caption)
    # In 80 columns numbers wrap before their spread, and nothing is cut off.
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("policy", overflow="fold")
    for name in ("norm.\nreward", "norm.\ncost", "worst\nseed"):
        if several_seeds or name != "worst\nseed":
            table.add_column(name, justify="right")
    table.add_column("within\nlimit", justify="right", no_wrap=True)
    table.add_column("return", justify="right")
    names = next((summary.cost_names for summary in summaries if summary.cost_names), ("cost\nreturn",))
    table.add_column("\n".join(names), justify="right")
    table.add_column("steps/s", justify="right", no_wrap=True)

    # The safe rows first: they are what the limit is about.
    summaries = sorted(summaries, key=lambda summary: not summary.told_limit)
    limits = {s.cost_limit for s in summaries} | {row.cost_limit for row in behavior}
    for limit in sorted(limits, key=each):
        rows = [(_policy_cells(summary), "") for summary in summaries if summary.cost_limit == limit]
        rows += [(cells, "dim") for row in behavior if row.cost_limit == limit for cells in _data_cells(row)]
        for number, (cells, style) in enumerate(rows):
            if not several_seeds:
                del cells[3]  # the worst one
            table.add_row("" if number else shown_limit(limit), *cells, style=style)
        table.add_section()
    return table


def _policy_cells(summary: SeedSummary) -> list[str]:
    color = "bold green" if summary.is_safe else "red"
    return [
        policy_name(summary).replace("[", r"\["),  # rich takes brackets for styles
        f"[{color}]{summary.normalized_reward.shown()}[/]",
        f"[{color}]{_mark(summary.normalized_cost.mean)} {summary.normalized_cost.shown()}[/]",
        f"{summary.normalized_reward.worst:.2f} /{summary.normalized_cost.worst:.2f}",
        _shown_within(summary),
        summary.reward.shown(_digits(summary.reward.mean)),
        "\n".join(cost.shown(1) for cost in summary.each_cost),
        f"{summary.steps_per_second:,.0f}",
    ]


def _shown_within(summary: SeedSummary) -> str:
    """The share of episodes that keep all limits; below it, of several, the share of each."""
    parts = [shown_share(summary.within_limit), ", ".join(map(shown_share, summary.within_each))]
    return "\n".join(filter(None, parts))


def _data_cells(row: BehaviorRow) -> list[list[str]]:
    digits = _digits(row.reward_mean)
    mean = [
        f"data, mean of {row.episodes}",
        f"{row.normalized_reward:.2f}",
        f"{_mark(row.normalized_cost)} {row.normalized_cost:.2f}",
        "",
        shown_share(row.within_limit),
        f"{row.reward_mean:.{digits}f} ±{row.reward_std:.{digits}f}",
        "\n".join(
            f"{mean:.1f} ±{std:.1f}"
            for mean, std in zip(each(row.cost_mean), each(row.cost_std), strict=True)
        ),
        "",
    ]
    best = ["data, best within", "none", *[""] * 6]
    if row.best_return is not None and row.best_cost_return is not None:
        normalize, costs = get_task(row.task).normalize_cost, each(row.best_cost_return)
        cost = max(map(normalize, costs, each(row.cost_limit)))
        figures = [f"{row.best_return:.{digits}f}", "\n".join(f"{cost:.1f}" for cost in costs), ""]
        best[1:] = [f"{row.best_normalized_reward:.2f}", f"✓ {cost:.2f}", "", "", *figures]
    return [mean, best]


def _protocol(summaries: list[SeedSummary]) -> str:
    def span(numbers: set[int], noun: str) -> str:
        least, most = min(numbers), max(numbers)
        return f"{least if least == most else f'{least} to {most}'} {noun}{'s' * (most > 1)}"

    episodes = span({summary.episodes for summary in summaries}, "episode")
    return f"{episodes}, {span({len(summary.train_seeds) for summary in summaries}, 'training seed')}"


# ---- of several policies side by side, from their results: nothing is played again

_MARKDOWN_COLUMNS = (
    *("rank", "policy", "actions", "normalized reward", "normalized cost", "episodes within"),
    *("over <= (confidence)", "seeds x episodes", "data"),
)


@dataclass(frozen=True)
class ComparisonRow:
    """One policy, acting in one way, at one cost limit; `rank` is its place there, from 1.

    `datasets` is what its seeds were trained on: checksums, or revisions of Hub datasets. `certificate` is
    that of the policy, of one of these seeds.
    """

    policy: str
    summary: SeedSummary
    datasets: tuple[str, ...]
    rank: int
    certificate: Certificate | None = None

    @property
    def certified(self) -> LimitCertificate | None:
        """What is certified of this way to act at this limit."""
        one, summary = self.certificate, self.summary
        if one is None or not (summary.told_limit and summary.feedback):
            return None
        same = (one.task, one.algorithm, one.risk) == (summary.task, summary.algorithm, summary.risk)
        return one.at(summary.cost_limit) if same and one.train_seed in summary.train_seeds else None

    @property
    def cells(self) -> list[str]:
        """What tables show of it."""
        counts = self.summary.episodes_per_seed
        # Seeds x episodes, or what each seed played where they differ.
        played = f"{len(counts)} x {counts[0]}" if len(set(counts)) == 1 else " + ".join(map(str, counts))
        return [
            str(self.rank),
            self.policy,
            policy_name(self.summary),
            self.summary.normalized_reward.shown(),
            f"{'✓' if self.summary.is_safe else '✗'} {self.summary.normalized_cost.shown()}",
            shown_share(self.summary.within_limit),
            self._shown_certified(),
            played,
            " ".join(name[:8] for name in self.datasets),
        ]

    def _shown_certified(self) -> str:
        """The bound on the share of episodes over the limit, with its confidence."""
        if self.certificate is None or self.certified is None:
            return ""
        return f"{shown_bound(self.certified.over_bound)} ({shown_share(self.certificate.confidence)})"


@dataclass(frozen=True)
class Comparison:
    """Policies side by side, sorted by task, limit and rank; `notes` say what makes rows incomparable or is
    missing.
    """

    rows: list[ComparisonRow]
    notes: list[str]

    def tables(self) -> "list[Table]":
        """Tables for the terminal, one per task, with a section per limit."""
        from rich.markup import escape

        tables = []
        for task in sorted({row.summary.task for row in self.rows}):
            table = _empty_table(task, "✓ normalized cost at most 1; those come first, by reward")
            for name, right in (("limit", True), ("rank", True), ("policy", False), ("actions", False)):
                table.add_column(name, justify="right" if right else "left", overflow="fold")
            for name in ("norm.\nreward", "norm.\ncost", "within\nlimit", "over <=", "seeds x\nepisodes"):
                table.add_column(name, justify="right")
            table.add_column("data", overflow="fold")
            last = None
            for row in (row for row in self.rows if row.summary.task == task):
                limit = row.summary.cost_limit
                if last not in (None, limit):
                    table.add_section()
                style = "bold" if row.rank == 1 and row.summary.is_safe else None
                cells = map(escape, row.cells)  # a folder may be called run[v2]
                table.add_row("" if last == limit else shown_limit(limit), *cells, style=style)
                last = limit
            tables.append(table)
        return tables

    def markdown(self) -> str:
        """Markdown tables, one per task and limit."""
        lines: list[str] = []
        kinds = {(row.summary.task, row.summary.cost_limit) for row in self.rows}
        for task, limit in sorted(kinds, key=_by_task_and_limit):
            of_it = [row for row in self.rows if (row.summary.task, row.summary.cost_limit) == (task, limit)]
            lines += [f"**{task}, cost limit {shown_limit(limit)}**", ""]
            lines += [f"| {' | '.join(_MARKDOWN_COLUMNS)} |", "|---" * len(_MARKDOWN_COLUMNS) + "|"]
            lines += [f"| {' | '.join(row.cells)} |" for row in of_it] + [""]
        return "\n".join(lines)

    def records(self) -> list[dict[str, Any]]:
        """Rows as plain values for JSON."""
        return [
            {"rank": row.rank, "policy": row.policy, "safe": row.summary.is_safe}
            | asdict(row.summary)
            | {"datasets": list(row.datasets), "certified": _certified(row)}
            for row in self.rows
        ]


def compare_policies(
    policies: Mapping[str, Results],
    *,
    task: str | None = None,
    cost_limits: Sequence[CostLimit] | None = None,
    best_only: bool = False,
) -> Comparison:
    """Rank policies (results by name) at every task and limit: first those that keep it on average, by
    reward.

    Those that break it follow, the least costly first, so that no reward makes up for it. With `best_only`,
    only the best way to act of every policy, and of every algorithm in a results file. ValueError: no result
    fits.
    """
    ranked: dict[tuple[str, CostLimit], list[tuple[str, SeedSummary]]] = {}
    for name, results in policies.items():
        taken = set()
        for summary in sorted(summarize_seeds(results), key=_order):
            # A results file may hold several algorithms, each with ways to act of its own.
            kind = (summary.task, summary.cost_limit, summary.algorithm)
            limit_fits = cost_limits is None or summary.cost_limit in cost_limits
            if task in (None, summary.task) and limit_fits and not (best_only and kind in taken):
                taken.add(kind)
                ranked.setdefault(kind[:2], []).append((name, summary))
    if not ranked:
        wanted = [task or "", *(f"limit {shown_limit(limit)}" for limit in cost_limits or ())]
        raise ValueError(f"no results{' for ' + ', '.join(filter(None, wanted)) if any(wanted) else ''}")
    rows = [
        ComparisonRow(name, summary, _datasets(policies[name], summary), rank, _certificate(policies[name]))
        for key in sorted(ranked, key=_by_task_and_limit)
        for rank, (name, summary) in enumerate(sorted(ranked[key], key=lambda row: _order(row[1])), 1)
    ]
    notes = [*_differences(rows), *_dynamics(policies, rows), *_missing(policies, rows, task, cost_limits)]
    return Comparison(rows, notes)


def _differences(rows: Sequence[ComparisonRow]) -> list[str]:
    """What makes rows of one task incomparable: other data, fewer seeds, other numbers of episodes."""
    notes = []
    for task in sorted({row.summary.task for row in rows}):
        of_task = [row for row in rows if row.summary.task == task]
        if len({row.datasets for row in of_task}) > 1:
            notes.append(f"{task}: not all were trained on the same data; see the column of the data.")
        if len({tuple(sorted(row.summary.episodes_per_seed)) for row in of_task}) > 1:
            notes.append(f"{task}: not all have as many training seeds and episodes.")
    return notes


def _dynamics(policies: Mapping[str, Results], rows: Sequence[ComparisonRow]) -> list[str]:
    """Who has simulated a task otherwise than it is defined."""
    shown = {row.summary.task for row in rows}
    found = {(name, entry.task, entry.dynamics) for name, results in policies.items() for entry in results}
    return [
        f"{name}: {task} was simulated by {dynamics}, which moves otherwise than the task's own simulator."
        for name, task, dynamics in sorted(found)
        if dynamics and task in shown
    ]


def _missing(
    policies: Mapping[str, Results],
    rows: Sequence[ComparisonRow],
    task: str | None,
    cost_limits: Sequence[CostLimit] | None,
) -> list[str]:
    """What was asked for and is in no row: policies, limits, and training runs that diverged."""
    notes = []
    for name, results in policies.items():
        limits = {row.summary.cost_limit for row in rows if row.policy == name}
        absent = [shown_limit(limit) for limit in cost_limits or () if limit not in limits]
        if not limits:
            notes.append(f"{name}: has no results that were asked for, and is not in the table.")
        elif absent:
            notes.append(f"{name}: has no results for a cost limit of {', '.join(absent)}.")
        notes += [
            f"{name}: training seed {run.train_seed} of {run.algorithm} on {run.task} diverged; its figures "
            "are those of the other seeds."
            for run in results.diverged
            if task in (None, run.task) and (cost_limits is None or run.cost_limit in (None, *cost_limits))
        ]
    return notes


def _by_task_and_limit(kind: tuple[str, CostLimit]) -> tuple[str, tuple[float, ...]]:
    """Sorts limits of one cost and of several."""
    return kind[0], each(kind[1])


def _order(summary: SeedSummary) -> tuple[bool, float]:
    safe = summary.is_safe
    return (not safe, -summary.normalized_reward.mean if safe else summary.normalized_cost.mean)


def _certificate(results: Results) -> Certificate | None:
    """The certificate of the policy, unless the results are of another margin."""
    found = results.certificate
    if found is None:
        return None
    policy = (found.task, found.algorithm, found.train_seed)
    own = [entry for entry in results if (entry.task, entry.algorithm, entry.train_seed) == policy]
    return found if all(entry.cost_margin == found.cost_margin for entry in own) else None


def _certified(row: ComparisonRow) -> dict[str, Any] | None:
    """What is certified, with the confidence, for JSON."""
    if row.certificate is None or row.certified is None:
        return None
    return row.certified.to_dict() | {"confidence": row.certificate.confidence}


def _datasets(entries: Iterable[EvaluationEntry], summary: SeedSummary) -> tuple[str, ...]:
    found = {
        entry.dataset.get("sha256") or entry.dataset.get("revision") or entry.dataset.get("id", "unknown")
        for entry in entries
        if entry.task == summary.task and entry.algorithm == summary.algorithm
    }
    return tuple(sorted(found))


# ---- what both share


def _empty_table(title: str, caption: str) -> "Table":
    from rich import box
    from rich.table import Table

    return Table(title=title, caption=caption, box=box.HORIZONTALS, pad_edge=False, collapse_padding=True)


def _mark(normalized_cost: float) -> str:
    """Says it where there is no color too."""
    return "✓" if keeps_limit(normalized_cost) else "✗"


def _digits(return_: float) -> int:
    return 0 if abs(return_) >= 100 else 2
