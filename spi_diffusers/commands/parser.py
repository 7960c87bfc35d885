"""The parser of every command: one-line errors with the nearest name, short usage lines, wrapped help."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from spi_diffusers.files import nearest
from spi_diffusers.messages import hide_tokens


class HelpFormatter(argparse.HelpFormatter):
    """Wraps paragraphs and leaves lists of commands, which are indented, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = text.strip().split("\n\n")
        return "\n\n".join(
            block if "\n  " in block else super(HelpFormatter, self)._fill_text(block, width, indent)
            for block in blocks
        )


class CommandParser(argparse.ArgumentParser):
    """Errors in one line with the nearest name, instead of a usage text of forty options."""

    def __init__(self, **settings: Any):
        settings.setdefault("formatter_class", HelpFormatter)
        super().__init__(allow_abbrev=False, **settings)
        self._words: list[str] = []

    def error(self, message: str) -> NoReturn:
        """End with an error in one line."""
        message += self._swallowed()
        self.exit(2, hide_tokens(f"{self.prog}: error: {message} ({self.prog} --help explains)\n"))

    def _swallowed(self) -> str:
        """What to write where an option of several values may have taken what is named without an option."""
        wanted = [str(action.metavar or action.dest) for action in self._actions if not action.option_strings]
        greedy = [text for one in self._actions if one.nargs == "+" for text in one.option_strings]
        place = next((number for number, word in enumerate(self._words) if word in greedy), 0)
        before = [word for word in self._words[:place] if not word.startswith("-")]
        if not self._words[place:] or self._words[place] not in greedy or len(before) >= len(wanted):
            return ""
        return (
            f"; {self._words[place]} takes all words up to the next option: write {' '.join(wanted)} before "
            "it, or behind a --"
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which would take the value of an option before a command for the command."""
        words = self._words = sys.argv[1:] if args is None else list(args)
        commands = next((one.choices for one in self._actions if one.nargs == argparse.PARSER), {}) or {}
        place = next((number for number, word in enumerate(words) if word in commands), 0)
        for word in words[:place]:
            name = word.partition("=")[0]
            if name.startswith("-") and name not in self._option_string_actions:
                self.error(f"{name} stands before the command; options come after it")
        return super().parse_known_args(words, namespace)

    def refuse(self, unknown: str) -> NoReturn:
        """End with an error for an argument that does not exist."""
        name = unknown.partition("=")[0]
        known = [text for action in self._actions for text in action.option_strings if text.startswith("--")]
        group = [one for one in known if one.endswith(f".{name.lstrip('-')}")]  # of --spi.eta, for --eta
        hint = f"; did you mean {group[0]}?" if group else nearest(name, known)
        self.error(f"unknown argument {name}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            hint = nearest(str(value), known) or f"; there are {', '.join(known)}"
            raise argparse.ArgumentError(action, f"unknown {value!r}{hint}")


def cost_limit(text: str) -> float | tuple[float, ...]:
    """What an option for a cost limit takes: a number, or one for each of several costs, such as 20,300."""
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a limit is a number, or of several costs a list such as 20,300, got {text!r}"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def finish(command: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """Add what all commands have in common, and say what runs the command."""
    command.add_argument("--traceback", action="store_true", help="show where an error comes from")
    command.set_defaults(run=run, parser=command)
    needed = []
    for action in command._actions:
        if action.type in (int, float) and action.metavar is None:
            action.metavar = "N"
        if action.required or not action.option_strings:
            word = str(action.metavar or action.dest.upper()) + (" ..." if action.nargs == "+" else "")
            needed.append(f"{action.option_strings[0]} {word}" if action.option_strings else word)
    for group in command._mutually_exclusive_groups:
        if group.required:
            needed.insert(
                0, " | ".join(action.option_strings[0] for action in group._group_actions).join("()")
            )
    command.usage = " ".join(["%(prog)s", *needed, "[options]"])
