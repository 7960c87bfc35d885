"""`spi compare`: one table of several policies' results."""

import argparse
import json
import sys

from spi_diffusers.commands.output import print_tables
from spi_diffusers.commands.parser import cost_limit

EXAMPLES = """\
examples:
  spi compare outputs/ballcircle-seed0 org/spi-ballcircle
  spi compare results/ballcircle.json org/spi-ballcircle --cost-limit 10 --best
  spi compare org/a org/b --markdown > comparison.md

Results come from results.json, as `spi evaluate` and `spi publish` leave it; nothing is played. Policies
that keep the limit on average come first, by reward. Notes name policies that were trained on other data, or
played for fewer episodes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi compare`."""
    parser.add_argument(
        "policies",
        metavar="POLICY",
        nargs="+",
        help="results file, folder of a policy or of its run, or an id on the Hub",
    )
    parser.add_argument("--task", help="only this task")
    parser.add_argument(
        "--cost-limit",
        type=cost_limit,
        nargs="+",
        metavar="LIMIT",
        help="only these limits; of several costs each is a list such as 20,300 (default: all)",
    )
    parser.add_argument(
        "--best", action="store_true", help="only each policy's best way to act at each limit"
    )
    parser.add_argument("--token", help="access token (default: HF_TOKEN, or that of `hf auth login`)")
    add_format_arguments(parser)


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose how the table is printed."""
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print all figures as JSON")
    formats.add_argument("--markdown", action="store_true", help="print Markdown")


def run(args: argparse.Namespace) -> int:
    """Read the results and print the table."""
    from spi_diffusers.data.tasks import get_task

    task = get_task(args.task).name if args.task else None
    from spi_diffusers.hub.results import read_policy_results

    twice = sorted({policy for policy in args.policies if args.policies.count(policy) > 1})
    if twice:
        raise ValueError(f"{twice[0]} is named twice")
    policies = {policy: read_policy_results(policy, token=args.token) for policy in args.policies}
    print_comparison(policies, task, args, best_only=args.best)
    return 0


def print_comparison(policies: dict, task: str | None, args: argparse.Namespace, *, best_only: bool) -> None:
    """Rank policies, and print the table as `add_format_arguments` were given, with notes on stderr."""
    from spi_diffusers.evaluation.tables import compare_policies

    comparison = compare_policies(policies, task=task, cost_limits=args.cost_limit, best_only=best_only)
    if args.json:
        print(json.dumps(comparison.records(), indent=2))
    elif args.markdown:
        print(comparison.markdown())
    else:
        print_tables(*comparison.tables())
    for note in comparison.notes:
        print(note, file=sys.stderr)
