"""`spi leaderboard`: all published policies for a task, the safe ones first."""

import argparse
import sys

from spi_diffusers.commands.compare import add_format_arguments, print_comparison
from spi_diffusers.commands.parser import cost_limit

EXAMPLES = """\
examples:
  spi leaderboard ballcircle --author org                       all of an organization's policies for a task
  spi leaderboard carcircle --collection org/safe-policies-65f0c0ffee --cost-limit 20
  spi leaderboard ballcircle --author org --json

Every repository's results.json is read, and its best way to act at each limit counts. Policies that keep the
limit on average come first, by reward.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi leaderboard`."""
    parser.add_argument("task", help="DSRL task, such as ballcircle")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--author", metavar="ORG", help="user or organization whose models are looked at")
    where.add_argument("--collection", metavar="SLUG", help="collection whose models are looked at")
    parser.add_argument(
        "--cost-limit",
        type=cost_limit,
        nargs="+",
        metavar="LIMIT",
        help="only these limits; of several costs each is a list such as 20,300 (default: all)",
    )
    parser.add_argument("--token", help="access token (default: HF_TOKEN, or that of `hf auth login`)")
    add_format_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Read the results on the Hub and print the table; exit code 1 where a repository could not be read."""
    from spi_diffusers.data.tasks import get_task

    task = get_task(args.task)  # before the Hub is asked: a typing error shows at once
    from spi_diffusers.commands.output import hide_hub_bars
    from spi_diffusers.hub.results import find_policies

    hide_hub_bars()
    found, unreadable = find_policies(task, author=args.author, collection=args.collection, token=args.token)
    for reason in unreadable.values():
        print(f"left out: {reason}", file=sys.stderr)
    # A collection holds policies of all tasks.
    policies = {
        name: results for name, results in found.items() if any(entry.task == task.name for entry in results)
    }
    if not policies:
        where = f"author {args.author}" if args.author else f"collection {args.collection}"
        raise ValueError(f"{where}: no policy with results for {task.name}")
    print_comparison(policies, task.name, args, best_only=True)
    return 1 if unreadable else 0
