"""`spi evaluate`: play a policy in its simulator."""

import argparse

from spi_diffusers.commands.output import print_tables
from spi_diffusers.commands.parser import cost_limit
from spi_diffusers.evaluation import EXTRACTIONS

EXAMPLES = """\
examples:
  spi evaluate outputs/ballcircle-seed0
  spi evaluate outputs/ballcircle-seed0/policy --cost-limit 10 20 40 --episodes 20 --seeds 0 1 2
  spi evaluate outputs/ballcircle-seed0 --risk 0.2           one episode in five may exceed the limit
  spi evaluate org/spi-ballcircle --extraction reward        the paper's extraction (Eq. 12)
  spi evaluate outputs/ballcircle-seed0/policy --no-feedback --output results/

"safe" keeps policies whose predicted cost fits what is left of the limit and acts by the one with the highest
predicted return; "reward" takes the action with the highest Q^r.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi evaluate`."""
    add_policy_arguments(parser)
    parser.add_argument(
        "--cost-limit",
        type=cost_limit,
        nargs="+",
        metavar="LIMIT",
        help="cost limits per episode; of several costs each is a list such as 20,300 (default: the task's "
        "own, 10 20 40 for Bullet; of a baseline, the one it was trained for)",
    )
    parser.add_argument("--episodes", type=int, default=20, help="episodes per limit and seed (default: 20)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="evaluation seeds (default: 0)"
    )
    parser.add_argument(
        "--extraction",
        nargs="+",
        choices=EXTRACTIONS,
        help="by what the action is chosen: within the limit, by reward alone, or within the limit by the "
        "student of `spi distill` (default: safe reward)",
    )
    parser.add_argument(
        "--simulator",
        default="auto",
        metavar="NAME",
        help="what plays the task: its own simulator here (auto), or the real safety_gymnasium or dsrl where "
        "it is installed; results go to a folder of their own",
    )
    parser.add_argument(
        "--dataset", help="behavior data to compare with (default: what the policy was trained on)"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for results, plots and video, of one evaluation at a time; results in it stay "
        "(default: evaluation/ in the run)",
    )
    parser.add_argument("--no-plots", action="store_true", help="do not draw plots")
    parser.add_argument("--no-video", action="store_true", help="do not record an episode")


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what evaluation and playing share: which policy acts, on what, and how it is told the cost."""
    parser.add_argument(
        "policy", metavar="POLICY", help="folder of a policy or of its run, or its id on the Hub"
    )
    parser.add_argument("--task", help="DSRL task; by default the one that the policy was trained for")
    parser.add_argument(
        "--no-feedback",
        action="store_true",
        help="do not tell the policy what is left of the limit",
    )
    parser.add_argument(
        "--risk",
        type=float,
        metavar="SHARE",
        help="share of the episodes that may exceed the limit, between 0 and 1 (default: 0.05)",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def check_policy(args: argparse.Namespace) -> None:
    """Look at what was named before the heavy imports, so that a typing error shows at once."""
    from spi_diffusers.data.tasks import get_task
    from spi_diffusers.files import find_local_policy

    if args.task is not None:
        get_task(args.task)
    find_local_policy(args.policy, args.revision)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the tables, and say what was written."""
    check_policy(args)

    from spi_diffusers.evaluation.evaluate import EvaluationSpec
    from spi_diffusers.evaluation.folder import evaluate_to_folder
    from spi_diffusers.evaluation.tables import results_tables

    spec = EvaluationSpec(
        cost_limits=args.cost_limit,
        episodes=args.episodes,
        seeds=args.seeds,
        extractions=args.extraction,
        feedback=not args.no_feedback,
        simulator=args.simulator,
        **({} if args.risk is None else {"risk": args.risk}),  # the default is the pipeline's
    )
    results, files = evaluate_to_folder(
        args.policy,
        spec,
        task=args.task,
        dataset=args.dataset,
        revision=args.revision,
        output=args.output,
        plots=not args.no_plots,
        video=not args.no_video,
        progress=not args.quiet,
    )
    print_tables(*results_tables(results, results.behavior))
    print("Written: " + ", ".join(map(str, files)))
    return 0
