"""`spi train`: train a policy on a dataset."""

import argparse
import functools
import json
import shlex
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  spi train --task ballcircle
  spi train --task carcircle --dataset YYY-45/DSRL --updates 50000 --seed 1
  spi train --task ballcircle --algorithm spi-paper --output-dir outputs/paper
  spi train --task ballcircle --algorithm bcq-lag --cost-limit 20
  spi train --task ballcircle --spi.eta 0.3 --updates 20000 --print-config
  spi train --config outputs/ballcircle-seed0/train_config.json --resume
  torchrun --nproc_per_node 2 scripts/train.py --task ballcircle

Settings come from the defaults, then the algorithm's, then --config, then the options.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi train`: its own, and those of the configuration."""
    from spi_diffusers.commands.train_options import add_config_arguments

    add_config_arguments(parser)
    _add_own(parser.add_argument_group("other"))


def _add_own(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--print-config", action="store_true", help="Print the settings, and train nothing")
    group.add_argument("--quiet", action="store_true", help="No progress bar")
    group.add_argument("-h", "--help", action="store_true", help="Show this help")
    group.add_argument("--help-all", action="store_true", help="Show every option")


def run(args: argparse.Namespace) -> int:
    """Train; the exit code is 128 + N where signal N stopped it."""
    from spi_diffusers.commands.train_options import config_from_arguments

    if args.help or args.help_all:
        _print_help(args)
        return 0
    config = config_from_arguments(args)  # before the heavy imports: a typing error shows at once
    if args.print_config:
        print(json.dumps(config.to_dict(), indent=2))
        return 0
    from spi_diffusers.files import CHECKPOINTS_FOLDER
    from spi_diffusers.training.train import run_training

    try:
        result = run_training(config, progress=not args.quiet)
    except KeyboardInterrupt:  # before or after the updates, which end by a checkpoint
        if any(Path(str(config.output_dir), CHECKPOINTS_FOLDER).glob("step-*")):
            raise KeyboardInterrupt(
                "the checkpoint is kept; go on with the same command and --resume"
            ) from None
        raise
    _leave_process_group()
    training = result.training
    if training.stopped_by is not None:
        if result.is_main_process:
            print(
                f"Stopped after update {training.step} of {config.updates}; the checkpoint is kept. "
                "Go on with the same command and --resume.",
                file=sys.stderr,
            )
        return 128 + training.stopped_by
    if result.is_main_process:
        print(f"Trained {training.step} updates in {training.seconds:.0f} s: {result.policy_folder}")
        _assess(result.policy_folder, result.dataset)
        print(f"Next: {next_step(str(result.policy_folder), result.dataset)}")
    return 0


def next_step(folder: str, dataset: Any) -> str:
    """What to do with a policy that was trained on a dataset."""
    names = dataset.cost_names
    if dataset.task is not None:
        limits = f" --cost-limit {','.join(names).upper()}" if len(names) > 1 else ""
        return f"spi evaluate {shlex.quote(folder)}{limits}"
    own = "act with it in your own environment, as the data has no DSRL task"
    if len(names) > 1:  # of which there is no card
        limits = ", ".join(f'"{name}": ...' for name in names)
        return f"{own}: policy.controller({{{limits}}}) keeps count of its costs."
    return f"{own}; spi card {shlex.quote(folder)} shows how."


def _assess(folder: Any, dataset: Any) -> None:
    """Say what to expect of a policy whose critic tells, from some of the held-out episodes."""
    from spi_diffusers.commands.output import print_tables
    from spi_diffusers.data.streaming import StreamedDataset
    from spi_diffusers.evaluation.assess import QUICK_TRANSITIONS, assess
    from spi_diffusers.pipelines.loading import load_pipeline

    policy: Any = load_pipeline(folder)
    if getattr(policy, "evaluation_critic", None) is None:
        return
    if not isinstance(dataset, StreamedDataset):  # of which to read single episodes may take long
        assessment = assess(policy, dataset, max_transitions=QUICK_TRANSITIONS)
        print_tables(assessment.table())
        print("\n".join(assessment.remarks))
    print(f"What to expect, from held-out episodes: spi assess {shlex.quote(str(folder))}")


def _print_help(args: argparse.Namespace) -> None:
    from spi_diffusers.commands.parser import HelpFormatter
    from spi_diffusers.commands.train_options import add_config_arguments, add_usual_arguments

    parser = argparse.ArgumentParser(
        prog=args.parser.prog,
        usage="spi train --task TASK [options]",
        description=args.parser.description,
        epilog=EXAMPLES,
        formatter_class=functools.partial(HelpFormatter, max_help_position=29),
        add_help=False,
    )
    if args.help_all:
        add_config_arguments(parser)
    else:
        add_usual_arguments(parser, vars(args).get("algorithm"))
    group = parser.add_argument_group("other")
    _add_own(group)
    group.add_argument("--traceback", action="store_true", help="Show where an error comes from")
    parser.print_help()


def _leave_process_group() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
