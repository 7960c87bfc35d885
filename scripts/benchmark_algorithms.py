"""Measure the training speed of every algorithm, and how many of its updates take as long as SPI trains.

All train on the embedded BallCircle data with the settings of their presets, on one core and one thread, and
take turns within one process, round after round, so that other work on the machine slows all of them down
alike. Speeds are medians over the rounds; the ratio to SPI is taken within each round.
"""

import argparse
import statistics
import sys
from typing import Any

from helpers import (
    MeasuredTraining,
    measure_and_save,
    measuring_parser,
    print_table,
    ratios_within_rounds,
    run_pinned,
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

REFERENCE = "spi"


def settings_of() -> dict[str, dict[str, Any]]:
    """What a configuration needs for each algorithm, by name; SPI first."""
    from spi_diffusers.config.algorithms import BASELINES

    names = (REFERENCE, "spi-paper", *BASELINES)
    return {name: {"algorithm": name, "threads": 1, "overlap": False} for name in names}


def work(args: argparse.Namespace) -> dict[str, Any]:
    """All algorithms in turn."""
    trainings = {name: MeasuredTraining(settings, None) for name, settings in settings_of().items()}
    rates = take_turns(trainings, args.rounds, args.seconds, "1 core")
    spi_updates = trainings[REFERENCE].config.updates
    rows = []
    for name, training in trainings.items():
        times = ratios_within_rounds(rates[name], rates[REFERENCE])
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
    measured = run_pinned(1, ["--rounds", args.rounds, "--seconds", args.seconds])
    return {
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
    line = "{algorithm} | {batch_size} | {updates_per_second:.1f} | {times_spi[median]:.2f}"
    line += " | {times_spi[min]:.2f}-{times_spi[max]:.2f} | {updates_as_long_as_spi:,}"
    title = f"Training on one core; SPI: {results['settings']['spi_updates']:,} updates"
    headings = "algorithm | batch | updates/s | x SPI | all rounds | as long as SPI"
    print_table(title, headings, [line.format(**row) for row in results["results"]])


def main() -> None:
    args = measuring_parser(__doc__, EPILOG, rounds="algorithm").parse_args()
    measure_and_save(args, work, measure, show)


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
