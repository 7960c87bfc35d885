"""Rewrite the tables in README.md and docs/ from the committed results files.

python scripts/update_readme.py             # rewrite
python scripts/update_readme.py --check     # exit with code 1 if a page is not up to date

A table stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; any page may have it.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from helpers import MAIN_TASK, RESULTS, ROOT, results_of

from spi_diffusers.benchmark.suites import title_of
from spi_diffusers.benchmark.tables import NOT_FED_BACK, table_data
from spi_diffusers.cli import run_with_messages
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import TASKS
from spi_diffusers.evaluation.results import read_results
from spi_diffusers.evaluation.summary import (
    SeedSummary,
    behavior_rows,
    shown,
    shown_range,
    shown_share,
    summarize_seeds,
)

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def results_table(path: Path) -> str:
    """Safe extraction, the paper's, and the behavior data, at every limit."""
    entries = read_results(path)
    summaries = summarize_seeds(entries)
    limits = sorted({summary.cost_limit for summary in summaries})
    rows = {row.cost_limit: row for row in behavior_rows(load_transitions(None, entries[0].task), limits)}
    seeds, episodes = len(summaries[0].train_seeds), summaries[0].episodes
    minutes = sum(entry.train_seconds for entry in entries) / len(entries) / 60
    lines = [
        f"{summaries[0].task}, {seeds} training seeds, {episodes} episodes in all, {entries[0].updates:,} "
        f"updates each ({minutes:.0f} minutes on one thread of a busy machine):",
        "",
        "| cost limit | policy | normalized reward | normalized cost | worst seed's cost | episodes within |",
        "|---|---|---|---|---|---|",
    ]
    for limit in limits:
        # The limit kept most strictly first: safe with feedback, safe without, the paper's.
        at_limit = [summary for summary in summaries if summary.cost_limit == limit]
        for summary in sorted(at_limit, key=lambda s: (s.extraction != "safe", not s.feedback)):
            lines.append(_policy_row(summary))
        data = rows[limit]
        if data.best_cost_return is not None:
            lines.append(
                f"| {limit:g} | best episode in the data within the limit | "
                f"{data.best_normalized_reward:.2f} | {data.best_cost_return / limit:.2f} | | |"
            )
    lines += ["", "± is the deviation over training seeds. A normalized cost of at most 1 keeps the limit."]
    return "\n".join(lines)


