"""The documentation builds strictly, without a network, and asks for nothing from one when it is read."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import leaf_types

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # A proxy that nobody listens on: whatever tried to reach a network would fail.
    environment = os.environ | {
        "NO_MKDOCS_2_WARNING": "1",
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    process = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert "WARNING" not in process.stderr, process.stderr
    return folder


def test_every_page_of_the_navigation_is_there(site: Path) -> None:
    pages = re.findall(r"(\S+)\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(pages) > 10
    # mkdocs makes the index of its folder of a README.
    missing = [page for page in pages if not (site / f"{re.sub('README$', 'index', page)}.html").exists()]
    assert missing == []


def test_pages_load_nothing_from_the_network(site: Path) -> None:
    tags = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^>]*>")
    found = {page.name: tags.findall(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert {name: links for name, links in found.items() if links} == {}


def test_the_api_page_shows_docstrings_with_their_arguments(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("load_transitions", "make_env", "SPIPolicyPipeline", "cost_budget", "guidance_loss"):
        assert name in text


def test_the_settings_page_lists_every_option_of_training_with_its_default(site: Path) -> None:
    text = (site / "settings.html").read_text(encoding="utf-8")
    missing = [name for name in leaf_types(TrainConfig) if f"<code>{name}</code>" not in text]
    assert missing == []
    assert "batches are mixed within them. (default: 500000)" in text


def test_files_of_the_repository_are_part_of_the_site(site: Path) -> None:
    results = (site / "results.html").read_text(encoding="utf-8")
    assert 'src="repository/results/ballcircle_limits.png"' in results
    assert (site / "repository/results/ballcircle_limits.png").stat().st_size > 0
