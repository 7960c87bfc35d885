"""What scripts share: committed results, measuring in pinned processes, training steps that take turns."""

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
POLICIES = ROOT / "policies"
ORGANISATION = "org"  # in committed cards; whoever publishes puts their own in its place
MAIN_TASK = "ballcircle"  # its data is in the package; the other tasks' is in datasets/
WARMUP_UPDATES = 10


def results_of(task: str) -> Path:
    """Where the committed results of a task lie, by its short name."""
    return RESULTS / f"{task}.json"


def dataset_of(task: str) -> str | None:
    """What `--dataset` is for a task's committed results; None stands for the data in the package."""
    return None if task == MAIN_TASK else "datasets"


def script_parser(doc: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it is written."""
    return argparse.ArgumentParser(
        description=doc, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


# ---- measuring


def measuring_parser(doc: str | None, epilog: str, *, rounds: str | None = None) -> argparse.ArgumentParser:
    """The parser of a benchmark script, with the options that all have.

    Args:
        doc: The script's docstring.
        epilog: Examples, and how to read the table.
        rounds: What takes turns, for a script that measures in rounds.
    """
    parser = script_parser(doc, epilog)
    if rounds is not None:
        parser.add_argument(
            "--rounds", type=positive(int), default=9, help=f"turns per {rounds} (default: 9)"
        )
        parser.add_argument(
            "--seconds", type=positive(float), default=3.0, help="length of a turn (default: 3 s)"
        )
    output = f"results/{Path(sys.argv[0]).stem}.json"
    parser.add_argument("--output", type=Path, default=Path(output), help=f"results file (default: {output})")
    parser.add_argument("--no-save", action="store_true", help="print the table only")
    parser.add_argument("--worker-cores", type=int, help=argparse.SUPPRESS)
    return parser


def measure_and_save(
    args: argparse.Namespace,
    work: Callable[[argparse.Namespace], Any],
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
) -> None:
    """Measure in processes of their own, print the tables and write the results file.

    Args:
        args: Of `measuring_parser`.
        work: Measures, in a process that may use `--worker-cores` cores only; gives what JSON can hold.
        measure: Calls `run_pinned` and gives the results file's "settings" and "results".
        show: Prints the content of the results file.
    """
    if args.worker_cores:
        if hasattr(os, "sched_setaffinity"):  # macOS has none
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.worker_cores])
        import torch

        torch.set_num_threads(args.worker_cores)
        print(json.dumps(work(args)))
        return
    command = shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    results = {"format_version": 1, "command": command, "machine": machine(), **measure(args)}
    show(results)
    print(f"{results['machine']['cpu']}; load average {results['machine']['load_average']}")
    if not args.no_save:
        from spi_diffusers.files import replace_file, to_json

        args.output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.output, to_json(results))
        print(f"Results written to {args.output}.")


def run_pinned(cores: int, arguments: Sequence[object]) -> Any:
    """Run this script again in a fresh process that may use `cores` cores, and return the JSON it prints.

    The number of threads is set in the environment as well, because libraries size their thread pools when
    they are loaded.

    Raises:
        SystemExit: The process failed; its own messages are above.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)}
    words = [sys.executable, sys.argv[0], *map(str, arguments), "--worker-cores", str(cores)]
    process = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True)
    if process.returncode != 0:
        raise SystemExit(f"error: the measuring process on {cores} core(s) failed; see above.")
    return json.loads(process.stdout.splitlines()[-1])


