"""The committed tables of the paper's experiments are those of the committed results."""

import shlex
from pathlib import Path

from spi_diffusers.benchmark.report import TABLES_FILE, write_report

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "results" / "paper"


def documented_results() -> list[Path]:
    """The results that the documented command makes the report from."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("spi benchmark --report"))
    words = shlex.split(line)
    patterns = words[words.index("--report") + 1 : words.index("--output")]
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def test_committed_tables_come_from_the_committed_results(tmp_path):
    results = documented_results()
    assert len(results) == 9  # the paper's systems, and safe SPI on eight tasks
    write_report(results, tmp_path)
    written = (tmp_path / TABLES_FILE).read_text(encoding="utf-8")
    assert written == (FOLDER / "report" / TABLES_FILE).read_text(encoding="utf-8")
