"""What mkdocs needs beside mkdocs.yml.

Pages in docs/ link to files outside of it as `../results/README.md`, which works where the repository is
browsed. On the site these files lie in `repository/`, with the same folders, and links are changed to that.
Notebooks become pages: their text and code, without outputs. `{{ settings }}` becomes the options of
`spi train`.
"""

import argparse
import html
import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from spi_diffusers.commands.train_options import add_config_arguments

ROOT = Path(__file__).resolve().parent.parent
#: Files of the repository that go into the site.
PATTERNS = (
    "results/*.md",
    "results/*.png",
    "results/*.json",
    "results/adapt/*",
    "results/paper/*.md",
    "results/paper/*.yaml",
    "results/paper/*.json",
    "results/paper/report/*",
    "model_cards/spi-*.md",
    "datasets/README.md",
    "datasets/*/*.png",
)


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's files, and a page for each notebook."""
    for pattern in PATTERNS:
        for path in sorted(ROOT.glob(pattern)):
            name = f"repository/{path.relative_to(ROOT).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=_notebook_page(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links out of docs/ lead to `repository/`, and list the settings where a page asks for them."""
    if "/" in page.file.src_uri:
        return markdown
    return markdown.replace("](../", "](repository/").replace("{{ settings }}", _settings_tables())


def _settings_tables() -> str:
    """One table a group, as `spi train --help-all` has them: name, values, what it does with its default."""
    parser = argparse.ArgumentParser(add_help=False)
    add_config_arguments(parser)
    lines: list[str] = []
    for group in parser._action_groups:
        if group._group_actions:
            lines += ["", f"## {group.title}", "", "| setting | values | meaning |", "|---|---|---|"]
        for option in group._group_actions:
            values, meaning = _cell(option.metavar), _cell(option.help).replace("%%", "%")
            lines.append(f"| `{option.dest}` | {values} | {meaning} |")
    return "\n".join(lines)


def _cell(text: Any) -> str:
    return html.escape(str(text), quote=False).replace("|", "&#124;")


def _notebook_page(path: Path) -> str:
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join([*parts, f"[Download this notebook]({path.name})"])
