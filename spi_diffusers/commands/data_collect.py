"""`spi data collect`: make a dataset in the simulator."""

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spi_diffusers.collection.config import CollectionSpec
    from spi_diffusers.collection.parts import Progress
    from spi_diffusers.data.transitions import TransitionDataset

EXAMPLES = """\
examples:
  spi data collect --task ballcircle --output outputs/datasets
  spi data collect --task carcircle dronecircle --output outputs/datasets --workers 2
  spi data collect --task hoppervelocity --output outputs/datasets --steps 5_000_000 --seed 1

Behavior policies of many trade-offs play the task while they are trained: PPO-Lagrangian, one network for
several cost budgets, and on CarCircle also a scripted driver. Their episodes are thinned by cost return and
return, and written in the parquet layout. A collection that was stopped goes on when the same command is
given again; tasks that it has finished are left as they are, except with --overwrite. The card says how the
dataset was made.

Then look at it:
  spi data describe outputs/datasets --task ballcircle
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi data collect`."""
    parser.add_argument(
        "--task", nargs="+", required=True, help="tasks with a simulator that is installed (see: spi tasks)"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="dataset folder; other configs in it are kept"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides everything (default: 0)")
    parser.add_argument(
        "--steps",
        type=int,
        help="environment steps of each behavior-policy run (default: the task's preset, 200,000 at least)",
    )
    parser.add_argument("--runs", type=int, help="behavior-policy runs with different seeds (default: 1)")
    parser.add_argument(
        "--scripted-episodes", type=int, help="episodes of the scripted driver (CarCircle only)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes side by side, at most one for each run of each task (default: 1); the datasets do "
        "not depend on it",
    )
    parser.add_argument(
        "--max-bytes", type=int, default=7_500_000, help="size to thin a task's folder to (default: 7500000)"
    )
    parser.add_argument(
        "--full-precision",
        action="store_true",
        help="keep all bits of observations and actions (default: 12 significant bits; half the size)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace tasks that DIR has already")
    parser.add_argument(
        "--keep-work",
        action="store_true",
        help="leave the collected episodes in DIR/.collect, e.g. to thin them to another size",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Collect all tasks that are not finished."""
    from spi_diffusers.data.tasks import get_task

    tasks = [get_task(task) for task in args.task]  # before the heavy imports: a typing error shows at once
    repeated = [task.short_name for index, task in enumerate(tasks) if task in tasks[:index]]
    if repeated:
        raise ValueError(f"--task names {repeated[0]} twice")
    from spi_diffusers.collection.collector import clear_work, collect
    from spi_diffusers.collection.config import CollectionSpec, load_collect_config
    from spi_diffusers.collection.dataset import is_collected

    overrides = {name: getattr(args, name) for name in ("steps", "runs", "scripted_episodes")}
    same = {name: getattr(args, name) for name in ("seed", "max_bytes", "full_precision", "overwrite")}
    wanted = []
    for task in tasks:
        spec = CollectionSpec(
            task, args.output, load_collect_config(task, **overrides), keep_work=args.keep_work, **same
        )
        if not args.overwrite and is_collected(spec):
            print(f"{task.name}: there already, collected with these settings", flush=True)
            clear_work(spec)
        else:
            wanted.append(spec)
    parts = sum(spec.config.num_parts for spec in wanted)
    if 0 < parts < args.workers:
        print(
            f"Only {parts} of {args.workers} workers can be used, one for each run: a run is sequential, and "
            "more runs (--runs) are other data",
            flush=True,
        )
    if not wanted:
        return 0
    with _ProgressBars(quiet=args.quiet) as bars:
        collect(*wanted, workers=args.workers, on_progress=bars.show, on_written=bars.finish)
    following = ["spi", "data", "describe", args.output, "--task", tasks[0].name]
    print(f"Written: {args.output}\nNext: {shlex.join(following)}")
    return 0


class _ProgressBars:
    """One bar per part of each task: steps, and the best return so far within each cost limit."""

    def __init__(self, quiet: bool):
        self._quiet = quiet
        self._bars: dict[tuple[str, str], Any] = {}

    def __enter__(self) -> "_ProgressBars":
        return self

    def __exit__(self, *_: Any) -> None:
        for bar in self._bars.values():
            bar.close()

    def show(self, progress: "Progress") -> None:
        """Bring the bar of a part up to date."""
        from tqdm import tqdm

        from spi_diffusers.data.tasks import get_task

        bar = self._bars.get((progress.task, progress.part))
        if bar is None:
            bar = self._bars[progress.task, progress.part] = tqdm(
                desc=f"{get_task(progress.task).short_name} {progress.part}",
                total=progress.total,
                initial=progress.steps,
                unit=" steps",
                unit_scale=True,
                disable=self._quiet,
            )
        best = " ".join(
            f"{limit:g}:{'-' if highest is None else round(highest)}"
            for limit, highest in progress.best.items()
        )
        bar.set_postfix_str(f"{progress.episodes} kept, best within {best}", refresh=False)
        bar.update(progress.steps - bar.n)

    def finish(self, spec: "CollectionSpec", dataset: "TransitionDataset") -> None:
        """Close the bars of a task, and say what was written."""
        from tqdm import tqdm

        name = spec.task.name
        for key in [key for key in self._bars if key[0] == name]:
            self._bars.pop(key).close()
        text = f"{name}: {dataset.num_episodes} episodes, {len(dataset)} transitions"
        tqdm.write(text, file=sys.stdout)  # not print, which would end up in the bars of other tasks
        sys.stdout.flush()
