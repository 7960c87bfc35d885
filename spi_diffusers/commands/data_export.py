"""`spi data export`: write a dataset in a format of other libraries."""

import argparse

EXAMPLES = """\
examples:
  spi data export embedded lerobot/ballcircle --to lerobot --license apache-2.0
  spi data export datasets/robot lerobot/robot --to lerobot
  hf upload org/robot lerobot/robot --repo-type dataset     publishes it; the Hub then shows its rows
  spi data convert lerobot/robot datasets/again             the way back, with the same values

LeRobot's format is version 3.0. Cost, ends and next observations are columns of their own: next.cost,
next.terminated, next.truncated, next.observation.state.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi data export`."""
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="what --dataset of spi train takes: embedded, a folder, a file, org/name",
    )
    parser.add_argument("folder", metavar="DST", help="folder to write; must be new or empty")
    parser.add_argument("--to", choices=("lerobot",), required=True, help="the format")
    parser.add_argument(
        "--task", help="which task or config (not needed where there is only one, or a file's name tells)"
    )
    parser.add_argument("--license", default="unknown", help="license id for the card (default: unknown)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--clip-actions",
        action="store_true",
        help="clip actions of DSRL's tasks outside [-1, 1] instead of refusing them",
    )


def run(args: argparse.Namespace) -> int:
    """Load a dataset and write it."""
    from spi_diffusers.data.tasks import resolve_task

    resolve_task(args.task, args.dataset)  # before the heavy imports: a typing error shows at once
    from spi_diffusers.data.lerobot import write_lerobot_dataset
    from spi_diffusers.data.loading import load_transitions
    from spi_diffusers.data.writing import check_destination
    from spi_diffusers.files import check_new_folder, local_path

    check_destination(args.folder)
    check_new_folder(local_path(args.folder))
    dataset = load_transitions(
        args.dataset, args.task, revision=args.revision, clip_actions=args.clip_actions
    )
    folder = write_lerobot_dataset(dataset, args.folder, license=args.license)
    print(f"Written: {folder}, {dataset.num_episodes} episodes, {len(dataset)} transitions")
    return 0
