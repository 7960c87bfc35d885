"""`spi data describe`: show what a dataset holds."""

import argparse
import re

from spi_diffusers.commands.output import print_tables
from spi_diffusers.commands.parser import cost_limit
from spi_diffusers.files import OUTPUTS_FOLDER, local_path

EXAMPLES = """\
examples:
  spi data describe embedded
  spi data describe datasets/dsrl --task carcircle --cost-limit 5 10 20
  spi data describe org/name --task ballcircle --output reports/ballcircle
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi data describe`."""
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
        type=cost_limit,
        nargs="+",
        metavar="LIMIT",
        help="cost limits per episode; of several costs each is a list such as 20,300 (default: the task's)",
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


def run(args: argparse.Namespace) -> int:
    """Print tables on a dataset, and write them with a plot."""
    from spi_diffusers.data.tasks import resolve_task

    resolve_task(args.task, args.dataset)  # before the heavy imports: a typing error shows at once
    from pathlib import Path

    from spi_diffusers.data.describe import describe_dataset, description_tables, save_description
    from spi_diffusers.data.loading import load_transitions
    from spi_diffusers.data.tasks import task_of_file

    if args.output is not None and local_path(args.output).is_file():
        raise FileExistsError(f"{args.output}: is a file; name a folder")
    path = local_path(args.dataset)
    told = task_of_file(path) if args.task is None and path.is_file() else None
    dataset = load_transitions(
        args.dataset, args.task, revision=args.revision, clip_actions=args.clip_actions
    )
    description = describe_dataset(dataset, args.cost_limit)
    print_tables(*description_tables(description))
    for remark in description["remarks"]:
        print(f"{remark}.")
    plain = re.sub(r"[^\w.-]+", "-", Path(dataset.source).name).strip("-.")
    # Of several files of one task each has a folder of its own.
    name = dataset.task.short_name if dataset.task is not None and told is None else plain or "data"
    files = save_description(dataset, description, args.output or Path(OUTPUTS_FOLDER, "data", name))
    print("Written: " + ", ".join(str(path) for path in files))
    return 0
