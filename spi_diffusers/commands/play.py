"""`spi play`: record an episode of a policy as a video."""

import argparse

from spi_diffusers.commands.evaluate import add_policy_arguments, check_policy
from spi_diffusers.commands.parser import cost_limit
from spi_diffusers.evaluation import EXTRACTIONS
from spi_diffusers.files import local_path

EXAMPLES = """\
examples:
  spi play outputs/ballcircle-seed0                             at the task's smallest limit
  spi play org/spi-ballcircle --cost-limit 40 --seed 3 --output ball.mp4
  spi play org/spi-ballcircle --extraction reward               the paper's extraction (Eq. 12)

The video shows the simulator with the return, the cost so far and the limit under it. The same policy, limit
and seed play the same episode.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi play`."""
    add_policy_arguments(parser)
    parser.add_argument(
        "--cost-limit",
        type=cost_limit,
        metavar="LIMIT",
        help="cost limit of the episode; of several costs a list such as 20,300 (default: the task's first; "
        "a baseline's own)",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the episode (default: 0)")
    parser.add_argument(
        "--extraction",
        choices=EXTRACTIONS,
        help="by what the action is chosen: within the limit, by reward alone, or within the limit by the "
        "student of `spi distill` (default: safe)",
    )
    parser.add_argument(
        "--output",
        type=local_path,
        metavar="FILE.mp4",
        help="the video (default: outputs/play/<policy>-limit<L>-seed<S>.mp4)",
    )


def run(args: argparse.Namespace) -> int:
    """Play and record an episode, and say how it went."""
    check_policy(args)

    from spi_diffusers.evaluation.entries import each
    from spi_diffusers.evaluation.summary import keeps_limit
    from spi_diffusers.evaluation.video import play_episode

    replay = play_episode(
        args.policy,
        args.task,
        cost_limit=args.cost_limit,
        seed=args.seed,
        extraction=args.extraction,
        feedback=not args.no_feedback,
        risk=args.risk,
        revision=args.revision,
        output=args.output,
        progress=not args.quiet,
    )
    spent = ", ".join(
        f"{name} {cost:g} of {limit:g}"
        for name, cost, limit in zip(
            replay.cost_names, each(replay.cost_return), each(replay.cost_limit), strict=True
        )
    )
    verdict = "kept" if keeps_limit(replay.normalized_cost) else "exceeded"
    print(
        f"{replay.task.name}, seed {args.seed}, {replay.length} steps: return {replay.return_:.1f} "
        f"(normalized {replay.normalized_reward:.2f}), {spent}, limit {verdict}\n"
        f"Written: {replay.path}"
    )
    return 0