def check_cores(cores: Sequence[int]) -> list[int]:
    """The wanted core counts that this machine has, with a note about the others.

    Raises:
        SystemExit: It has none of them.
    """
    most = _available_cores()
    usable = [count for count in cores if 1 <= count <= most]
    for count in sorted(set(cores) - set(usable)):
        print(f"Skipping {count} cores: this process may use {most}.", file=sys.stderr)
    if not usable:
        raise SystemExit(f"error: --cores {' '.join(map(str, cores))}: this process may use 1 to {most}.")
    return usable


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code; nothing that names the machine or the day."""
    from spi_diffusers.training.processes import training_versions

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "bfloat16_instructions": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
        "cores": _available_cores(),
        "system": platform.system(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": training_versions(),
    }


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mb() -> float:
    """Largest resident memory this process ever had, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def ratios_within_rounds(rates: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios within each round."""
    ratios = [rate / other for rate, other in zip(rates, reference, strict=True)]
    return {
        "median": round(statistics.median(ratios), 2),
        "min": round(min(ratios), 2),
        "max": round(max(ratios), 2),
    }


def print_table(title: str, headings: str, rows: Iterable[str], bold: str = "") -> None:
    """Print a table, columns separated by " | "; the row whose first column is `bold` stands out."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for number, heading in enumerate(headings.split(" | ")):
        table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    for cells in (row.split(" | ") for row in rows):
        table.add_row(*cells, style="bold" if cells[0] == bold else None)
    Console().print(table)


def positive(kind: type) -> Any:
    """An argparse type: a number above zero."""

    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above zero, got {text}")
        return value

    return number


# ---- training steps that take turns, so that other work on the machine slows all down alike


class MeasuredTraining:
    """One variant's training, ready to go on whenever it is its turn.

    Args:
        overrides: What the configuration has over BallCircle's own.
        dataset_name: As `--dataset` of `spi train`; None: the embedded data.
    """

    def __init__(self, overrides: dict[str, Any], dataset_name: str | None):
        import torch

        from spi_diffusers.config.layers import make_train_config
        from spi_diffusers.data.loading import load_transitions
        from spi_diffusers.training.build import (
            build_algorithm,
            build_normalizer,
            build_sampler,
            build_units,
            training_episodes,
        )
        from spi_diffusers.training.processes import resolve_overlap

        self.config = config = make_train_config({"task": "ballcircle", **overrides})
        self.device = device = torch.device("cpu" if config.device == "auto" else config.device)
        dataset = training_episodes(config, load_transitions(dataset_name, config.task))
        self.overlap = resolve_overlap(config, 1, device)
        self.algorithm = build_algorithm(config, dataset, device=device, overlap=self.overlap)
        self.sampler = build_sampler(
            config, dataset, build_normalizer(dataset), build_units(config, dataset), device=device
        )
        with self.threads():
            self.inputs = self.algorithm.prepare(self.sampler.draw())
            self.run(updates=WARMUP_UPDATES)

    @contextmanager
    def threads(self) -> Iterator[int]:
        """Torch's threads per operation as the trainer sets them; yields how many."""
        import torch

        from spi_diffusers.training.processes import intra_op_threads

        with intra_op_threads(self.config, self.overlap):
            yield torch.get_num_threads()

    def run(self, seconds: float = 0.0, updates: int = 1) -> float:
        """Train for at least so long and so many updates; returns updates per second."""
        import torch

        self._wait()
        done, started = 0, time.perf_counter()
        while done < updates or time.perf_counter() - started < seconds:
            metrics, self.inputs = self.algorithm.update(self.inputs, self.sampler.draw())
            last = torch.stack(list(metrics.values()))  # as the trainer keeps them until it logs
            done += 1
        self._wait()
        elapsed = time.perf_counter() - started
        values = last.tolist()
        if not all(abs(value) < float("inf") for value in values):
            raise ArithmeticError(f"training diverged: {dict(zip(metrics, values, strict=True))}")
        return done / elapsed

    def _wait(self) -> None:
        """Until the GPU has done what it was given, which Python does not wait for."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def take_turns(
    trainings: Mapping[str, MeasuredTraining], rounds: int, seconds: float, label: str
) -> dict[str, list[float]]:
    """Updates per second of every training in every round; each round goes in the other direction.

    Args:
        trainings: By name.
        rounds: How many turns each has.
        seconds: How long a turn lasts at least.
        label: What the progress on stderr begins with.
    """
    rates: dict[str, list[float]] = {name: [] for name in trainings}
    for round_index in range(rounds):
        order = list(trainings)
        for name in order if round_index % 2 == 0 else reversed(order):
            with trainings[name].threads():
                trainings[name].run(updates=2)  # let the one before leave the caches
                rates[name].append(trainings[name].run(seconds=seconds))
        shown = ", ".join(f"{name} {rates[name][-1]:.1f}" for name in trainings)
        print(f"{label}, round {round_index + 1}: {shown}", file=sys.stderr, flush=True)
    return rates
