"""`spi card`: write the card of a policy."""

import argparse
import sys
from dataclasses import replace

EXAMPLES = """\
examples:
  spi card outputs/ballcircle-seed0                                  shows it
  spi card outputs/ballcircle-seed0 --repo org/spi-ballcircle --output card.md

Every figure comes from results.json, which `spi evaluate` writes, and from the training record; limits that
were not kept are listed under known failures. A policy without results gets a card that says so. `spi
publish` makes the card anew, so there is no need to write it before.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi card`."""
    parser.add_argument("folder", metavar="FOLDER", help="folder of a policy, or of its run")
    parser.add_argument(
        "--repo", metavar="ORG/NAME", help="what the card's commands load (default: the policy's folder)"
    )
    parser.add_argument(
        "--evaluation", metavar="DIR", help="folder with results.json (default: where spi evaluate writes it)"
    )
    parser.add_argument("--license", metavar="ID", help="of the weights (default: apache-2.0)")
    parser.add_argument("--output", metavar="FILE", help="file to write (default: print it)")


def run(args: argparse.Namespace) -> int:
    """Render the card of a policy."""
    from spi_diffusers.files import local_path, written_aside
    from spi_diffusers.hub.card import policy_card
    from spi_diffusers.hub.policy_files import read_policy_files

    files = read_policy_files(args.folder, args.evaluation)
    files = replace(files, license=args.license or files.license)
    card = policy_card(files, args.repo or str(files.folder), on_hub=args.repo is not None)
    if args.output is None:
        sys.stdout.write(card)
        return 0
    with written_aside(args.output) as aside:
        aside.write_text(card, encoding="utf-8")
    print(f"Written: {local_path(args.output)}")
    return 0
