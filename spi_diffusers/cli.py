"""The `spi` command: subcommands that import what they need only when they run."""

import argparse
import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from spi_diffusers import __version__
from spi_diffusers.commands.output import lost_output, secure_streams, show_messages
from spi_diffusers.commands.parser import CommandParser, finish
from spi_diffusers.messages import explanation, hide_tokens, is_explained

_EXAMPLES = """\
examples:
  spi tasks                                     which tasks there are
  spi train --task ballcircle                   train on the data in the package
  spi assess outputs/ballcircle-seed0           say what to expect of it, without a simulator
  spi evaluate outputs/ballcircle-seed0         play it in the simulator at several cost limits
  spi publish outputs/ballcircle-seed0 org/spi-ballcircle --dry-run

`spi COMMAND --help` explains a command. Errors are one line; --traceback (or SPI_TRACEBACK=1) shows where.

Shell completion:
  spi --print-completion bash > ~/.local/share/bash-completion/completions/spi
"""

#: Modules in `commands`, which have `add_arguments`, `EXAMPLES` and, unless there are subcommands, `run`.
COMMANDS = {
    "train": "Train a policy on a dataset.",
    "assess": "Say what to expect of a policy, from data, before anyone acts with it.",
    "evaluate": "Play a policy in its simulator, and write results, plots and a video.",
    "certify": "Show how often a policy exceeds its limit at most, with confidence.",
    "distill": "Train a student that answers in one pass what a policy computes.",
    "play": "Record an episode of a policy as a video.",
    "space": "Try policies and your own data in a page in the browser.",
    "export": "Write a policy as an ONNX graph that acts without torch.",
    "compare": "Compare policies by their results, in one table.",
    "leaderboard": "List all published policies for a task, the safe ones first.",
    "benchmark": "Run the paper's experiments, and make its tables and figures.",
    "card": "Write the card of a policy.",
    "publish": "Publish a policy, or all of them, to the Hub.",
    "data": "Collect, convert, describe and publish datasets.",
    "tasks": "List the tasks and what each needs.",
}
#: Those whose work is what they print.
_ONLY_PRINT = ("compare", "leaderboard", "card", "tasks")
#: Arguments with such names are completed as files.
_FILES = re.compile(r"FILE|DIR|FOLDER|POLICY|SRC|DST|DATASET|RESULTS")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `spi` command.

    Args:
        arguments: Command line without the program's name; by default the process's own.

    Returns:
        Exit code: 0; 1 where a part of the work could not be done, which is listed; 2 for an error that one
        line explains; 128 + N when signal N stopped a training run, 130 on Ctrl-C. Output that cannot be
        written changes it only where the output is all that was asked for, to 1; it is 0 where `head` has
        read enough.
    """
    words = [_with_dashes(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    parsed: list[argparse.Namespace] = []
    code = run_with_messages(lambda: parsed.append(_parse(words)), "spi")
    if code:
        return code
    (args,) = parsed
    show_messages()
    code = run_with_messages(lambda: args.run(args), args.parser.prog, show_traceback=args.traceback)
    is_all = args.command in _ONLY_PRINT and not getattr(args, "output", None)
    if not code and is_all and (lost := lost_output()):
        print(f"{args.parser.prog}: error: the output cannot be written: {lost.strerror}", file=sys.stderr)
        return 1
    return code


def run_with_messages(
    job: Callable[[], int | None], program: str | None = None, *, show_traceback: bool = False
) -> int:
    """Run a command or a script so that an error of its input, files or installation is one line on stderr.

    Args:
        job: Does the work and returns an exit code, or None for 0.
        program: What the line starts with; by default the script's name.
        show_traceback: Print where such an error comes from, as `SPI_TRACEBACK=1` does.

    Returns:
        Exit code, as of `main`.
    """
    secure_streams()
    program = program or os.path.basename(sys.argv[0])
    try:
        code = job() or 0
        sys.stdout.flush()  # here, where it can be told what was lost
        return code
    except KeyboardInterrupt as interrupt:
        print(f"{program}: interrupted{f'; {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if not is_explained(error):
            raise
        if show_traceback or os.environ.get("SPI_TRACEBACK", "0") not in ("", "0"):
            text = traceback.format_exc()
        else:
            text = f"{program}: error: {explanation(error)}\n"
        print(hide_tokens(text), end="", file=sys.stderr)
        return 2


# ---- the parser


def _parse(words: list[str]) -> argparse.Namespace:
    command = next((word for word in words if not word.startswith("-")), None)
    parser = make_parser([] if command is None else [command])
    args, unknown = parser.parse_known_args(words)
    if unknown:
        getattr(args, "parser", parser).refuse(unknown[0])
    if args.print_completion:
        args.parser, args.run = make_parser(COMMANDS), _print_completion
    elif args.command is None:
        args.parser, args.run = parser, _print_help
    vars(args).setdefault("traceback", False)
    return args


def make_parser(commands: Iterable[str]) -> CommandParser:
    """The parser of the `spi` command.

    Args:
        commands: The commands whose options are added; the others are only listed.
    """
    parser = CommandParser(
        prog="spi",
        description="Safe offline reinforcement learning: train, evaluate and publish policies that keep a "
        "cost limit chosen at run time.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"spi-diffusers {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "tcsh"),
        help="print a script for the shell's completion",
    )
    subparsers = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = subparsers.add_parser(name, help=text, description=text)
        if name not in commands:
            continue
        module = importlib.import_module(f"spi_diffusers.commands.{name}")
        command.epilog = module.EXAMPLES
        module.add_arguments(command)
        if hasattr(module, "run"):
            finish(command, module.run)
    return parser


def _with_dashes(word: str) -> str:
    """--output_dir=a_b is --output-dir=a_b, and --bcq_lag.kl_weight is --bcq-lag.kl-weight."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if re.fullmatch(r"--[a-z][\w.-]*", name) else word


def _print_help(args: argparse.Namespace) -> None:
    args.parser.print_help()


def _print_completion(args: argparse.Namespace) -> None:
    import shtab

    from spi_diffusers.config.algorithms import ALGORITHMS
    from spi_diffusers.data.tasks import TASKS

    tasks, algorithms = [task.short_name for task in TASKS.values()], list(ALGORITHMS)
    names = {"task": tasks, "tasks": tasks, "algorithm": algorithms, "algorithms": algorithms}
    parsers: list[Any] = [args.parser]
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
                continue
            word = str(action.metavar)
            if _FILES.search(word):
                action.complete = shtab.FILE
            elif action.choices is None and action.nargs != 0:
                action.choices = names.get(action.dest) or (word.split("|") if "|" in word else None)
    print(shtab.complete(args.parser, args.print_completion))


if __name__ == "__main__":
    sys.exit(main())