def tasks_table() -> str:
    """Safe extraction on every other task with results: reward, cost, and what the data allows."""
    lines = [
        "| task | cost limit | normalized reward | normalized cost | worst seed's cost | episodes within | "
        "best episode in the data within |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in (results_of(task.short_name) for task in TASKS.values()):
        if not path.exists() or path.stem == MAIN_TASK:
            continue
        dataset = load_transitions(ROOT / "datasets", path.stem)
        summaries = [s for s in summarize_seeds(read_results(path)) if s.extraction == "safe" and s.feedback]
        best = behavior_rows(dataset, [summary.cost_limit for summary in summaries])
        for summary, row in zip(summaries, best, strict=True):
            reward, cost = summary.normalized_reward, summary.normalized_cost
            lines.append(
                f"| {path.stem}, {len(summary.train_seeds)} seeds | {summary.cost_limit:g} | "
                f"{shown(reward.mean)} ± {shown(reward.spread)} | "
                f"{shown(cost.mean)} ± {shown(cost.spread)} | {shown(cost.worst)} | "
                f"{shown_share(summary.within_limit)} | {shown(row.best_normalized_reward)} |"
            )
    return "\n".join(lines)


def _policy_row(summary: SeedSummary) -> str:
    name = "highest Q^r (the paper's Eq. 12) at safety weight 0.5, same networks"
    if summary.extraction == "safe":
        name = "**safe extraction**" if summary.feedback else "safe extraction, cost not fed back"
    reward, cost = summary.normalized_reward, summary.normalized_cost
    return (
        f"| {summary.cost_limit:g} | {name} | {shown(reward.mean)} ± {shown(reward.spread)} | "
        f"{shown(cost.mean)} ± {shown(cost.spread)} | {shown(cost.worst)} | "
        f"{shown_share(summary.within_limit)} |"
    )


def comparison_table() -> str:
    """Every algorithm of Table 1 over the eight tasks, at each task's smallest limit."""
    files = [RESULTS / "paper" / "results.json", *(results_of(task.short_name) for task in TASKS.values())]
    entries = [entry for file in files if file.exists() for entry in read_results(file)]
    data, alone = (table_data("table1", entries, feedback=feedback) for feedback in (True, False))
    tasks = len(data.common_tasks)
    lines = [
        "| | normalized reward | normalized cost | limits kept | highest reward within the limit | seeds |",
        "|---|---|---|---|---|---|",
    ]
    titles = {"spi": f"**{title_of('spi')}**", "spi-paper": "the paper's SPI"}
    rows = [(titles.get(row.algorithm, title_of(row.algorithm)), row, data) for row in data.statistics()]
    if own := data.statistics_not_fed_back(alone):
        rows.insert(1, (NOT_FED_BACK, own, alone))
    for name, row, against in rows:
        wins = sum(against.best_safe(task) == row.algorithm for task in data.common_tasks)
        lines.append(
            f"| {name} | {shown(row.reward.mean)} | {shown(row.cost.mean)} | {row.safe_tasks} of {tasks} | "
            f"{wins} of {tasks} | {shown_range(row.seeds)} |"
        )
    return "\n".join(lines)


def blocks() -> dict[str, str]:
    """Text of every generated block."""
    return {
        "results": results_table(RESULTS / "ballcircle.json"),
        "tasks": tasks_table(),
        "comparison": comparison_table(),
        "benchmarks": benchmark_table(
            json.loads((RESULTS / "benchmark_training.json").read_text(encoding="utf-8")),
            json.loads((RESULTS / "benchmark_inference.json").read_text(encoding="utf-8")),
        ),
        "algorithms": algorithms_table(
            json.loads((RESULTS / "benchmark_algorithms.json").read_text(encoding="utf-8"))
        ),
    }


def benchmark_table(training: dict[str, Any], inference: dict[str, Any]) -> str:
    """Updates per second by what makes them fast, and the time of an action."""
    lines = [
        f"On {training['machine']['cpu']}, CPU only.",
        "",
        "| training step | cores | updates/s | x plain |",
    ]
    lines.append("|---|---|---|---|")
    for part in training["results"]:
        for row in part["variants"]:
            name = row["variant"] + (" (the default)" if row["variant"] == part["default"] else "")
            lines.append(
                f"| {name} | {part['cores']} | {row['updates_per_second']:.0f} | "
                f"{row['times_plain']['median']:.1f} |"
            )
    default = training["results"][0]["variants"][-1]
    lines += [
        "",
        "Plain: float32, Mish, gradient through the whole denoising chain. Batch "
        f"{training['settings']['batch_size']}, three 256-wide layers, both twin critics trained; the "
        f"default's peak memory is {default['peak_memory_mb']:.0f} MB.",
        "",
        "| one action, one core | candidates | median | 99th percentile | actions/s, 1000 at a time |",
        "|---|---|---|---|---|",
    ]
    for row in inference["results"][0]["extractions"]:
        lines.append(
            f"| {row['extraction']} | {row['candidates']} | {row['latency_ms_median']:.1f} ms | "
            f"{row['latency_ms_99']:.1f} ms | {row['actions_per_second']:,} |"
        )
    return "\n".join(lines)


def algorithms_table(measured: dict[str, Any]) -> str:
    """Updates per second of every algorithm, and how many take as long as SPI's training."""
    lines = [
        f"On {measured['machine']['cpu']}, one core, every algorithm with its preset on BallCircle.",
        "",
        "| training step | batch | updates/s | x SPI | updates in the time of SPI's "
        f"{measured['settings']['spi_updates']:,} |",
        "|---|---|---|---|---|",
    ]
    for row in measured["results"]:
        lines.append(
            f"| {row['algorithm']} | {row['batch_size']} | {row['updates_per_second']:.0f} | "
            f"{row['times_spi']['median']:.2f} | {row['updates_as_long_as_spi']:,} |"
        )
    return "\n".join(lines)


def render(text: str, tables: dict[str, str]) -> str:
    """A page with every generated block replaced."""

    def filled(match: re.Match[str]) -> str:
        if match[1] not in tables:
            raise SystemExit(f"There is no block '{match[1]}'; there are {', '.join(tables)}.")
        return f"<!-- begin: {match[1]} -->\n{tables[match[1]]}\n<!-- end: {match[1]} -->"

    return re.sub(r"<!-- begin: (\S+) -->\n.*?<!-- end: \1 -->", filled, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only say whether all pages are up to date")
    args = parser.parse_args()
    before = {page: page.read_text(encoding="utf-8") for page in PAGES}
    tables = blocks()
    unused = [
        name for name in tables if not any(f"<!-- begin: {name} -->" in text for text in before.values())
    ]
    if unused:
        raise SystemExit(f"No page has the block '{unused[0]}'.")
    outdated = {page: after for page, text in before.items() if (after := render(text, tables)) != text}
    for page, text in outdated.items():
        if args.check:
            name = page.relative_to(ROOT)
            print(f"{name} is not up to date: run scripts/update_readme.py", file=sys.stderr)
        else:
            page.write_text(text, encoding="utf-8")
    return int(args.check and bool(outdated))


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
