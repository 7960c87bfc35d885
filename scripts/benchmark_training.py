"""Measure the speed of one training update, and where it comes from.

Compares the default training step of `spi train --task ballcircle` with a plain one (float32, Mish, gradient
through the whole denoising chain, one thread of control), and lists every change in between on its own.
All variants run the package's own training step on the real embedded data; only the configuration differs.

Variants take turns within one process, round after round, so that other work on the machine slows all of
them down alike. Speeds are medians over the rounds. The ratio is taken within each round, and its median is
the number to look at.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarking import check_cores, machine, peak_memory_mb, pin_to_cores, positive, run_pinned, save

EPILOG = """\
examples:
  python scripts/benchmark_training.py                          everything, about 6 minutes on two cores
  python scripts/benchmark_training.py --cores 1 --rounds 3     a quick look at one core
  python scripts/benchmark_training.py --no-save                measure without rewriting the results

how to read it:
  updates/s     batches of 256 transitions per second; each trains the noise model and BOTH twin critics
  x plain       how many times as fast as the plain variant (median of the ratios within each round)
  peak memory   of a process that trains this variant only, with Python, PyTorch and the data"""

PLAIN = {
    "mixed_precision": "no",
    "network.activation": "mish",
    "algorithm.guidance": "chain",
    "overlap": False,
}
#: Each variant's changes over the one before it, from plain to the default.
STEPS: list[tuple[str, dict[str, Any]]] = [
    ("plain", PLAIN),
    ("+ SiLU", {"network.activation": "silu"}),
    ("+ one-step guidance", {"algorithm.guidance": "one_step"}),
    ("+ bfloat16", {"mixed_precision": "bf16"}),
    ("+ overlap", {"overlap": "auto"}),
]
WARMUP_UPDATES = 10
MEMORY_UPDATES = 20


def variants(cores: int) -> dict[str, dict[str, Any]]:
    """Overrides of the default configuration by the variant's name; the last one is the default itself."""
    named: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    for name, changes in STEPS if cores > 1 else STEPS[:-1]:
        settings = settings | changes
        named[name] = settings
    return named


