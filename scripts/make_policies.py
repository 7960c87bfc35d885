"""Make policies/: every task's policy as it is published, from the trainings of `make results`.

    python scripts/make_policies.py outputs/safe                            # training seed 0 of every task
    python scripts/make_policies.py outputs/safe --tasks ballcircle carrun  # of some
    python scripts/make_policies.py policies                                # only code and cards anew

Before, each is certified at its task's limits, gets a student, is assessed by the episodes that training held
out, drawn against the limit and recorded, as far as that is not done yet. Results of other training seeds go
on its card. A policy that is there already is replaced.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from helpers import ORGANISATION, POLICIES, script_parser

from spi_diffusers.cli import run_with_messages
from spi_diffusers.data.tasks import get_task
from spi_diffusers.deployment.distillation import distill
from spi_diffusers.evaluation.assess import assess
from spi_diffusers.evaluation.certify import certify
from spi_diffusers.evaluation.evaluate import EvaluationSpec
from spi_diffusers.evaluation.results import read_results
from spi_diffusers.evaluation.video import record_replay
from spi_diffusers.files import ASSESSMENT_FILE, REPLAY_FILE, RESULTS_FILE
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish import copy_folder
from spi_diffusers.hub.publish_all import TrainedPolicy, choose, find_trained_policies, with_other_seeds
from spi_diffusers.hub.results import results_folders
from spi_diffusers.pipelines.loading import load_pipeline


def complete(policy: TrainedPolicy, episodes: int) -> None:
    """Make what is published with a policy, as far as its folder, or its run's, does not hold it yet."""
    folder, task = policy.folder, get_task(policy.task)
    evaluation, files = results_folders(folder)[0], read_policy_files(folder)
    if files.certificate is None or min(row.episodes for row in files.certificate.limits) < episodes:
        print(certify(folder, episodes=episodes))
    pipeline: Any = load_pipeline(folder)
    if pipeline.student is None:
        distill(folder)
    if files.assessment is None:
        assess(folder).save(folder / ASSESSMENT_FILE)
    if "limits.png" not in files.plots:
        read_results(evaluation / RESULTS_FILE).plot(evaluation / "limits.png")
    if files.replay is None:
        acting = EvaluationSpec().acting(pipeline, "safe")
        record_replay(acting, task, evaluation / REPLAY_FILE, cost_limit=task.cost_limits[0])


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder with trained policies")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only of these (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="training seed of the weights (default: 0)")
    parser.add_argument("--episodes", type=int, default=200, help="certify with so many (default: 200)")
    parser.add_argument("--output", type=Path, default=POLICIES, help="folder (default: policies)")
    args: argparse.Namespace = parser.parse_args()
    tasks = None if args.tasks is None else [get_task(name).short_name for name in args.tasks]
    found = find_trained_policies(args.folder).policies
    chosen = [one for one in choose(found, args.seed) if tasks is None or one.task in tasks]
    if missing := set(tasks or []) - {one.task for one in chosen}:
        raise FileNotFoundError(f"{args.folder}: holds no policy for {', '.join(sorted(missing))}")
    for policy in chosen:
        complete(policy, args.episodes)
        others = [one for one in found if one.repo_name == policy.repo_name and one != policy]
        with tempfile.TemporaryDirectory() as scratch:
            files = with_other_seeds(read_policy_files(policy.folder), others, Path(scratch))
            target = args.output / policy.repo_name
            print(copy_folder(files, f"{ORGANISATION}/{policy.repo_name}", target, replace=True))
    return 0


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
