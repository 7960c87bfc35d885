"""The `spi` command: thin subcommands that import what they need only when they run."""

import argparse
import difflib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from spi_diffusers import __version__
from spi_diffusers.commands import card, publish
from spi_diffusers.commands.data import EXAMPLES as DATA_EXAMPLES
from spi_diffusers.commands.data import add_arguments as add_data_arguments
from spi_diffusers.commands.messages import log_to_stderr

_EXAMPLES = """\
examples:
  spi tasks                                     which tasks there are
  spi train --task ballcircle                   train on the data in the package
  spi evaluate outputs/ballcircle-seed0         play it in the simulator at several cost limits
  spi publish outputs/ballcircle-seed0 org/spi-ballcircle --dry-run

`spi COMMAND --help` explains a command. Errors are one line; --traceback (or SPI_TRACEBACK=1) shows where.
"""

_TRAIN_EXAMPLES = """\
examples:
  spi train --task ballcircle
  spi train --task carcircle --dataset YYY-45/DSRL --updates 50000 --seed 1
  spi train --task ballcircle --preset paper --output_dir outputs/paper
  spi train --task ballcircle --algorithm.eta 0.3 --network.hidden_dims 128 128 --trackers tensorboard
  spi train --config outputs/ballcircle-seed0/train_config.json --resume
  torchrun --nproc_per_node 2 scripts/train.py --task ballcircle

Settings come from, each over the one before: defaults, the default preset, the task's preset, --preset,
--config FILE, the options below. The settings in use are saved as train_config.json beside the policy, and
--config reads that file. A run that was stopped or killed goes on with --resume, bit for bit.
"""

_TASKS_EXAMPLES = """\
examples:
  spi tasks --paper                 the eight tasks of the SPI paper
  spi tasks --installed --json      what can be simulated here, for scripts
"""

_EVALUATE_EXAMPLES = """\
examples:
  spi evaluate outputs/ballcircle-seed0
  spi evaluate outputs/ballcircle-seed0/policy --cost-limit 10 20 40 --episodes 20 --seeds 0 1 2
  spi evaluate org/spi-ballcircle --extraction reward        the paper's extraction (Eq. 12)
  spi evaluate outputs/ballcircle-seed0/policy --no-feedback --output results/

"safe" keeps candidate actions whose predicted cost fits what is left of the limit and takes the one with
the highest predicted return; "reward" takes the highest predicted return alone.
"""


