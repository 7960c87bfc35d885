"""`spi data`: convert, collect, describe and publish datasets."""

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any

from spi_diffusers.commands import data_collect, data_push
from spi_diffusers.commands.messages import show_messages

EXAMPLES = """\
examples:
  spi data convert YYY-45/DSRL datasets/dsrl --task ballcircle carcircle
  spi data collect --task ballcircle --output datasets/mine
  spi data describe datasets/dsrl --task ballcircle
  spi train --task ballcircle --dataset datasets/dsrl
  spi data push datasets/dsrl org/dsrl --dry-run

`spi data COMMAND --help` explains a command.
"""

_CONVERT_EXAMPLES = """\
examples:
  spi data convert YYY-45/DSRL datasets/dsrl                 all of DSRL, downloaded and verified
  spi data convert YYY-45/DSRL datasets/dsrl --task ballcircle carcircle
  spi data convert SafetyBallCircle-v0-80-886.hdf5 datasets/dsrl
  spi data convert logs.npz datasets/mine --task carcircle
  spi data convert robot.csv datasets/robot       columns obs_0, obs_1, action_0, reward, cost, episode
  spi data convert log.csv datasets/robot --name robot --observation-columns 'obs_*' \\
      --action-columns steer gas --reward-column r --cost-column c --episode-column run
  spi data convert minari:lab/arm-v0 datasets/arm --name arm --cost-column cost   infos hold the cost

The folder gets one config per task: rows, episode table, statistics, scatter plot, and the dataset card. It
loads with --dataset FOLDER and with the `datasets` library. A download that was stopped goes on where it
stopped, and what is there already is not fetched again.
"""

