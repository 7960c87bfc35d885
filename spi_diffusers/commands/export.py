"""`spi export`: write a policy as a graph that acts without torch."""

import argparse

from spi_diffusers.evaluation import EXTRACTIONS

EXAMPLES = """\
examples:
  spi export outputs/ballcircle-seed0
  spi export outputs/ballcircle-seed0 --output-dir robot/policy --dataset march.csv
  spi export outputs/ballcircle-bc

Two files are written. policy.onnx is the whole decision: normalisation,
denoising, critics, and the choice under cost budget, steps left and risk, for any
number of observations. policy.json says what goes in and what comes out, with
shapes, units and ranges, at which limits the policy is certified, and checksums.

Safe extraction draws no noise: the same inputs give the same action. Where a
policy needs noise (extraction "reward", BCQ-Lag), it is an input of the graph.

Before anything is written, graph and pipeline act on 1,000 random observations
and on 1,000 of the data: the same candidate must act in 99.9% of them, with
actions within 1e-5 of half their range.

Without torch: pip install numpy onnxruntime, and in a clone
pip install --no-deps . Then, in Python:
  from spi_diffusers.runtime import ExportedPolicy
  policy = ExportedPolicy("outputs/ballcircle-seed0/onnx")
  controller = policy.controller(cost_limit=20)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi export`."""
    parser.add_argument("policy", metavar="FOLDER", help="folder of a policy, or of its run")
    parser.add_argument("--to", choices=("onnx",), default="onnx", help="what to write (default: onnx)")
    parser.add_argument("--output-dir", metavar="DIR", help="where to write (default: FOLDER/onnx)")
    parser.add_argument(
        "--extraction",
        choices=EXTRACTIONS,
        help="how SPI's policies choose: under a limit, by the paper's rule without one, or under a limit by "
        "the student of `spi distill` (default: safe)",
    )
    parser.add_argument(
        "--dataset", help="where recorded observations come from (default: what the policy was trained on)"
    )


def run(args: argparse.Namespace) -> int:
    """Export, and say what was checked."""
    from spi_diffusers.files import find_policy_folder

    find_policy_folder(args.policy)  # before the heavy imports: a typing error shows at once

    from spi_diffusers.deployment.export import export
    from spi_diffusers.runtime import ExportedPolicy

    folder = export(args.policy, args.output_dir, extraction=args.extraction, dataset=args.dataset)
    checked = ExportedPolicy(folder).contract["checked"]
    compared = " and ".join(f"{count:,} {name}" for name, count in checked["observations"].items())
    print(
        f"Graph and pipeline on {compared} observations: the same choice in {checked['same_choice']:.2%}, "
        f"actions at most {checked['largest_action_difference']:.1e} of half their range apart."
    )
    if "recorded" not in checked["observations"]:
        print("No recorded observations were compared: the policy's data is not here; name it by --dataset.")
    print(f"Written: {folder}")
    return 0
