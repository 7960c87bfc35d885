"""Parts of messages: values and errors, short, on one line, without access tokens. Imports nothing heavy."""

import math
import re
from typing import Any

#: Access tokens that were used, whatever form they have, so that no message shows them.
USED_TOKENS: set[str] = set()


def one_line(text: str, longest: int = 200) -> str:
    """A text on one line, cut where it has more than `longest` characters."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def shown(value: Any) -> str:
    """How messages show a value: on one line, at most 200 characters."""
    return one_line(repr(value))


def shown_limit(limit: Any) -> str:
    """How messages and tables show a cost limit: a number, or one for each of several costs."""
    return ", ".join(f"{each:g}" for each in limit) if isinstance(limit, tuple | list) else f"{limit:g}"


def decimals(largest: float) -> int:
    """Of figures in a table: one, or what shows three digits of the largest where that is below 1."""
    return min(2 - math.floor(math.log10(largest)), 12) if 0 < largest < 1 else 1


def say(error: BaseException) -> str:
    """An error of another library as a part of one line of text: its type and its message."""
    text = one_line(str(error), 400)  # other libraries quote bytes without end
    return hide_tokens(f"{type(error).__name__}: {text}".rstrip(".: "))


def is_explained(error: Exception) -> bool:
    """Whether an error says what is wrong with the input, the files or the installation."""
    ours = type(error).__module__.startswith("spi_diffusers.")
    return ours or isinstance(error, ValueError | OSError | ImportError)


def explanation(error: Exception) -> str:
    """What such an error says, on one line, without access tokens."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None and error.filename is None and error.strerror:
        text = error.strerror  # without "[Errno 28]": our messages name the file themselves
    return hide_tokens(" ".join(text.split()) or type(error).__name__)


def hide_tokens(text: str) -> str:
    """A text that may be shown: without the access tokens that an error of another library may have in it."""
    for token in USED_TOKENS:
        text = text.replace(token, "<token>")
    return re.sub(r"\b(?:hf|api_org)_[A-Za-z0-9]{6,}|(?<=Bearer )[^\s'\"]+", "<token>", text)
