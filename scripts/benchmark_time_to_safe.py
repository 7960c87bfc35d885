"""Measure how long it takes from starting Python to a policy of BallCircle that keeps a limit of 10.

Each setting trains in a fresh process on two cores, from the data in the package, as `spi train` does.
The clock stops when its policy is saved. Then it is played for 100 episodes, cost fed back: is it safe, and
what does it earn? Nothing else should run on the machine.
"""

import argparse
import sys
import tempfile
import time
from itertools import pairwise
from typing import Any

from helpers import (
    MAIN_TASK,
    check_cores,
    measure_and_save,
    measuring_parser,
    positive,
    print_table,
    run_pinned,
)

from spi_diffusers.cli import run_with_messages

EPILOG = """\
examples:
  python scripts/benchmark_time_to_safe.py                                both, about 10 minutes
  python scripts/benchmark_time_to_safe.py --settings 128x7500 --no-save  what `make demo` trains

how to read it:
  seconds    until the policy is saved, in all and by stage: start Python and import, load the data, train,
             then train the evaluation critic and save
  reward     normalized, at the limit of 10
  within     share of the episodes that cost at most 10"""

#: Width of the layers, and updates: what `make demo` trains, and what `spi train` does.
SETTINGS = [(128, 7_500), (256, 15_000)]
DEPTH = 3
LIMIT = 10.0
EVALUATION_SEED = 5000
STAGES = ("imports", "data", "training", "evaluation_critic")


def setting(text: str) -> tuple[int, int]:
    """An argparse type: 128x7500."""
    width, updates = map(positive(int), text.split("x"))
    return width, updates


def work(args: argparse.Namespace) -> dict[str, Any]:
    """In a worker: train by one setting, then play the policy."""
    from spi_diffusers import evaluate
    from spi_diffusers.config.layers import make_train_config
    from spi_diffusers.training.train import run_training

    imported = time.time()
    hidden_dims = [args.worker_width] * DEPTH
    with tempfile.TemporaryDirectory() as folder:
        settings = {"task": MAIN_TASK, "seed": args.seed, "updates": args.worker_updates}
        settings |= {"network": {"hidden_dims": hidden_dims}, "output_dir": f"{folder}/run"}
        logged: list[float] = []  # after every hundredth update, and after the last one
        ended = run_training(
            make_train_config(settings), lambda _: logged.append(time.time()), progress=False
        )
        saved = time.time()
        (played,) = evaluate(
            str(ended.policy_folder),
            cost_limits=[LIMIT],
            episodes=args.episodes,
            seeds=[EVALUATION_SEED],
            extractions=["safe"],
            progress=False,
        )
    began = logged[-1] - ended.training.seconds
    clock = (args.worker_started, imported, began, logged[-1], saved)
    stages = {name: round(end - start, 1) for name, (start, end) in zip(STAGES, pairwise(clock), strict=True)}
    return {
        "hidden_dims": hidden_dims,
        "updates": args.worker_updates,
        "seconds": round(saved - args.worker_started, 1),
        "stages": stages,
        "normalized_reward": round(played.normalized_reward, 3),
        "normalized_cost": round(played.normalized_cost, 3),
        "within_limit": played.within_limit,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    (cores,) = check_cores([args.cores])
    rows = []
    for width, updates in args.settings:
        print(f"{width} wide, {updates:,} updates ...", file=sys.stderr, flush=True)
        own = ["--worker-width", width, "--worker-updates", updates, "--worker-started", time.time()]
        rows.append(run_pinned(cores, ["--seed", args.seed, "--episodes", args.episodes, *own]))
    return {
        "settings": {
            "task": MAIN_TASK,
            "cores": cores,
            "cost_limit": LIMIT,
            "train_seed": args.seed,
            "evaluation_seed": EVALUATION_SEED,
            "episodes": args.episodes,
        },
        "results": rows,
    }


def show(results: dict[str, Any]) -> None:
    settings = results["settings"]
    title = f"{settings['task']} within {LIMIT:g}, {settings['cores']} cores, {settings['episodes']} episodes"
    headings = "width x updates | seconds | " + " | ".join(name.replace("_", " ") for name in STAGES)
    line = "{hidden_dims[0]} x {updates:,} | {seconds:.0f} | "
    line += " | ".join(f"{{stages[{name}]:.0f}}" for name in STAGES)
    line += " | {normalized_reward:.2f} | {within_limit:.0%}"
    print_table(title, f"{headings} | reward | within", [line.format(**row) for row in results["results"]])


def main() -> None:
    parser = measuring_parser(__doc__, EPILOG)
    whole = positive(int)
    parser.add_argument(
        "--settings",
        type=setting,
        nargs="+",
        metavar="WIDTHxUPDATES",
        default=SETTINGS,
        help="width of the layers and updates of training; the last one is the default of spi train",
    )
    parser.add_argument("--seed", type=int, default=10, help="of training (default: 10)")
    parser.add_argument("--episodes", type=whole, default=100, help="to play (default: 100)")
    parser.add_argument("--cores", type=whole, default=2, help="of the machine (default: 2)")
    for name, kind in (("width", int), ("updates", int), ("started", float)):
        parser.add_argument(f"--worker-{name}", type=kind, help=argparse.SUPPRESS)
    measure_and_save(parser.parse_args(), work, measure, show)


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
