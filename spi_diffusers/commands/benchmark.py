"""`spi benchmark`: run the paper's experiments as a grid, and make tables and figures from the results."""

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spi_diffusers.commands.output import print_tables
from spi_diffusers.files import OUTPUTS_FOLDER, RESULTS_FILE, local_path

if TYPE_CHECKING:
    from spi_diffusers.benchmark.suites import Cell

EXAMPLES = """\
examples:
  spi benchmark --suite table1 --dataset datasets --jobs 2
  spi benchmark --suite table2 --tasks ballcircle --seeds 0 1 2 --output outputs/ablation
  spi benchmark --suite limits --tasks ballcircle --algorithms spi bc-safe --updates 25000 bc-safe=100000
  spi benchmark --suite table1 table2 --dataset datasets --dry-run
  spi benchmark --suite table1 --dataset datasets --ray-address auto --output /shared/benchmark
  spi benchmark --suite safe --dataset datasets ballcircle=embedded --jobs 2 --task-results results
  spi benchmark --report outputs/benchmark --output outputs/report

suites:
  table1        SPI, safe SPI and the baselines, at each task's smallest limit
  table2        the paper's SPI and its ablations
  sensitivity   learning curves of random eta, mu and phi
  limits        reward and cost against the limit, of SPI and the baselines
  safe          safe SPI at more limits and risks, also on tasks beside the paper's

A cell is one task, algorithm, limit and seed. It is trained and evaluated in a process of its own, on one
thread. Suites share cells. The same command goes on after an interruption, and skips what is done. All
results go to OUTPUT/results.json, tables and figures to OUTPUT/report. The exit code is 1 if a cell failed
or diverged.
"""


