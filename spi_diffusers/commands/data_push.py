"""`spi data push`: publish a dataset folder to the Hub."""

import argparse

from spi_diffusers.commands.output import hide_hub_bars, print_tables
from spi_diffusers.files import local_path

EXAMPLES = """\
examples:
  spi data push datasets/mine org/mine --dry-run      what would be published, and the card
  spi data push datasets/mine org/mine --private
  spi data push datasets/mine org/mine --create-pr    as a pull request, for others to look at
  spi train --task ballcircle --dataset org/mine      trains from what was published

First every config is loaded and compared with its checksums. Then everything becomes visible at once, by one
commit, whose content is verified by checksum. If anything fails, the repository is as it was, and the same
command goes on. Where nothing has changed, no commit is made. Log in with `hf auth login`, or set HF_TOKEN.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi data push`."""
    parser.add_argument("folder", metavar="FOLDER", help="dataset folder, as `spi data convert` makes one")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="dataset repository; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it is new")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--create-pr", action="store_true", help="open a pull request, leave the branch alone")
    where.add_argument(
        "--revision", default="main", metavar="BRANCH", help="branch (default: main); may be new"
    )
    parser.add_argument("--message", help="what the commit is called")
    parser.add_argument(
        "--prune", action="store_true", help="delete tasks from the Hub that FOLDER does not have"
    )
    parser.add_argument("--token", help="access token (default: HF_TOKEN, or that of `hf auth login`)")
    parser.add_argument(
        "--dry-run", action="store_true", help="check and show everything, but change nothing on the Hub"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Check a folder, compare it with the Hub, and publish it."""
    if args.quiet:
        hide_hub_bars()

    from spi_diffusers.hub.datasets import check_folder, commit_message, find_files, plan_push, published_card
    from spi_diffusers.hub.upload import upload
    from spi_diffusers.hub.upload_plan import UploadOptions

    files = find_files(local_path(args.folder))
    check_folder(files, progress=not args.quiet)
    options = UploadOptions(
        branch=args.revision,
        message=args.message or commit_message(files),
        private=args.private,
        create_pr=args.create_pr,
        token=args.token,
    )
    plan = plan_push(files, args.repo_id, options, prune=args.prune)
    print_tables(plan.table())
    if files.left_out:
        print("Not published, as no part of the dataset: " + ", ".join(files.left_out))
    if args.dry_run:
        print(f"\n{published_card(files, args.repo_id)}\nDry run: nothing was changed on the Hub.")
        return 0
    result = upload(plan)
    print(result)
    revision = result.pull_request or (None if args.revision == "main" else args.revision)
    at = f" --revision {revision}" if revision else ""
    print(f"Next: spi train --task {files.configs[0]} --dataset {args.repo_id}{at}")
    return 0
