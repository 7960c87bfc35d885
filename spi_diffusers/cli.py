"""The `spi` command: thin subcommands that import what they need only when they run."""

import argparse
import difflib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from spi_diffusers import __version__
from spi_diffusers.commands import (
    benchmark,
    card,
    compare,
    data,
    evaluate,
    leaderboard,
    play,
    publish,
    tasks,
    train,
)

_EXAMPLES = """\
examples:
  spi tasks                                     which tasks there are
  spi train --task ballcircle                   train on the data in the package
  spi evaluate outputs/ballcircle-seed0         play it in the simulator at several cost limits
  spi publish outputs/ballcircle-seed0 org/spi-ballcircle --dry-run

`spi COMMAND --help` explains a command. Errors are one line; --traceback (or SPI_TRACEBACK=1) shows where.
"""

#: A command's module has `add_arguments`, `EXAMPLES` and, unless it has subcommands, `run`.
_COMMANDS: tuple[tuple[str, Any, str], ...] = (
    ("train", train, "Train a policy on a dataset."),
    ("evaluate", evaluate, "Play a policy in its simulator."),
    ("play", play, "Record an episode of a policy as a video."),
    ("compare", compare, "One table of several policies' results."),
    ("leaderboard", leaderboard, "All published policies for a task, the safe ones first."),
    ("benchmark", benchmark, "Run the paper's experiments, and make its tables and figures."),
    ("card", card, "Write the card of a policy."),
    ("publish", publish, "Publish a policy, or all of them, to the Hub."),
    ("data", data, "Collect, convert, describe and publish datasets."),
    ("tasks", tasks, "List the tasks and what each needs."),
)


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
        Exit code: 0; 1 where a part of the work could not be done, which is listed; 2 for an error that one
        line explains; 128 + N when signal N stopped a training run, and 128 + SIGPIPE when who read the
        output, such as `head`, has read enough (1 in the middle of a table).
    """
    parser, commands = _make_parser()
    args, unknown = parser.parse_known_args(arguments)
    if args.command is None:
        if unknown:
            parser.error(_explain_unknown(unknown[0], parser))
        parser.print_help()
        return 0
    command = getattr(args, "parser", commands[args.command])  # of the subcommand, where there are some
    if unknown:
        command.error(_explain_unknown(unknown[0], command))
    return run_with_messages(lambda: args.run(args), command.prog, show_traceback=args.traceback)


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
    program = program or os.path.basename(sys.argv[0])
    try:
        code = job() or 0
        sys.stdout.flush()  # here, where it can be told quietly that nobody reads any more
        return code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 128 + signal.SIGPIPE
        if not _is_known(error):
            raise
        if show_traceback or os.environ.get("SPI_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        else:
            print(f"{program}: error: {_one_line(error)}", file=sys.stderr)
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
    for name, module, text in _COMMANDS:
        command = subparsers.add_parser(name, help=text, description=text, epilog=module.EXAMPLES)
        module.add_arguments(command)
        if hasattr(module, "run"):  # else its own subcommands have these
            command.add_argument("--traceback", action="store_true", help="show where an error comes from")
            command.set_defaults(run=module.run)
        commands[name] = command
    return parser, commands


# ---- errors


def _reader_is_gone() -> bool:
    """Whether nobody reads the output any more; what is left of it is then thrown away."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # the output is no file
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False  # the pipe that broke is another one
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # else Python complains when it ends
    return True


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
