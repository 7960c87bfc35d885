"""`spi data convert`: bring data into the parquet layout."""

import argparse
import shlex

from spi_diffusers.commands.output import hide_hub_bars

EXAMPLES = """\
examples:
  spi data convert logs.npz datasets/mine --task carcircle
  spi data convert YYY-45/DSRL datasets/dsrl                 all of DSRL, downloaded and verified
  spi data convert YYY-45/DSRL datasets/dsrl --task ballcircle carcircle
  spi data convert SafetyBallCircle-v0-80-886.hdf5 datasets/dsrl
  spi data convert robot.csv datasets/robot       columns obs_0, obs_1, action_0, reward, cost, episode
  spi data convert log.csv datasets/robot --name robot --observation-columns 'obs_*' \\
      --action-columns steer gas --reward-column r --cost-column c --episode-column run
  spi data convert runs datasets/robot --name robot        a folder with one CSV file per episode
  spi data convert lerobot/pusht datasets/pusht --name pusht --cost-column next.damage
  spi data convert minari:lab/arm-v0 datasets/arm --name arm --cost-column infos/damage

The folder gets one config per task: rows, episode table, statistics, scatter plot, and the dataset card. It
loads with --dataset FOLDER and with the `datasets` library. A download that was stopped goes on where it
stopped, and what is there already is not fetched again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi data convert`."""
    parser.add_argument(
        "source",
        metavar="SRC",
        help="an .hdf5 or .npz file, a folder of DSRL's, YYY-45/DSRL, a .csv, .tsv or .parquet table, a "
        "folder of them (one per episode), a folder or Hub dataset of parquet files, a LeRobot folder or id, "
        "a Minari folder, or minari:ID",
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
        "columns",
        "by default those with usual names: observation, obs, state or obs_0, obs_1,\n"
        "...; action; reward; cost; terminated, truncated or timeouts; episode or\n"
        "episode_index. Arrays in groups, entries of infos and of Dict spaces go by\n"
        "their paths, such as infos/cost; a vector of several is in alphabetical order",
    )
    for vector in ("observation", "action", "next-observation"):
        more = " (default: the observation of the next row)" if vector == "next-observation" else ""
        table.add_argument(
            f"--{vector}-columns",
            action="extend",
            nargs="+",
            metavar="NAME",
            help=f"columns of the {vector.replace('-', ' ')}: names or patterns such as 'obs_*'{more}",
        )
    for name, text in (
        ("reward", "the reward"),
        ("terminated", "1 where the task itself ended"),
        ("truncated", "1 where the episode was cut off"),
        ("episode", "a number or name that all rows of an episode share"),
    ):
        table.add_argument(f"--{name}-column", metavar="NAME", help=f"column with {text}")
    table.add_argument(
        "--cost-column",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="column with the cost, at least 0; several columns are costs with a limit each",
    )
    csv = parser.add_argument_group("CSV files", "found out by default, where the file leaves no doubt")
    csv.add_argument("--delimiter", metavar="CHAR", help="between columns, such as , ; or \\t")
    csv.add_argument("--decimal", choices=(".", ","), metavar="MARK", help="the decimal mark, . or ,")
    csv.add_argument(
        "--encoding", metavar="NAME", help="of the text, such as latin-1 or cp1252 (default: utf-8)"
    )


def run(args: argparse.Namespace) -> int:
    """Convert all tasks that the source holds, or those that are named."""
    from spi_diffusers.data.tasks import TASKS, resolve_task

    for task in args.task:
        resolve_task(task, args.source)  # before the heavy imports: a typing error shows at once
    if args.quiet:
        hide_hub_bars()
    from spi_diffusers.data.convert import convert_dataset
    from spi_diffusers.data.delimited import CsvFormat
    from spi_diffusers.data.roles import ColumnNames

    def names(values: list[str] | None) -> tuple[str, ...] | None:
        return None if values is None else tuple(values)

    columns = ColumnNames(
        observation=names(args.observation_columns),
        action=names(args.action_columns),
        next_observation=names(args.next_observation_columns),
        reward=args.reward_column,
        cost=names(args.cost_column),
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
        csv=CsvFormat(args.delimiter, args.decimal, args.encoding),
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
    train = ["spi", "train", "--task", config, "--dataset", args.folder]
    if config not in TASKS:  # whose actions are in [-1, 1]
        train += ["--action-low", "LOW", "--action-high", "HIGH"]
    print(f"Written: {args.folder}\nTrain on it: {shlex.join(train)}\nNext: {following}")
    return 0
