"""`spi train`: train a policy on a dataset."""

import argparse
import json
import sys

from spi_diffusers.commands.messages import log_to_stderr

EXAMPLES = """\
examples:
  spi train --task ballcircle
  spi train --task carcircle --dataset YYY-45/DSRL --updates 50000 --seed 1
  spi train --task ballcircle --algorithm spi-paper --output_dir outputs/paper
  spi train --task ballcircle --print-config
  spi train --task ballcircle --spi.eta 0.3 --network.hidden_dims 128 128 --trackers tensorboard
  spi train --config outputs/ballcircle-seed0/train_config.json --resume
  torchrun --nproc_per_node 2 scripts/train.py --task ballcircle

Settings come from, each over the one before: the defaults that are shown, the task's preset, --preset,
--config FILE, the options; --print-config shows what comes of them. They are saved as train_config.json
beside the policy, and --config reads that file. A run that was stopped or killed goes on with --resume, bit
for bit.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi train`: its own, and those of the configuration."""
    from spi_diffusers.commands.train_options import add_config_arguments

    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings that would be used, and train nothing"
    )
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train; the exit code is 128 + N where signal N stopped it."""
    from spi_diffusers.commands.train_options import config_from_arguments

    config = config_from_arguments(args)  # before the heavy imports: a typing error shows at once
    if args.print_config:
        print(json.dumps(config.to_dict(), indent=2))
        return 0
    log_to_stderr()
    from spi_diffusers.training.run import run_training

    result = run_training(config, progress=not args.quiet)
    _leave_process_group()
    if result.is_main_process:
        training = result.training
        if training.stopped_by is None:
            print(
                f"Trained {training.step} updates in {training.seconds:.0f} s. The policy is in "
                f"{result.policy_folder}"
            )
            if result.task is not None:
                print(f"Next: spi evaluate {result.policy_folder}")
            else:
                print(
                    "Next: act with it in your own environment, as the data is of none of DSRL's tasks; "
                    f"spi card {result.policy_folder} shows how."
                )
        else:
            print(
                f"Stopped after update {training.step} of {config.updates}; a checkpoint is saved. Go on "
                "with the same command and --resume.",
                file=sys.stderr,
            )
    stopped_by = result.training.stopped_by
    return 0 if stopped_by is None else 128 + stopped_by


def _leave_process_group() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
