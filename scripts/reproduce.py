"""Rewrite the committed results: train and evaluate SPI, several seeds a task.

    python scripts/reproduce.py                           # what results/ holds, about 20 minutes a task
    python scripts/reproduce.py --tasks carrun            # one more task
    python scripts/reproduce.py --jobs 4                  # four trainings side by side

Every seed is trained in a process of its own on one thread, then played for 20 episodes at each of the task's
cost limits, with safe extraction (running cost fed back, and not) and with the paper's. BallCircle's data is
in the package, the others' in datasets/. Finished seeds are kept, so a stopped run goes on. Writes
results/<task>.json and its plot; scripts/update_readme.py takes the tables in README.md from there.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from spi_diffusers.cli import run_with_messages
from spi_diffusers.data.tasks import TASKS, get_task

ROOT = Path(__file__).resolve().parent.parent
DATASETS = "datasets"  # in the repository, where all commands run; so no result names a folder of a machine
MAIN_TASK = "ballcircle"  # the one of `make demo`
#: Evaluation episodes must not depend on the training seed in a way that could be tuned to.
EVALUATION_SEED_OFFSET = 1000


def seeds_of(task: str) -> range:
    """Training seeds of a task."""
    return range(5 if task == MAIN_TASK else 3)


def dataset_of(task: str) -> str | None:
    """What `--dataset` is for a task; None stands for the data in the package."""
    return None if task == MAIN_TASK else DATASETS


def result_file(folder: Path, task: str) -> Path:
    """Where a task's results lie."""
    return folder / f"{get_task(task).short_name}.json"


def train_and_evaluate(task: str, seed: int, output: Path, updates: int | None, episodes: int) -> Path:
    """One seed, through the same commands a user types; returns its results file."""
    run = output.resolve() / f"{task}-seed{seed}"
    dataset = dataset_of(task)
    train = ["train", "--task", task, "--seed", seed, "--output_dir", run, "--threads", 1, "--quiet"]
    train += ["--overlap", "false", *(["--updates", updates] if updates else [])]
    train += ["--dataset", dataset] if dataset else []
    if (run / "checkpoints").exists():
        train.append("--resume")
    limits = [f"{limit:g}" for limit in get_task(task).cost_limits]
    evaluate = ["evaluate", run, "--cost-limit", *limits, "--episodes", episodes, "--quiet"]
    evaluate += ["--seeds", EVALUATION_SEED_OFFSET + seed, "--no-video", "--no-plots"]
    run.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # jobs run side by side
    for command in (train, evaluate, [*evaluate, "--extraction", "safe", "--no-feedback"]):
        with (run / f"{command[0]}.log").open("a", encoding="utf-8") as log:
            words = [sys.executable, "-m", "spi_diffusers.cli", *map(str, command)]
            code = subprocess.run(
                words, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            ).returncode
        if code:
            raise SystemExit(
                f"{task}, seed {seed}: {' '.join(words[2:])} failed with code {code}; see {log.name}"
            )
    return run / "evaluation" / "results.json"


def write_task(task: str, files: list[Path], folder: Path, console: Console) -> None:
    """Gather the seeds of a task into its results file, plot and tables."""
    from spi_diffusers.data.loading import load_transitions
    from spi_diffusers.evaluation.plots import plot_limits
    from spi_diffusers.evaluation.results import merge_results, read_results
    from spi_diffusers.evaluation.summary import behavior_rows
    from spi_diffusers.evaluation.tables import results_tables

    new = [entry for file in files for entry in read_results(file)]
    entries = merge_results(result_file(folder, task), new)  # other seeds stay
    limits = [float(limit) for limit in get_task(task).cost_limits]
    dataset = dataset_of(task)
    behaviour = behavior_rows(load_transitions(dataset and ROOT / dataset, task), limits)
    plot_limits(entries, folder / f"{task}_limits.png", behaviour)
    for table in results_tables(entries, behaviour):
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", help="tasks (default: those that results/ has)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="training seeds (default: 0 to 4 on BallCircle, else 0 to 2)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side (default: 2)")
    parser.add_argument("--updates", type=int, help="training updates (default: the task's preset)")
    parser.add_argument("--episodes", type=int, default=20, help="episodes per seed and limit (default: 20)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "outputs" / "reproduce", help="folder of the runs"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the results files")
    args = parser.parse_args()

    names = args.tasks or [name for name in TASKS if result_file(args.results, name).exists()]
    tasks = [get_task(name).short_name for name in names]
    console = Console()
    console.print(f"Training {', '.join(tasks)}; {args.jobs} side by side; logs in {args.output}.")
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs: dict[str, list[Future[Path]]] = {
            task: [
                pool.submit(train_and_evaluate, task, seed, args.output, args.updates, args.episodes)
                for seed in args.seeds or seeds_of(task)
            ]
            for task in tasks
        }
        try:
            for task, submitted in jobs.items():
                write_task(task, [job.result() for job in submitted], args.results, console)
        except BaseException:  # what is wrong is to be seen now, not after the trainings that still wait
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
