"""Play the students of policies beside the policies themselves, on the same episodes.

    python scripts/compare_students.py policies/* --output results/students.json
    python scripts/compare_students.py policies/spi-ballcircle --episodes 20

Results of tasks that are not played stay in the file.
"""

import sys
from pathlib import Path

from helpers import script_parser

from spi_diffusers.cli import run_with_messages
from spi_diffusers.evaluation import FAST
from spi_diffusers.evaluation.evaluate import evaluate
from spi_diffusers.evaluation.results import merge_results

#: Evaluation seed of the comparison, which nothing else is played on.
SEED = 2000


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("policies", nargs="+", type=Path, help="folders of policies with a student")
    parser.add_argument("--episodes", type=int, default=100, help="episodes per limit (default: 100)")
    parser.add_argument("--output", type=Path, help="results file")
    args = parser.parse_args()
    for policy in args.policies:
        if not policy.is_dir():  # a file beside the policies
            continue
        results = evaluate(
            policy, episodes=args.episodes, seeds=[SEED], extractions=["safe", FAST], progress=False
        )
        print(results)
        if args.output is not None:
            merge_results(args.output, results)
    return 0


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
