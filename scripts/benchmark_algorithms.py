"""Measure the training speed of every algorithm, and how many of its updates take as long as SPI trains.

All train on the embedded BallCircle data with the settings of their presets, on one core and one thread, and
take turns within one process, round after round, so that other work on the machine slows all of them down
alike. Speeds are medians over the rounds; the ratio to SPI is taken within each round.
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from helpers import (
    MeasuredTraining,
    machine,
    pin_to_cores,
    positive,
    ratios_within_rounds,
    run_pinned,
    save,
    take_turns,
)

from spi_diffusers.cli import run_with_messages

EPILOG = """\
examples:
  python scripts/benchmark_algorithms.py                          everything, about 5 minutes
  python scripts/benchmark_algorithms.py --rounds 3 --no-save     a quick look

how to read it:
  updates/s       batches per second, of the size in the column before
  x SPI           how many updates it makes while SPI makes one (median of the ratios within each round)
  as long as SPI  its updates in the time of SPI's whole training; a benchmark should give it as many"""

SPI_NAME = "spi"


def settings_of() -> dict[str, dict[str, Any]]:
    """What a configuration needs for each algorithm, by name; SPI first."""
    from spi_diffusers.config.algorithms import BASELINES

    one_thread = {"threads": 1, "overlap": False}
    return {
        SPI_NAME: one_thread,
        "spi-paper": {"algorithm": "spi-paper", **one_thread},
        **{name: {"algorithm": name, **one_thread} for name in BASELINES},
    }


def measure_speed(args: argparse.Namespace) -> dict[str, Any]:
    """In a worker: all algorithms in turn."""
    trainings = {name: MeasuredTraining(settings, None) for name, settings in settings_of().items()}
    rates = take_turns(trainings, args.rounds, args.seconds, "1 core")
    spi_updates = trainings[SPI_NAME].config.updates
    rows = []
    for name, training in trainings.items():
        times = ratios_within_rounds(rates[name], rates[SPI_NAME])
        rows.append(
            {
                "algorithm": name,
                "batch_size": training.config.batch_size,
                "updates_per_second": round(statistics.median(rates[name]), 2),
                "times_spi": times,
                "updates_as_long_as_spi": round(spi_updates * times["median"]),
                "rounds": [round(rate, 2) for rate in rates[name]],
            }
        )
    return {"spi_updates": spi_updates, "algorithms": rows}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, in a process of its own."""
    circumstances = machine()
    measured = run_pinned(1, ["--rounds", str(args.rounds), "--seconds", str(args.seconds)])
    return {
        "format_version": 1,
        "command": shlex.join(["python", "scripts/benchmark_algorithms.py", *sys.argv[1:]]),
        "machine": circumstances,
        "settings": {
            "task": "OfflineBallCircle-v0",
            "cores": 1,
            "rounds": args.rounds,
            "seconds_per_turn": args.seconds,
            "spi_updates": measured["spi_updates"],
        },
        "results": measured["algorithms"],
    }


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Training on one core; SPI: {results['settings']['spi_updates']:,} updates")
    table.add_column("algorithm", no_wrap=True)
    for heading in ("batch", "updates/s", "x SPI", "all rounds", "as long as SPI"):
        table.add_column(heading, justify="right")
    for row in results["results"]:
        times = row["times_spi"]
        table.add_row(
            row["algorithm"],
            str(row["batch_size"]),
            f"{row['updates_per_second']:.1f}",
            f"{times['median']:.2f}",
            f"{times['min']:.2f}-{times['max']:.2f}",
            f"{row['updates_as_long_as_spi']:,}",
        )
    console = Console()
    console.print(table)
    console.print(f"{results['machine']['cpu']}; load average {results['machine']['load_average']}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=positive(int), default=9, help="turns per algorithm (default: 9)")
    parser.add_argument(
        "--seconds", type=positive(float), default=3.0, help="length of a turn (default: 3 s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/benchmark_algorithms.json"),
        help="results file (default: results/benchmark_algorithms.json)",
    )
    parser.add_argument("--no-save", action="store_true", help="print the table only")
    parser.add_argument("--worker-cores", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def work(args: argparse.Namespace) -> None:
    """The worker's whole life."""
    pin_to_cores(args.worker_cores)
    import torch

    torch.set_num_threads(args.worker_cores)
    print(json.dumps(measure_speed(args)))


def main() -> int:
    args = parse_arguments()
    if args.worker_cores:
        work(args)
        return 0
    results = measure(args)
    show(results)
    if not args.no_save:
        save(args.output, results)
    return 0


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
