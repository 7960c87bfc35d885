"""Measure the speed of one training update, and where it comes from.

Compares the default training step of `spi train --task ballcircle` with a plain one (float32, Mish, gradient
through the whole denoising chain, one thread of control), and lists every change in between on its own.
All variants run the package's own training step on the real embedded data; only the configuration differs.

Variants take turns within one process, round after round, so that other work on the machine slows all of
them down alike. Speeds are medians over the rounds. The ratio is taken within each round, and its median is
the number to look at.

With `--device cuda`, the default training step on the GPU takes turns with that on the CPU instead.
"""

import argparse
import statistics
import sys
from typing import Any

from helpers import (
    MeasuredTraining,
    check_cores,
    measure_and_save,
    measuring_parser,
    peak_memory_mb,
    print_table,
    ratios_within_rounds,
    run_pinned,
    take_turns,
)

from spi_diffusers.cli import run_with_messages

EPILOG = """\
examples:
  python scripts/benchmark_training.py                          everything, about 6 minutes on two cores
  python scripts/benchmark_training.py --cores 1 --rounds 3     a quick look at one core
  python scripts/benchmark_training.py --no-save                measure without rewriting the results
  python scripts/benchmark_training.py --device cuda            a GPU beside the CPU; prints the table only

how to read it:
  updates/s     batches of 256 transitions per second; each trains the noise model and BOTH twin critics
  x plain       how many times as fast as the plain variant (median of the ratios within each round)
  peak memory   of a process that trains this variant only, with Python, PyTorch and the data"""

PLAIN = {
    "mixed_precision": "no",
    "network.activation": "mish",
    "spi.guidance": "chain",
    "overlap": False,
}
#: Each variant's changes over the one before it, from plain to the default.
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("plain", PLAIN),
    ("+ SiLU", {"network.activation": "silu"}),
    ("+ one-step guidance", {"spi.guidance": "one_step"}),
    ("+ precision auto", {"mixed_precision": "auto"}),
    ("+ overlap", {"overlap": "auto"}),
]
MEMORY_UPDATES = 20


def variants(cores: int) -> dict[str, dict[str, Any]]:
    """Overrides of the default configuration by the variant's name; the last one is the default itself."""
    named: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    for name, changes in STEPS if cores > 1 else STEPS[:-1]:
        settings = settings | changes
        named[name] = settings
    return named


def measure_speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """In a worker: all variants in turn, each round in the other direction."""
    trainings = {
        name: MeasuredTraining(overrides, args.dataset)
        for name, overrides in variants(args.worker_cores).items()
    }
    rates = take_turns(trainings, args.rounds, args.seconds, f"{args.worker_cores} core(s)")
    rows = []
    for name, training in trainings.items():
        with training.threads() as threads:
            rows.append(
                {
                    "variant": name,
                    "mixed_precision": training.config.mixed_precision,
                    "activation": training.config.network.activation,
                    "guidance": training.config.spi.guidance,
                    "overlap": training.overlap,
                    "threads_per_operation": threads,
                    "updates_per_second": round(statistics.median(rates[name]), 2),
                    "times_plain": ratios_within_rounds(rates[name], rates["plain"]),
                    "rounds": [round(rate, 2) for rate in rates[name]],
                }
            )
    return rows


def measure_memory(args: argparse.Namespace) -> float:
    """In a worker of its own, because a process's peak can only rise: peak memory of one variant, MB."""
    training = MeasuredTraining(variants(args.worker_cores)[args.worker_memory], args.dataset)
    with training.threads():
        training.run(updates=MEMORY_UPDATES)
    return peak_memory_mb()


def work(args: argparse.Namespace) -> Any:
    return measure_memory(args) if args.worker_memory else measure_speed(args)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from spi_diffusers.config.layers import make_train_config

    forwarded = ["--rounds", args.rounds, "--seconds", args.seconds]
    if args.dataset:
        forwarded += ["--dataset", args.dataset]
    measured = []
    for cores in check_cores(args.cores):
        rows = run_pinned(cores, forwarded)
        for row in rows:
            row["peak_memory_mb"] = run_pinned(cores, [*forwarded, "--worker-memory", row["variant"]])
        measured.append({"cores": cores, "default": rows[-1]["variant"], "variants": rows})
    config = make_train_config({"task": "ballcircle"})
    return {
        "settings": {
            "task": config.task,
            "batch_size": config.batch_size,
            "hidden_dims": config.network.hidden_dims,
            "num_train_timesteps": config.spi.num_train_timesteps,
            "rounds": args.rounds,
            "seconds_per_turn": args.seconds,
        },
        "results": measured,
    }


def show(results: dict[str, Any]) -> None:
    """Print one table per number of cores."""
    line = "{variant} | {updates_per_second:.1f} | {times_plain[median]:.2f}"
    line += " | {times_plain[min]:.2f}-{times_plain[max]:.2f} | {peak_memory_mb:.0f} MB"
    for part in results["results"]:
        default = f"{part['default']} (default)"
        rows = [line.format(**row) for row in part["variants"]]
        rows = [row.replace(f"{part['default']} |", f"{default} |") for row in rows]
        title = f"Training step on {part['cores']} core(s), batch {results['settings']['batch_size']}"
        print_table(title, "variant | updates/s | x plain | all rounds | peak memory", rows, bold=default)


def compare_with_gpu(args: argparse.Namespace) -> None:
    """Print the speed of the default training step on the GPU, and on all cores of the CPU."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(
            f"error: --device cuda: PyTorch {torch.__version__} finds no GPU on this machine. Its "
            "driver must be there, and PyTorch built for CUDA."
        )
    trainings = {name: MeasuredTraining({"device": name}, args.dataset) for name in ("cpu", "cuda")}
    rates = take_turns(trainings, args.rounds, args.seconds, "default step")
    names = {"cpu": f"CPU, {torch.get_num_threads()} thread(s)", "cuda": torch.cuda.get_device_name()}
    rows = []
    for device, own in rates.items():
        times = ratios_within_rounds(own, rates["cpu"])
        spread = f"{times['min']:.2f}-{times['max']:.2f}"
        rows.append(f"{names[device]} | {statistics.median(own):.1f} | {times['median']:.2f} | {spread}")
    batch_size = trainings["cuda"].config.batch_size
    print_table(f"Training step, batch {batch_size}", "device | updates/s | x CPU | all rounds", rows)


def main() -> None:
    parser = measuring_parser(__doc__, EPILOG, rounds="variant")
    parser.add_argument(
        "--cores", type=int, nargs="+", default=[1, 2], help="core counts to measure (default: 1 2)"
    )
    parser.add_argument("--dataset", help="data to train on, as for `spi train` (default: embedded)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda: a GPU beside the CPU (default: cpu)"
    )
    parser.add_argument("--worker-memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda":
        compare_with_gpu(args)
    else:
        measure_and_save(args, work, measure, show)


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