_EPISODES = 20
_OF_A_RUN = (
    *("tasks", "algorithms", "seeds", "episodes", "updates", "dataset", "config", "jobs", "ray_address"),
    *("dry_run", "task_results"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi benchmark`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--suite", nargs="+", metavar="SUITE", help="what to run: see below")
    what.add_argument(
        "--report",
        metavar="RESULTS",
        nargs="+",
        type=local_path,
        help="run nothing: tables and figures from results files, or the folders that hold them",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="DSRL tasks (default: the paper's eight; safe: also those it has beside them)",
    )
    parser.add_argument(
        "--algorithms", nargs="+", metavar="NAME", help="only these of the suite (default: all)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="training seeds (default: 0 1 2)",
    )
    parser.add_argument("--episodes", type=int, help="episodes per seed and limit (default: 20)")
    parser.add_argument(
        "--updates",
        nargs="+",
        default=[],
        metavar="[NAME=]N",
        help="training updates, of all algorithms or of one (default: the presets')",
    )
    parser.add_argument(
        "--dataset",
        nargs="+",
        default=[],
        metavar="[TASK=]DATASET",
        help="data of all tasks or of one, as for spi train (default: the data in the package)",
    )
    parser.add_argument("--config", metavar="FILE", help="settings for every training, as for spi train")
    parser.add_argument("--jobs", type=int, help="cells at a time (default: 1; on Ray, the cluster's CPUs)")
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help='run on this Ray cluster ("auto", "ray://HOST:10001", or "local" to start one here)',
    )
    parser.add_argument(
        "--output",
        type=local_path,
        help="folder (default: outputs/benchmark; of a report: report/ beside the first)",
    )
    parser.add_argument(
        "--task-results",
        type=local_path,
        metavar="FOLDER",
        help="write each task's results and their plot there, too: TASK.json, TASK_limits.png; other seeds' "
        "results in them stay",
    )
    parser.add_argument("--dry-run", action="store_true", help="only list the cells and what is done")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no tables")


def run(args: argparse.Namespace) -> int:
    """Run the grid, then make tables and figures; exit code 1 where a cell failed or diverged."""
    if args.report is not None:
        if given := [name for name in _OF_A_RUN if _is_given(getattr(args, name))]:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(f"--report runs nothing and takes all that its files hold: leave {options} out.")
        sources = [path / RESULTS_FILE if path.is_dir() else path for path in args.report]
        _report(sources, args.output or sources[0].parent / "report", args.quiet)
        return 0
    from spi_diffusers.benchmark.suites import BenchmarkSpec

    spec = BenchmarkSpec(
        args.suite,
        tasks=args.tasks,
        algorithms=args.algorithms,
        seeds=args.seeds,
        episodes=_EPISODES if args.episodes is None else args.episodes,
        updates={name: _count(name, value) for name, value in _named(args.updates).items()},
        datasets=_named(args.dataset, paths=True),
    )
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    return _run(spec.cells(), args.output or Path(OUTPUTS_FOLDER) / "benchmark", args)


def _run(cells: list["Cell"], output: Path, args: argparse.Namespace) -> int:
    from spi_diffusers.benchmark.cells import check_datasets, check_simulators
    from spi_diffusers.benchmark.runner import Benchmark, LocalExecutor, RayExecutor

    benchmark = Benchmark(cells, output, args.config)  # before a cluster is asked for
    if args.dry_run or not args.ray_address:
        check_datasets(benchmark.configs)
    if args.dry_run:
        done = benchmark.outcomes_so_far()
        for cell, config in benchmark.configs.items():
            print(f"{cell}: {config['updates']} updates, {done[cell].status if cell in done else 'to do'}")
        return 0
    executor: RayExecutor | LocalExecutor
    if args.ray_address:
        executor = RayExecutor(args.ray_address)
        jobs = args.jobs or executor.num_cpus
    else:
        check_simulators(cells)
        executor = LocalExecutor()
        jobs = args.jobs or 1
    before = len(benchmark.outcomes_so_far())
    outcomes = benchmark.run(executor, jobs=jobs, progress=not args.quiet)
    by_status = {
        status: {cell: outcome.message for cell, outcome in outcomes.items() if outcome.status == status}
        for status in ("done", "diverged", "failed")
    }
    bad = {status: by_status[status] for status in ("diverged", "failed")}
    ended = [f"{len(by_status['done'])} of {len(cells)} cells are done"]
    ended += [f"{len(messages)} {status}" for status, messages in bad.items() if messages]
    print(f"{', '.join(ended)} ({before} had ended before).")
    for status, messages in bad.items():
        for cell, message in messages.items():
            print(f"{status}: {cell}: {message}", file=sys.stderr)
    if bad["failed"]:
        print("The same command tries the failed cells again.", file=sys.stderr)
    if args.task_results:
        from spi_diffusers.benchmark.report import write_task_results

        datasets = {cell.task: config["dataset"] for cell, config in benchmark.configs.items()}
        files = write_task_results(outcomes, datasets, args.task_results)
        print("Written: " + ", ".join(map(str, files)))
    if benchmark.results.exists():
        print(f"Results: {benchmark.results}")
        _report([benchmark.results], output / "report", args.quiet)
    return int(any(bad.values()))


def _report(results: list[Path], folder: Path, quiet: bool) -> None:
    from spi_diffusers.benchmark.report import write_report

    report = write_report(results, folder)
    if not quiet:
        from rich.markdown import Markdown

        print_tables(Markdown(report.text), width=160)
    for reason in report.left_out:
        logging.getLogger(__name__).info("left out: %s", reason)
    print("Written: " + ", ".join(str(path) for path in report.files))


def _is_given(value: object) -> bool:
    return not (value is None or value is False or value == [])  # 0 is given


def _named(values: list[str], *, paths: bool = False) -> Mapping[str, str]:
    """["a", "x=b"] -> {"": "a", "x": "b"}; with `paths`, "a/x=b" is a path and not of "a/x"."""
    named: dict[str, str] = {}
    for value in values:
        name, given, rest = value.partition("=")
        key, content = (name, rest) if given and not (paths and "/" in name) else ("", value)
        if key in named:
            raise ValueError(f"{value!r}: is given twice; one value for all, and one for each name.")
        named[key] = content
    return named


def _count(name: str, value: str) -> int:
    try:
        count = int(value)
    except ValueError:
        count = 0
    if count < 1:
        given = f"{name}={value}" if name else value
        raise ValueError(f"--updates: must be a whole number of at least 1, got {given}.")
    return count
