"""Rewrite the tables in README.md and docs/ from the committed results files.

python scripts/update_readme.py             # rewrite
python scripts/update_readme.py --check     # exit with code 1 if a page is not up to date

A table stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; any page may have it.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from helpers import MAIN_TASK, POLICIES, RESULTS, ROOT, results_of, script_parser

from spi_diffusers.benchmark.suites import title_of
from spi_diffusers.benchmark.tables import NOT_FED_BACK, table_data
from spi_diffusers.cli import run_with_messages
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.evaluation import FAST
from spi_diffusers.evaluation.certificate import Certificate
from spi_diffusers.evaluation.entries import EvaluationEntry
from spi_diffusers.evaluation.results import read_results
from spi_diffusers.evaluation.summary import (
    SeedSummary,
    behavior_rows,
    shown,
    shown_range,
    shown_share,
    summarize_seeds,
)
from spi_diffusers.files import CERTIFICATE_FILE

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


def results_table() -> str:
    """Safe extraction, the paper's, and the behavior data, at every limit."""
    entries = [entry for entry in read_results(results_of(MAIN_TASK)) if entry.is_at_usual_risk]
    summaries = summarize_seeds(entries)
    limits = [float(limit) for limit in get_task(MAIN_TASK).cost_limits]
    data = {row.cost_limit: row for row in behavior_rows(load_transitions(None, MAIN_TASK), limits)}
    minutes = sum(entry.train_seconds for entry in entries) / len(entries) / 60
    rows = []
    for limit in limits:
        # The limit kept most strictly first: safe with feedback, safe without, the paper's.
        at_limit = [summary for summary in summaries if summary.cost_limit == limit]
        for summary in sorted(at_limit, key=lambda s: (s.extraction != "safe", not s.feedback)):
            name = "highest Q^r (the paper's Eq. 12) at safety weight 0.5, same networks"
            if summary.extraction == "safe":
                name = "**safe extraction**" if summary.feedback else "safe extraction, cost not fed back"
            rows.append(f"{limit:g} | {name} | {_scores(summary)}")
        best = data[limit]
        if best.best_cost_return is not None:
            scores = f"{best.best_normalized_reward:.2f} | {best.best_cost_return / limit:.2f}"
            rows.append(f"{limit:g} | best episode in the data within the limit | {scores} | |")
    return "\n".join(
        [
            f"{summaries[0].task}, {len(summaries[0].train_seeds)} training seeds, {summaries[0].episodes} "
            f"episodes in all, {entries[0].updates:,} updates each ({minutes:.0f} minutes on one thread of a "
            "busy machine):",
            "",
            *_table(f"cost limit | policy | {SCORES}", rows),
            "",
            "± is the deviation over training seeds. A normalized cost of at most 1 keeps the limit.",
        ]
    )


def tasks_table() -> str:
    """Safe extraction on every task with results, fed back and not, and what the data allows."""
    rows = []
    for task, entries in safe_entries().items():
        summaries = summarize_seeds(entry for entry in entries if entry.is_at_usual_risk)
        limits = sorted({summary.cost_limit for summary in summaries})
        dataset = load_transitions(None if task == MAIN_TASK else ROOT / "datasets", task)
        for limit, best in zip(limits, behavior_rows(dataset, limits), strict=True):
            ways = {one.feedback: one for one in summaries if one.cost_limit == limit}
            figures = [
                f"{shown(one.normalized_reward.mean)} | {shown(one.normalized_cost.mean)} | "
                f"{shown_share(one.within_limit)}"
                for one in (ways[True], ways[False])
            ]
            own = "" if limit in get_task(task).cost_limits else " *"
            possible = "" if best.best_normalized_reward is None else shown(best.best_normalized_reward)
            rows.append(f"{task} | {limit:g}{own} | {' | '.join(figures)} | {possible}")
    header = "reward | cost | within | alone: reward | cost | within"
    return "\n".join(_table(f"task | cost limit | {header} | best episode within", rows))


def risks_table() -> str:
    """What more risk gives: means over all tasks with results, at the limits that DSRL names."""
    risks: dict[float, list[EvaluationEntry]] = {}
    for task, entries in safe_entries().items():
        for entry in entries:
            if entry.feedback and entry.cost_limit in get_task(task).cost_limits:
                risks.setdefault(entry.risk, []).append(entry)
    rows = []
    for risk, found in sorted(risks.items()):
        means = [
            sum(getattr(entry, name) for entry in found) / len(found)
            for name in ("within_limit", "normalized_reward", "normalized_cost")
        ]
        least = min(entry.within_limit for entry in found)
        shares = f"{shown_share(means[0])} | {shown_share(least)}"
        rows.append(f"{risk:g} | {shares} | {shown(means[1])} | {shown(means[2])}")
    return "\n".join(_table("risk | within | least of a policy and limit | reward | cost", rows))


