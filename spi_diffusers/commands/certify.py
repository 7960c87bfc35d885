"""`spi certify`: show by episodes that nothing was chosen on what a policy's episodes cost."""

import argparse

from spi_diffusers.commands.parser import cost_limit

EXAMPLES = """\
examples:
  spi certify outputs/ballcircle-seed0 --cost-limit 10 20 40 --episodes 200
  spi certify outputs/ballcircle-seed0 --cost-limit 10 --risk 0.1 --tune
  spi certify outputs/heating --cost-limit 600 --episodes-file played.csv

Bounds hold for the policy's weights as they are, each with the confidence that is asked for. Episodes are
played on seeds that only certification uses; or they are rows of a .csv, .parquet or .json file, with the
columns episode and cost, and limit where there are several; of several costs with a column for each, by its
name. --tune first chooses the policy's cost_margin, on other seeds.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi certify`."""
    parser.add_argument("policy", metavar="FOLDER", help="folder of a policy, or of its run")
    parser.add_argument(
        "--cost-limit",
        type=cost_limit,
        nargs="+",
        metavar="LIMIT",
        help="cost limits per episode; of several costs each is a list such as 20,300 (default: the task's, "
        "or those in the file)",
    )
    parser.add_argument("--episodes", type=int, metavar="N", help="episodes per limit (default: 100)")
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="probability with which each bound holds, between 0 and 1 (default: 0.95)",
    )
    parser.add_argument(
        "--risk",
        type=float,
        metavar="SHARE",
        help="share of the episodes that may exceed the limit, as the policy is told, or was told in the "
        "file's episodes, between 0 and 1 (default: 0.05)",
    )
    parser.add_argument("--episodes-file", metavar="FILE", help="episodes that were played elsewhere")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="first choose the smallest cost_margin that is shown to keep the limits at the risk, and write "
        "it into the policy",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="which of the reserved seeds are taken (default: 0)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Certify, print the table, and say what was written."""
    from spi_diffusers.files import CERTIFICATE_FILE, find_policy_folder

    folder = find_policy_folder(args.policy)  # before the heavy imports: a typing error shows

    from spi_diffusers.commands.output import print_tables
    from spi_diffusers.evaluation.certify import certify

    certificate = certify(
        folder,
        cost_limits=args.cost_limit,
        episodes=args.episodes,
        confidence=args.confidence,
        episodes_file=args.episodes_file,
        tune=args.tune,
        seed=args.seed,
        progress=not args.quiet,
        **({} if args.risk is None else {"risk": args.risk}),  # the default is the pipeline's
    )
    print_tables(certificate.table())
    print("\n".join(certificate.remarks))
    if args.tune:
        print(
            f"The policy's cost_margin is now {certificate.cost_margin:g}. Results of another one are no "
            "longer its own: evaluate it again."
        )
    print(f"Written: {folder / CERTIFICATE_FILE}")
    return 0
