"""Rewrite the committed results: train and evaluate SPI on the data in the package, five seeds.

    python scripts/reproduce.py                 # about half an hour on two cores
    python scripts/reproduce.py --jobs 4        # four trainings side by side

Every seed is trained in a process of its own on one thread, then played for 20 episodes at each cost
limit, with safe extraction (running cost fed back, and not) and with the paper's. Finished seeds are kept,
so a stopped run goes on. Writes results/ballcircle.json and its plot; scripts/update_readme.py takes the
table in README.md from there.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
TASK = "ballcircle"
COST_LIMITS = (10, 20, 40)
#: Evaluation episodes must not depend on the training seed in a way that could be tuned to.
EVALUATION_SEED_OFFSET = 1000


def train_and_evaluate(seed: int, output: Path, updates: int | None, episodes: int) -> Path:
    """One seed, through the same commands a user types; returns its results file."""
    run = output / f"{TASK}-seed{seed}"
    train = ["train", "--task", TASK, "--seed", seed, "--output_dir", run, "--threads", 1]
    train += ["--overlap", "false", *(["--updates", updates] if updates else [])]
    if (run / "checkpoints").exists():
        train.append("--resume")
    limits = [str(limit) for limit in COST_LIMITS]
    evaluate = ["evaluate", run, "--cost-limit", *limits, "--episodes", episodes]
    evaluate += ["--seeds", EVALUATION_SEED_OFFSET + seed, "--no-video", "--no-plots"]
    run.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # jobs run side by side
    for command in (train, evaluate, [*evaluate, "--extraction", "safe", "--no-feedback"]):
        with (run / f"{command[0]}.log").open("a", encoding="utf-8") as log:
            words = [sys.executable, "-m", "spi_diffusers.cli", *map(str, command)]
            code = subprocess.run(words, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
        if code:
            raise SystemExit(f"seed {seed}: {' '.join(words[2:])} failed with code {code}; see {log.name}")
    return run / "evaluation" / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="training seeds")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side (default: 2)")
    parser.add_argument("--updates", type=int, help="training updates (default: the task's preset)")
    parser.add_argument("--episodes", type=int, default=20, help="episodes per seed and limit (default: 20)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "outputs" / "reproduce", help="folder of the runs"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the results file")
    args = parser.parse_args()

    from spi_diffusers.data.loading import load_transitions
    from spi_diffusers.evaluation.behaviour import behaviour_rows
    from spi_diffusers.evaluation.plots import plot_limits
    from spi_diffusers.evaluation.results import read_results, write_results
    from spi_diffusers.evaluation.tables import results_tables

    console = Console()
    console.print(f"Training seeds {args.seeds}, {args.jobs} side by side; logs in {args.output}.")
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [
            pool.submit(train_and_evaluate, seed, args.output, args.updates, args.episodes)
            for seed in args.seeds
        ]
        entries = []
        for seed, job in zip(args.seeds, jobs, strict=True):
            entries += read_results(job.result())
            console.print(f"seed {seed} done")
    write_results(args.results / f"{TASK}.json", entries)
    behaviour = behaviour_rows(load_transitions(None, TASK), list(COST_LIMITS))
    plot_limits(entries, args.results / f"{TASK}_limits.png", behaviour)
    for table in results_tables(entries, behaviour):
        console.print(table)


if __name__ == "__main__":
    main()
