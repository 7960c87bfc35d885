"""`spi distill`: train a student that answers in one pass what a policy computes step by step."""

import argparse

EXAMPLES = """\
examples:
  spi distill outputs/ballcircle-seed0
  spi distill outputs/heating --dataset heating.csv --updates 30000
  spi evaluate outputs/ballcircle-seed0 --extraction safe fast

A policy denoises an action for each of its safety weights and values each of
them. The student is one small network that gives all of that at once, learned
from the policy's answers to the observations of its data. It is saved in the
policy's folder, and asked by pipe(..., fast=True) and controller(..., fast=True).
Outside the range of the data the policy itself answers. Certificates are of the
policy, not of its student.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi distill`."""
    parser.add_argument("policy", metavar="FOLDER", help="folder of a policy, or of its run")
    parser.add_argument(
        "--dataset", help="whose observations it learns from (default: what the policy was trained on)"
    )
    parser.add_argument("--updates", type=int, metavar="N", help="training updates (default: 15000)")
    parser.add_argument("--seed", type=int, default=0, help="decides weights and all randomness (default: 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Distil, and say how well the student has learned."""
    from spi_diffusers.files import find_policy_folder

    folder = find_policy_folder(args.policy)  # before the heavy imports: a typing error shows

    from spi_diffusers.deployment.distillation import distill

    result = distill(
        folder,
        args.dataset,
        seed=args.seed,
        progress=not args.quiet,
        **({} if args.updates is None else {"updates": args.updates}),
    )
    same, error = f"{result.same_choice:.1%}", f"{result.action_error:.3f}"
    print(
        f"Learned from {result.states:,} observations. In {result.held_out:,} others it chooses as the "
        f"policy does\nin {same}; its actions are off by {error} of half their range (root mean square)."
    )
    print(f"Written: {folder / 'student'}")
    return 0