class _Parser(argparse.ArgumentParser):
    """Errors in one line, instead of a usage text of forty options."""

    def __init__(self, **settings: Any):
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help explains)\n")

    def options(self) -> list[str]:
        """All long options."""
        return [text for action in self._actions for text in action.option_strings if text.startswith("--")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `spi` command.

    Args:
        arguments: Command line without the program's name; by default the process's own.

    Returns:
        Exit code: 0; 2 for an error that one line explains; 128 + N when signal N stopped a training run.
    """
    parser, commands = _make_parser()
    args, unknown = parser.parse_known_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    command = getattr(args, "parser", commands[args.command])  # of the subcommand, where there are some
    if unknown:
        command.error(_explain_unknown(unknown[0], command))
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print(f"{command.prog}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if not _is_known(error):
            raise
        if args.traceback or os.environ.get("SPI_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        else:
            print(f"{command.prog}: error: {_one_line(error)}", file=sys.stderr)
        return 2


def _make_parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="spi",
        description="Safe offline reinforcement learning: train, evaluate and publish policies that keep a "
        "cost limit chosen at run time.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"spi-diffusers {__version__}")
    subparsers = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    commands = {}
    for name, add, run, text, examples in (
        ("train", _add_train, _train, "Train a policy on a dataset.", _TRAIN_EXAMPLES),
        ("evaluate", _add_evaluate, _evaluate, "Play a policy in its simulator.", _EVALUATE_EXAMPLES),
        ("card", card.add_arguments, card.run, "Write the card of a policy.", card.EXAMPLES),
        ("publish", publish.add_arguments, publish.run, "Publish a policy to the Hub.", publish.EXAMPLES),
        ("data", add_data_arguments, None, "Collect, convert, describe and publish datasets.", DATA_EXAMPLES),
        ("tasks", _add_tasks, _tasks, "List the tasks and what each needs.", _TASKS_EXAMPLES),
    ):
        command = subparsers.add_parser(name, help=text, description=text, epilog=examples)
        add(command)
        if run is not None:  # else its own subcommands have these
            command.add_argument("--traceback", action="store_true", help="show where an error comes from")
            command.set_defaults(run=run)
        commands[name] = command
    return parser, commands


# ---- spi train


def _add_train(parser: _Parser) -> None:
    from spi_diffusers.training.config_layers import add_config_arguments

    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_config_arguments(parser)


def _train(args: argparse.Namespace) -> int:
    from spi_diffusers.training.config_layers import config_from_arguments

    config = config_from_arguments(args)  # before the heavy imports: a typing error shows at once
    log_to_stderr()
    from spi_diffusers.training.run import run_training

    result = run_training(config, progress=not args.quiet)
    _leave_process_group()
    if result.is_main_process:
        training = result.training
        if training.stopped_by is None:
            print(
                f"Trained {training.step} updates in {training.seconds:.0f} s. The policy is in "
                f"{result.policy_folder}\nNext: spi evaluate {result.policy_folder}"
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


# ---- spi evaluate


def _add_evaluate(parser: _Parser) -> None:
    parser.add_argument(
        "policy", metavar="FOLDER_OR_HUB_ID", help="folder of a policy or of its run, or its id on the Hub"
    )
    parser.add_argument("--task", help="DSRL task; by default the one that the policy was trained for")
    parser.add_argument(
        "--cost-limit",
        type=float,
        nargs="+",
        metavar="LIMIT",
        help="cost limits per episode (default: the task's own, 10 20 40 for Bullet)",
    )
    parser.add_argument("--episodes", type=int, default=20, help="episodes per limit and seed (default: 20)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="evaluation seeds (default: 0)"
    )
    parser.add_argument(
        "--extraction",
        nargs="+",
        choices=("safe", "reward"),
        default=["safe", "reward"],
        help="how an action is picked from the candidates (default: both)",
    )
    parser.add_argument(
        "--no-feedback",
        action="store_true",
        help="do not tell the policy what is left of the limit; it spreads the limit evenly",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument(
        "--dataset", help="behaviour data to compare with (default: what the policy was trained on)"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for results, plots and video (default: evaluation/ in the run)",
    )
    parser.add_argument("--no-plots", action="store_true", help="do not draw plots")
    parser.add_argument("--no-video", action="store_true", help="do not record an episode")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _evaluate(args: argparse.Namespace) -> int:
    from spi_diffusers.data.tasks import get_task

    if args.task is not None:
        get_task(args.task)  # before the heavy imports: a typing error shows at once
    log_to_stderr()
    from diffusers.utils.logging import disable_progress_bar
    from rich.console import Console

    from spi_diffusers.evaluation.run import run_evaluation
    from spi_diffusers.evaluation.tables import results_tables

    disable_progress_bar()  # loading five small files needs none
    result = run_evaluation(
        args.policy,
        args.task,
        cost_limits=args.cost_limit,
        episodes=args.episodes,
        seeds=args.seeds,
        extractions=args.extraction,
        feedback=not args.no_feedback,
        dataset=args.dataset,
        revision=args.revision,
        output=args.output,
        plots=not args.no_plots,
        video=not args.no_video,
        progress=not args.quiet,
    )
    console = Console()
    for table in results_tables(result.entries, result.behaviour):
        console.print(table)
    print("Written: " + ", ".join(str(path) for path in result.files))
    return 0


# ---- spi tasks


def _add_tasks(parser: _Parser) -> None:
    parser.add_argument("--paper", action="store_true", help="only the eight tasks of the SPI paper")
    parser.add_argument(
        "--simulator",
        help="only the tasks of one simulator: bullet, velocity, safety_gymnasium or metadrive",
    )
    parser.add_argument("--installed", action="store_true", help="only the tasks that can be simulated here")
    parser.add_argument("--json", action="store_true", help="print everything that is known as JSON")


def _tasks(args: argparse.Namespace) -> int:
    from spi_diffusers.data.catalogue import list_tasks, tasks_notes, tasks_table

    rows = list_tasks(simulator=args.simulator, paper=args.paper, installed=args.installed)
    if args.json:
        import json

        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        print("No task fits: spi tasks lists all of them, and what is missing to simulate them.")
        return 0
    from rich.console import Console

    # Piped output has no width; do not fold names there.
    Console(width=None if sys.stdout.isatty() else 180).print(tasks_table(rows))
    print("\n".join(tasks_notes(rows)))
    return 0


# ---- errors


def _is_known(error: Exception) -> bool:
    """Errors that say what is wrong with the input, the files or the installation."""
    ours = type(error).__module__.startswith("spi_diffusers.")
    return ours or isinstance(error, ValueError | OSError | ImportError)


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None and error.filename is None and error.strerror:
        text = error.strerror  # without "[Errno 28]": our messages name the file themselves
    return " ".join(text.split()) or type(error).__name__


def _explain_unknown(argument: str, command: _Parser) -> str:
    name = argument.partition("=")[0]
    close = difflib.get_close_matches(name, command.options(), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown argument {name}{hint}"


if __name__ == "__main__":
    sys.exit(main())
