"""`spi assess`: say what to expect of a policy, from data, before anyone acts with it."""

import argparse
import json
import sys
from typing import Any

from spi_diffusers.commands.parser import cost_limit

EXAMPLES = """\
examples:
  spi assess outputs/ballcircle-seed0
  spi assess outputs/heating-seed0 --cost-limit 20 40 --risk 0.01
  spi assess outputs/heating-seed0 --dataset march.csv --json

No simulator is asked. The policy is judged by the episodes that its training held out: what return and what
cost to expect at each limit, from how many of their starts a limit can be kept, and how unlike the data its
actions are. Warnings say where the data cannot tell.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi assess`."""
    parser.add_argument(
        "policy", metavar="POLICY", help="folder of a policy or of its run, or its id on the Hub"
    )
    parser.add_argument(
        "--dataset",
        help="data whose episodes are used, all of them (default: those that training held out)",
    )
    parser.add_argument(
        "--cost-limit",
        type=cost_limit,
        nargs="+",
        metavar="LIMIT",
        help="cost limits per episode; of several costs each is a list such as 20,300 (default: the task's; "
        "without a task, or of several costs, quartiles of the data's costs)",
    )
    parser.add_argument(
        "--risk",
        type=float,
        metavar="SHARE",
        help="share of the episodes that may exceed the limit, between 0 and 1 (default: 0.05)",
    )
    parser.add_argument("--episodes", type=int, help="use so many episodes at most (default: all)")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Assess, print the table, and write it into a policy's folder."""
    from spi_diffusers.files import ASSESSMENT_FILE, find_local_policy

    folder = find_local_policy(args.policy, args.revision)  # before the heavy imports: a typing error shows

    from spi_diffusers.commands.output import print_tables
    from spi_diffusers.evaluation.assess import AssessmentSpec, assess
    from spi_diffusers.pipelines.loading import load_pipeline

    how: dict[str, Any] = {"cost_limits": args.cost_limit, "episodes": args.episodes}
    how |= {} if args.risk is None else {"risk": args.risk}  # the default is the pipeline's
    AssessmentSpec(**how)  # refuses what cannot be used before anything is loaded
    assessment = assess(load_pipeline(args.policy, revision=args.revision), args.dataset, **how)
    if args.json:
        print(json.dumps(assessment.to_dict(), indent=2))
    else:
        print_tables(assessment.table())
        print("\n".join(assessment.remarks))
    if folder is not None:
        written = assessment.save(folder / ASSESSMENT_FILE)
        print(f"Written: {written}", file=sys.stderr if args.json else sys.stdout)
    return 0
