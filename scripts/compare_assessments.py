"""Compare what `spi assess` estimates from data with what policies then do in the simulator.

    python scripts/compare_assessments.py outputs/safe    # of spi benchmark --suite safe
    python scripts/compare_assessments.py outputs/safe --output results/assess.json

Of each training that the benchmark has finished, the policy is assessed by its held-out episodes, at every
limit that it was played at with its running cost fed back. The results file holds both, and how often the
mean of the played episodes lies in the interval. The limits of one policy share its critic and its held-out
episodes, and the seeds of a task its data: shares of cells are not of independent draws.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from helpers import script_parser
from scipy.stats import spearmanr

from spi_diffusers.cli import run_with_messages
from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.assess import assess
from spi_diffusers.evaluation.assessment import COVERAGE
from spi_diffusers.evaluation.results import read_results
from spi_diffusers.evaluation.summary import shown
from spi_diffusers.files import EVALUATION_FOLDER, POLICY_FOLDER, RESULTS_FILE, to_json
from spi_diffusers.pipelines.loading import load_pipeline
from spi_diffusers.progress import progress_bar


def compare(run: Path) -> Iterator[dict[str, Any]]:
    """A row for every limit that a finished training was played at."""
    entries = read_results(run / EVALUATION_FOLDER / RESULTS_FILE)
    played = [one for one in entries if one.extraction == "safe" and one.feedback and one.is_at_usual_risk]
    if not played:
        print(f"{run}: was not played with its running cost fed back, and is left out", file=sys.stderr)
        return
    assessment = assess(load_pipeline(run), cost_limits=[one.cost_limit for one in played])
    for entry, expected in zip(played, assessment.limits, strict=True):
        task = get_task(entry.task)
        row: dict[str, Any] = {"task": task.name, "train_seed": entry.train_seed}
        row |= {"cost_limit": entry.cost_limit, "reward_range": task.reward_max - task.reward_min}
        row |= {"feasible": expected.feasible, "out_of_support": expected.out_of_support}
        for name, estimate, mean in (
            ("return", expected.expected_return, entry.reward_mean),
            ("cost", expected.expected_cost, entry.cost_mean),
        ):
            row[name] = {"expected": estimate.mean, "low": estimate.low, "high": estimate.high}
            row[name] |= {"played": mean, "within": estimate.low <= mean <= estimate.high}
        yield row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often intervals hold, how wide they are, and how well estimates order tasks, seeds and limits.

    Returns are in shares of the task's reward range, costs in shares of the limit.
    """
    scales = {"return": [row["reward_range"] for row in rows], "cost": [row["cost_limit"] for row in rows]}
    result: dict[str, Any] = {"cells": len(rows)}
    for name, scale in scales.items():
        expected, low, high, played = (
            np.array([row[name][key] for row in rows]) / scale
            for key in ("expected", "low", "high", "played")
        )
        result[name] = {
            "within": float(np.mean([row[name]["within"] for row in rows])),
            "median_width": float(np.median(high - low)),
            "median_error": float(np.median(np.abs(expected - played))),
            "spearman": _rank_correlation(expected, played),
        }
    return result


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's; None where all values of one are the same."""
    constant = min(np.ptp(first), np.ptp(second)) == 0
    return None if constant else float(spearmanr(first, second).statistic)


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("benchmark", type=Path, help="folder of the benchmark")
    parser.add_argument("--output", type=Path, help="results file (default: assess.json in that folder)")
    args = parser.parse_args()
    files = sorted(args.benchmark.glob(f"runs/*/spi/seed*/{EVALUATION_FOLDER}/{RESULTS_FILE}"))
    runs = [file.parent.parent for file in files if (file.parent.parent / POLICY_FOLDER).is_dir()]
    if not runs:
        raise FileNotFoundError(f"{args.benchmark}: holds no training of spi that was played")
    rows = [row for run in progress_bar(runs, unit=" policies", disable=False) for row in compare(run)]
    found = summary(rows)
    output = args.output or args.benchmark / "assess.json"
    output.write_bytes(to_json({"coverage": COVERAGE, "summary": found, "rows": rows}))
    for name in ("return", "cost"):
        print(
            f"{name}:",
            ", ".join(
                f"{key} {'-' if value is None else shown(value)}" for key, value in found[name].items()
            ),
        )
    print(f"{found['cells']} cells of {len(runs)} policies: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