_DESCRIBE_EXAMPLES = """\
examples:
  spi data describe embedded
  spi data describe datasets/dsrl --task carcircle --cost-limit 5 10 20
  spi data describe org/name --task ballcircle --output reports/ballcircle
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `spi data`.

    Args:
        parser: the parser of `spi data`.
    """
    subparsers = parser.add_subparsers(
        dest="data_command", title="commands", metavar="COMMAND", required=True
    )
    rows: tuple[tuple[str, Callable[[Any], None], Callable[[argparse.Namespace], int], str, str], ...] = (
        (
            "convert",
            _add_convert,
            _convert,
            "Convert DSRL files, tables of logged transitions or Minari datasets to the parquet layout.",
            _CONVERT_EXAMPLES,
        ),
        (
            "describe",
            _add_describe,
            _describe,
            "Show what a dataset holds: episodes, returns, costs, and what keeps each cost limit.",
            _DESCRIBE_EXAMPLES,
        ),
        (
            "collect",
            data_collect.add_arguments,
            data_collect.run,
            "Make a dataset in the simulator, by behaviour policies of many trade-offs.",
            data_collect.EXAMPLES,
        ),
        (
            "push",
            data_push.add_arguments,
            data_push.run,
            "Publish a dataset folder to the Hub, as one verified commit.",
            data_push.EXAMPLES,
        ),
    )
    for name, add, run, text, examples in rows:
        command = subparsers.add_parser(name, help=text, description=text, epilog=examples)
        add(command)
        command.add_argument("--traceback", action="store_true", help="show where an error comes from")
        command.set_defaults(run=run, parser=command)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SRC",
        help="DSRL .hdf5 or .npz file, a folder of them, YYY-45/DSRL, a .csv or .parquet table, a folder or "
        "Hub dataset in the parquet layout, a Minari folder, or minari:ID",
    )
    parser.add_argument("folder", metavar="DST", help="folder to write; other configs in it are kept")
    parser.add_argument(
        "--task", nargs="+", default=[], help="which tasks or configs (default: all that SRC holds)"
    )
    parser.add_argument(
        "--name",
        help="name of the config, for data without a DSRL task (a table's default: its file name)",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace configs that DST has already")
    existing.add_argument(
        "--keep-existing", action="store_true", help="leave configs that DST has already as they are"
    )
    parser.add_argument(
        "--clip-actions",
        action="store_true",
        help="clip actions of DSRL's tasks outside [-1, 1] instead of refusing them",
    )
    parser.add_argument("--license", help="license id for the card (default: the source's, or unknown)")
    parser.add_argument("--description", help="how the data was made, for the card (Markdown)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    table = parser.add_argument_group(
        "columns of a table",
        "by default those with usual names: observation, obs, state or obs_0, obs_1, ...; action; reward; "
        "cost; terminated, truncated or timeouts; episode or episode_index",
    )
    for vector in ("observation", "action", "next-observation"):
        more = "; without, taken from the following row" if vector == "next-observation" else ""
        table.add_argument(
            f"--{vector}-columns",
            nargs="+",
            metavar="NAME",
            help=f"columns of the {vector.replace('-', ' ')}: names or patterns such as 'obs_*'{more}",
        )
    for name, text in (
        ("reward", "the reward"),
        ("cost", "the cost, at least 0 (for Minari: its key in the infos)"),
        ("terminated", "1 where the task itself ended"),
        ("truncated", "1 where the episode was cut off"),
        ("episode", "a number or name that all rows of an episode share"),
    ):
        table.add_argument(f"--{name}-column", metavar="NAME", help=f"column with {text}")


def _convert(args: argparse.Namespace) -> int:
    from spi_diffusers.data.tasks import resolve_task

    for task in args.task:
        resolve_task(task, args.source)  # before the heavy imports: a typing error shows at once
    show_messages(args.quiet)
    from spi_diffusers.data.convert import convert_dataset
    from spi_diffusers.data.tables import TableColumns

    def names(values: list[str] | None) -> tuple[str, ...] | None:
        return None if values is None else tuple(values)

    columns = TableColumns(
        observation=names(args.observation_columns),
        action=names(args.action_columns),
        next_observation=names(args.next_observation_columns),
        reward=args.reward_column,
        cost=args.cost_column,
        terminated=args.terminated_column,
        truncated=args.truncated_column,
        episode=args.episode_column,
    )
    config = "TASK"
    for part in convert_dataset(
        args.source,
        args.folder,
        tasks=args.task,
        name=args.name,
        columns=columns,
        license=args.license,
        description=args.description,
        revision=args.revision,
        clip_actions=args.clip_actions,
        overwrite=args.overwrite,
        keep_existing=args.keep_existing,
    ):
        config = part.config
        if part.dataset is None:
            print(f"{config}: there already")
        else:
            print(
                f"{config}: {part.dataset.num_episodes} episodes, {len(part.dataset)} transitions", flush=True
            )
    following = shlex.join(["spi", "data", "describe", args.folder, "--task", config])
    train = shlex.join(["spi", "train", "--task", config, "--dataset", args.folder])
    print(f"Written: {args.folder}\nTrain on it: {train}\nNext: {following}")
    return 0


def _add_describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="what --dataset of spi train takes: embedded, a folder, a file, org/name",
    )
    parser.add_argument(
        "--task", help="which task or config (not needed where there is only one, or a file's name tells)"
    )
    parser.add_argument(
        "--cost-limit",
        type=float,
        nargs="+",
        metavar="LIMIT",
        help="cost limits per episode (default: the task's)",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--clip-actions",
        action="store_true",
        help="clip actions of DSRL's tasks outside [-1, 1] instead of refusing them",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for description.png and .json (default: in outputs/data, by task or source)",
    )


def _describe(args: argparse.Namespace) -> int:
    from spi_diffusers.data.tasks import resolve_task

    resolve_task(args.task, args.dataset)  # before the heavy imports: a typing error shows at once
    show_messages()
    from pathlib import Path

    from rich.console import Console

    from spi_diffusers.data.describe import describe_dataset, description_tables, save_description
    from spi_diffusers.data.loading import load_transitions
    from spi_diffusers.data.tasks import task_of_file

    if args.output is not None and Path(args.output).is_file():
        raise FileExistsError(f"{args.output}: is a file; name a folder")
    path = Path(args.dataset).expanduser()
    told = task_of_file(path) if args.task is None and path.is_file() else None
    dataset = load_transitions(
        args.dataset, args.task, revision=args.revision, clip_actions=args.clip_actions
    )
    description = describe_dataset(dataset, args.cost_limit)
    # Piped output has no width; do not fold names there.
    console = Console(width=None if sys.stdout.isatty() else 140)
    for table in description_tables(description):
        console.print(table)
    plain = re.sub(r"[^\w.-]+", "-", Path(dataset.source).name).strip("-.")
    # Of several files of one task each has a folder of its own.
    name = dataset.task.short_name if dataset.task is not None and told is None else plain or "data"
    files = save_description(dataset, description, args.output or Path("outputs", "data", name))
    print("Written: " + ", ".join(str(path) for path in files))
    return 0
