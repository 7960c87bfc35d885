"""Reading JSON and YAML: plain data within limits, whoever wrote it. Imports nothing heavy."""

import functools
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from spi_diffusers.messages import one_line

if TYPE_CHECKING:
    import yaml

#: Deeper than anything of ours, and far from where Python's own recursion ends.
MAX_DEPTH = 100
#: Of a results file of a whole benchmark; what is read into memory takes up to twenty times as much.
MAX_JSON_BYTES = 30_000_000
#: Configurations and the headers of cards are smaller; YAML of a megabyte takes seconds to read.
MAX_YAML_BYTES = 200_000


class DocumentError(ValueError):
    """A text cannot be read; the message is one line, and names the line of the text where that is known."""


def parse_json(text: str | bytes, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """What a JSON text says.

    Args:
        text: The text, in UTF-8 if it is bytes; a byte order mark is skipped.
        max_bytes: Its largest size.

    Raises:
        DocumentError: It is no JSON, too long, is nested too deeply, or has a key twice in an object.
    """
    text = _decoded(text, max_bytes).removeprefix("\ufeff")
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except ValueError as error:
        raise DocumentError(one_line(str(error))) from None
    _check_depth(content)
    _check_text(content, text)
    return content


def parse_yaml(text: str | bytes) -> Any:
    """What a YAML text says, with scalars as in YAML 1.2: `no` is text, 1e-3 is a number, and 010 is none.

    Args:
        text: The text, in UTF-8 if it is bytes.

    Raises:
        DocumentError: It is no YAML, too long, is nested too deeply, or has aliases, tags or a key twice.
    """
    import yaml

    text = _decoded(text, MAX_YAML_BYTES)
    try:
        content = yaml.load(text, _loader())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise DocumentError(f"not valid YAML{place}: {one_line(problem)}") from None
    except ValueError as error:  # a number of thousands of digits
        raise DocumentError(f"not valid YAML: {one_line(str(error))}") from None
    _check_text(content, text)
    return content


@functools.cache
def _loader() -> "type[yaml.SafeLoader]":
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain data only; what anchors, tags and depth would allow beyond that is refused."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            problem = ""
            if isinstance(event, yaml.AliasEvent):
                problem = "aliases are not read"
            elif getattr(event, "tag", None) is not None:
                problem = f"tags are not read, such as {event.tag}"
            elif self.depth >= MAX_DEPTH:
                problem = f"it is nested too deeply, in more than {MAX_DEPTH} levels"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    problem = "a key must be text"
                elif key.value in seen:
                    problem = f"{key.value} is set twice"
                else:
                    seen.add(key.value)
                    continue
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            return super().construct_mapping(node, deep)

    kept = ("null", "str", "seq", "map")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in kept]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for name, (pattern, first) in _SCALARS.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^({pattern})$"), list(first))
    return Loader


#: Pattern and possible first characters of scalars that are no text.
_SCALARS = {
    "bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    "float": (
        r"[-+]?(\.\d+|(0|[1-9]\d*)(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


def _decoded(text: str | bytes, max_bytes: int) -> str:
    if len(text if isinstance(text, bytes) else text.encode(errors="replace")) > max_bytes:
        raise DocumentError(f"it has more than {max_bytes} bytes")
    try:
        return text.decode("utf-8") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not in UTF-8: {error.reason} at byte {error.start}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        (twice, _), *_ = (Counter(name for name, _ in pairs)).most_common(1)
        raise ValueError(f"{twice:.100} is set twice")
    return content


def _check_text(content: Any, text: str) -> None:
    """Refuse half of a surrogate pair, which could be neither shown nor written."""
    if "\\u" in text or "\\U" in text:
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DocumentError(f"it has a character that is none: {error.object[error.start]!a}") from None


def _check_depth(content: Any) -> None:
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(MAX_DEPTH):
        groups = [part.values() if isinstance(part, dict) else part for part in level]
        level = [item for group in groups for item in group if isinstance(item, dict | list)]
        if not level:
            return
    raise DocumentError(f"it is nested too deeply, in more than {MAX_DEPTH} levels")