def assess_table() -> str:
    """How estimates without a simulator compare with what was played."""
    found = json.loads((RESULTS / "assess.json").read_text(encoding="utf-8"))["summary"]
    rows = []
    for name in ("return", "cost"):
        row = found[name]
        order = "-" if row["spearman"] is None else shown(row["spearman"])
        figures = f"{shown(row['median_width'])} | {shown(row['median_error'])} | {order}"
        rows.append(f"{name} | {shown_share(row['within'])} | {figures}")
    header = "played mean within the 90% interval | median width | median error | rank correlation"
    return "\n".join(_table(f"of {found['cells']} policies and limits | {header}", rows))


def adapt_table() -> str:
    """What the controller's learning leads to, by risk."""
    rows = []
    for path in sorted((RESULTS / "adapt").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for run in found["runs"]:
            reward = shown(run["normalized_reward"], 3)
            figures = f"{run['episodes']} | {shown_share(run['share_over'])} | {reward}"
            rows.append(f"{found['task']} | {found['cost_limit']:g} | {run['risk']:g} | {figures}")
    return "\n".join(_table("task | cost limit | risk | episodes | over the limit | reward", rows))


def students_table() -> str:
    """Students beside their policies, on the same episodes, a row per task and limit."""
    summaries = summarize_seeds(read_results(RESULTS / "students.json"))
    played = {(one.task, one.cost_limit, one.extraction): one for one in summaries}
    rows = []
    for task, limit, _ in sorted(key for key in played if key[2] == "safe"):
        both = [played[task, limit, way] for way in ("safe", FAST)]
        reward = " | ".join(shown(one.normalized_reward.mean) for one in both)
        within = " | ".join(shown_share(one.within_limit) for one in both)
        rows.append(f"{get_task(task).short_name} | {limit:g} | {reward} | {within}")
    head = "task | cost limit | reward | student's reward | episodes within | student's"
    return "\n".join([f"{summaries[0].episodes} episodes each:", "", *_table(head, rows)])


def certificates_table() -> str:
    """What is shown of the policies in policies/, a row per task and limit."""
    rows, columns = [], []
    for folder in sorted(path for path in POLICIES.iterdir() if path.is_dir()):
        found = Certificate.read(folder / CERTIFICATE_FILE)
        columns = [name.replace("\n", " ") for name in found.columns]
        task = "" if found.task is None else get_task(found.task).short_name
        rows += [" | ".join([task, *row]) for row in found.rows]
    return "\n".join(_table(" | ".join(["task", *columns]), rows))


def safe_entries() -> dict[str, list[EvaluationEntry]]:
    """Results of safe extraction by the task's short name, where a task has any."""
    files = {task.short_name: results_of(task.short_name) for task in TASKS.values()}
    return {
        task: [entry for entry in read_results(file) if entry.extraction == "safe"]
        for task, file in files.items()
        if file.exists()
    }


SCORES = "normalized reward | normalized cost | worst seed's cost | episodes within"


def _scores(summary: SeedSummary) -> str:
    both = (summary.normalized_reward, summary.normalized_cost)
    spread = [f"{shown(score.mean)} ± {shown(score.spread)}" for score in both]
    worst, within = shown(summary.normalized_cost.worst), shown_share(summary.within_limit)
    return " | ".join([*spread, worst, within])


def comparison_table() -> str:
    """Every algorithm of Table 1 over the eight tasks, at each task's smallest limit."""
    files = [RESULTS / "paper" / "results.json", *(results_of(task.short_name) for task in TASKS.values())]
    entries = [entry for file in files if file.exists() for entry in read_results(file)]
    data, alone = (table_data("table1", entries, feedback=feedback) for feedback in (True, False))
    tasks = len(data.common_tasks)
    titles = {"spi": f"**{title_of('spi')}**", "spi-paper": "the paper's SPI"}
    found = [(titles.get(row.algorithm, title_of(row.algorithm)), row, data) for row in data.statistics()]
    if own := data.statistics_not_fed_back(alone):
        found.insert(1, (NOT_FED_BACK, own, alone))
    rows = []
    for name, row, against in found:
        wins = sum(against.best_safe(task) == row.algorithm for task in data.common_tasks)
        scores = f"{shown(row.reward.mean)} | {shown(row.cost.mean)}"
        kept = f"{row.safe_tasks} of {tasks} | {wins} of {tasks}"
        rows.append(f"{name} | {scores} | {kept} | {shown_range(row.seeds)}")
    header = "normalized reward | normalized cost | limits kept | highest reward within the limit | seeds"
    return "\n".join(_table(f"| {header}", rows))


def benchmarks_table() -> str:
    """Updates per second by what makes them fast, and the time of an action."""
    training, inference = _measured("training"), _measured("inference")
    step = "{variant} | {cores} | {updates_per_second:.0f} | {times_plain[median]:.1f}"
    steps = []
    for part in training["results"]:
        for row in part["variants"]:
            name = row["variant"] + (" (the default)" if row["variant"] == part["default"] else "")
            steps.append(step.format(**{**row, "variant": name, "cores": part["cores"]}))
    action = "{extraction} | {candidates} | {latency_ms_median:.1f} ms | {latency_ms_99:.1f} ms"
    action += " | {actions_per_second:,}"
    actions = [action.format(**row) for row in inference["results"][0]["extractions"]]
    default = training["results"][0]["variants"][-1]
    header = "one action, one core | candidates | median | 99th percentile | actions/s, 1000 at a time"
    return "\n".join(
        [
            f"On {training['machine']['cpu']}, CPU only.",
            "",
            *_table("training step | cores | updates/s | x plain", steps),
            "",
            "Plain: float32, Mish, gradient through the whole denoising chain. Batch "
            f"{training['settings']['batch_size']}, three 256-wide layers, both twin critics trained; the "
            f"default's peak memory is {default['peak_memory_mb']:.0f} MB.",
            "",
            *_table(header, actions),
        ]
    )


def algorithms_table() -> str:
    """Updates per second of every algorithm, and how many take as long as SPI's training."""
    measured = _measured("algorithms")
    line = "{algorithm} | {batch_size} | {updates_per_second:.0f} | {times_spi[median]:.2f}"
    line += " | {updates_as_long_as_spi:,}"
    rows = [line.format(**row) for row in measured["results"]]
    last = f"updates in the time of SPI's {measured['settings']['spi_updates']:,}"
    return "\n".join(
        [
            f"On {measured['machine']['cpu']}, one core, every algorithm with its preset on BallCircle.",
            "",
            *_table(f"training step | batch | updates/s | x SPI | {last}", rows),
        ]
    )


def time_to_safe_table() -> str:
    """Seconds from the start of Python to a saved policy, and how good it is."""
    measured = _measured("time_to_safe")
    settings, rows = measured["settings"], []
    for row in measured["results"]:
        stages = " | ".join(f"{seconds:.0f}" for seconds in row["stages"].values())
        quality = f"{shown(row['normalized_reward'])} | {shown_share(row['within_limit'])}"
        rows.append(
            f"{row['hidden_dims'][0]} | {row['updates']:,} | {row['seconds']:.0f} | {stages} | {quality}"
        )
    stages = " | ".join(name.replace("_", " ") for name in measured["results"][0]["stages"])
    where = f"On {measured['machine']['cpu']}, {settings['cores']} cores"
    played = f"reward at {settings['cost_limit']:g} | within"
    return "\n".join(
        [
            f"{where}, from the start of Python until the policy is saved, in seconds; then it plays "
            f"{settings['episodes']} episodes:",
            "",
            *_table(f"width | updates | in all | {stages} | {played}", rows),
        ]
    )


def _measured(what: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"benchmark_{what}.json").read_text(encoding="utf-8"))


