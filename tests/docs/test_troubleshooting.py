"""Every message that the troubleshooting page quotes is one that the code has."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HOLE = "…"  # what a message fills in
QUOTED = [text.strip() for _, text in re.findall(r"^### (`+)(.+?)\1$", PAGE, re.MULTILINE)]


@cache
def messages() -> tuple[str, ...]:
    """All texts in the package's code, f-strings with a hole for each value."""
    found = []
    for path in sorted((ROOT / "spi_diffusers").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def test_page_quotes_messages() -> None:
    assert len(QUOTED) > 30
    assert len(QUOTED) == len(set(QUOTED))


@pytest.mark.parametrize("quoted", QUOTED)
def test_quoted_message_is_in_the_code(quoted: str) -> None:
    parts = [re.escape(part) for part in quoted.strip(HOLE).split(HOLE)]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    assert any(pattern.search(message) for message in messages())