class Measured:
    """One variant's training, ready to go on whenever it is its turn."""

    def __init__(self, overrides: dict[str, Any], dataset_name: str | None):
        import torch

        from spi_diffusers.data.loading import load_transitions
        from spi_diffusers.training.build import build_algorithm, build_normalizer
        from spi_diffusers.training.config_layers import make_train_config
        from spi_diffusers.training.runtime import resolve_overlap
        from spi_diffusers.training.sampler import TransitionSampler

        self.config = config = make_train_config({"task": "ballcircle", **overrides})
        dataset = load_transitions(dataset_name, config.task)
        self.overlap = resolve_overlap(config, 1, torch.device("cpu"))
        self.algorithm = build_algorithm(config, dataset, overlap=self.overlap)
        self.sampler = TransitionSampler(
            dataset,
            build_normalizer(dataset),
            config.algorithm,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        with self.threads():
            self.inputs = self.algorithm.with_next_action(self.sampler.draw())
            self.run(updates=WARMUP_UPDATES)

    @contextmanager
    def threads(self) -> Iterator[int]:
        """Torch's threads per operation as the trainer sets them; yields how many."""
        import torch

        from spi_diffusers.training.runtime import intra_op_threads

        with intra_op_threads(self.config, self.overlap):
            yield torch.get_num_threads()

    def run(self, seconds: float = 0.0, updates: int = 1) -> float:
        """Train for at least so long and so many updates; returns updates per second."""
        import torch

        done, started = 0, time.perf_counter()
        while done < updates or time.perf_counter() - started < seconds:
            metrics, self.inputs = self.algorithm.update(self.inputs, self.sampler.draw())
            values = torch.stack(list(metrics.values())).tolist()  # as the trainer reads them
            done += 1
        elapsed = time.perf_counter() - started
        if not all(abs(value) < float("inf") for value in values):
            raise ArithmeticError(f"training diverged: {dict(zip(metrics, values, strict=True))}")
        return done / elapsed


def measure_speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """In a worker: all variants in turn, each round in the other direction."""
    trainings = {
        name: Measured(overrides, args.dataset) for name, overrides in variants(args.worker_cores).items()
    }
    rates: dict[str, list[float]] = {name: [] for name in trainings}
    for round_index in range(args.rounds):
        order = list(trainings)
        for name in order if round_index % 2 == 0 else reversed(order):
            with trainings[name].threads():
                trainings[name].run(updates=2)  # let the variant before leave the caches
                rates[name].append(trainings[name].run(seconds=args.seconds))
        shown = ", ".join(f"{name} {rates[name][-1]:.1f}" for name in trainings)
        print(f"{args.worker_cores} core(s), round {round_index + 1}: {shown}", file=sys.stderr, flush=True)
    rows = []
    for name, training in trainings.items():
        with training.threads() as threads:
            rows.append(
                {
                    "variant": name,
                    "mixed_precision": training.config.mixed_precision,
                    "activation": training.config.network.activation,
                    "guidance": training.config.algorithm.guidance,
                    "overlap": training.overlap,
                    "threads_per_operation": threads,
                    "updates_per_second": round(statistics.median(rates[name]), 2),
                    "times_plain": ratio_to_plain(rates[name], rates["plain"]),
                    "rounds": [round(rate, 2) for rate in rates[name]],
                }
            )
    return rows


def ratio_to_plain(rates: list[float], plain: list[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios within each round."""
    ratios = [rate / reference for rate, reference in zip(rates, plain, strict=True)]
    return {
        "median": round(statistics.median(ratios), 2),
        "min": round(min(ratios), 2),
        "max": round(max(ratios), 2),
    }


def measure_memory(args: argparse.Namespace) -> float:
    """In a worker of its own, because a process's peak can only rise: peak memory of one variant, MB."""
    training = Measured(variants(args.worker_cores)[args.worker_memory], args.dataset)
    with training.threads():
        training.run(updates=MEMORY_UPDATES)
    return peak_memory_mb()


def work(args: argparse.Namespace) -> None:
    """A worker's whole life."""
    pin_to_cores(args.worker_cores)
    import torch

    torch.set_num_threads(args.worker_cores)
    result = measure_memory(args) if args.worker_memory else measure_speed(args)
    print(json.dumps(result))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, in processes of their own."""
    from spi_diffusers.training.config_layers import make_train_config

    forwarded = ["--rounds", str(args.rounds), "--seconds", str(args.seconds)]
    if args.dataset:
        forwarded += ["--dataset", args.dataset]
    measured, circumstances = [], machine()
    for cores in check_cores(args.cores):
        rows = run_pinned(cores, forwarded)
        for row in rows:
            row["peak_memory_mb"] = run_pinned(cores, [*forwarded, "--worker-memory", row["variant"]])
        measured.append({"cores": cores, "default": rows[-1]["variant"], "variants": rows})
    config = make_train_config({"task": "ballcircle"})
    return {
        "format_version": 1,
        "command": "python scripts/benchmark_training.py",
        "machine": circumstances,
        "settings": {
            "task": config.task,
            "batch_size": config.batch_size,
            "hidden_dims": config.network.hidden_dims,
            "num_train_timesteps": config.algorithm.num_train_timesteps,
            "rounds": args.rounds,
            "seconds_per_turn": args.seconds,
        },
        "results": measured,
    }


def show(results: dict[str, Any]) -> None:
    """Print one table per number of cores."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    settings = results["settings"]
    for part in results["results"]:
        table = Table(title=f"Training step on {part['cores']} core(s), batch {settings['batch_size']}")
        table.add_column("variant", no_wrap=True)
        for heading in ("updates/s", "x plain", "all rounds", "peak memory"):
            table.add_column(heading, justify="right")
        for row in part["variants"]:
            is_default = row["variant"] == part["default"]
            times = row["times_plain"]
            table.add_row(
                row["variant"] + (" (default)" if is_default else ""),
                f"{row['updates_per_second']:.1f}",
                f"{times['median']:.2f}",
                f"{times['min']:.2f}-{times['max']:.2f}",
                f"{row['peak_memory_mb']:.0f} MB",
                style="bold" if is_default else None,
            )
        console.print(table)
    console.print(f"{results['machine']['cpu']}; load average {results['machine']['load_average']}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cores", type=int, nargs="+", default=[1, 2], help="core counts to measure (default: 1 2)"
    )
    parser.add_argument("--rounds", type=positive(int), default=9, help="turns per variant (default: 9)")
    parser.add_argument(
        "--seconds", type=positive(float), default=3.0, help="length of a turn (default: 3 s)"
    )
    parser.add_argument("--dataset", help="data to train on, as for `spi train` (default: embedded)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results/benchmark_training.json"),
        help="results file (default: results/benchmark_training.json)",
    )
    parser.add_argument("--no-save", action="store_true", help="print the table only")
    parser.add_argument("--worker-cores", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker-memory", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.worker_cores:
        work(args)
        return
    results = measure(args)
    show(results)
    if not args.no_save:
        save(args.output, results)


if __name__ == "__main__":
    main()