def _table(header: str, rows: Iterable[str]) -> list[str]:
    head, *body = (re.sub(" +", " ", f"| {row} |") for row in (header, *rows))
    return [head, "|" + "---|" * (head.count("|") - 1), *body]


#: What a page may have between `<!-- begin: NAME -->` and `<!-- end: NAME -->`.
BLOCKS: dict[str, Callable[[], str]] = {
    "results": results_table,
    "tasks": tasks_table,
    "risks": risks_table,
    "assess": assess_table,
    "adapt": adapt_table,
    "certificates": certificates_table,
    "students": students_table,
    "comparison": comparison_table,
    "benchmarks": benchmarks_table,
    "algorithms": algorithms_table,
    "time_to_safe": time_to_safe_table,
}


def render(text: str, tables: dict[str, str]) -> str:
    """A page with every generated block replaced."""

    def filled(match: re.Match[str]) -> str:
        if match[1] not in tables:
            raise SystemExit(f"There is no block '{match[1]}'; there are {', '.join(tables)}.")
        return f"<!-- begin: {match[1]} -->\n{tables[match[1]]}\n<!-- end: {match[1]} -->"

    return re.sub(r"<!-- begin: (\S+) -->\n.*?<!-- end: \1 -->", filled, text, flags=re.DOTALL)


def main() -> int:
    parser = script_parser(__doc__, f"tables: {', '.join(BLOCKS)}")
    parser.add_argument("--check", action="store_true", help="only say whether all pages are up to date")
    args = parser.parse_args()
    before = {page: page.read_text(encoding="utf-8") for page in PAGES}
    unused = [n for n in BLOCKS if not any(f"<!-- begin: {n} -->" in text for text in before.values())]
    if unused:
        raise SystemExit(f"No page has the block '{unused[0]}'.")
    tables = {name: table() for name, table in BLOCKS.items()}
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
