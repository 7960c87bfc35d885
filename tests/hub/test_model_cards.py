"""model_cards/: up to date, and its snippets run (with small, untrained policies of the right sizes)."""

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from policy_factory import make_policy

from spi_diffusers.data.tasks import get_task
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish import copy_folder

ROOT = Path(__file__).resolve().parents[2]
CARDS = sorted((ROOT / "model_cards").glob("spi-*.md"))
MAIN = ROOT / "model_cards" / "spi-ballcircle.md"


def run(words, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


def test_cards_say_what_the_committed_results_say():
    assert MAIN in CARDS
    run([sys.executable, str(ROOT / "scripts" / "render_model_cards.py"), "--check"], ROOT)


def test_what_the_cards_link_to_exists():
    for card in CARDS:
        links = re.findall(r"\]\((\.\.[^)]+)\)", card.read_text())
        assert len(links) >= 2
        assert all((card.parent / link).is_file() for link in links)


def check_snippets(card, folder, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(folder / "modules"))
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.chdir(folder)
    task = get_task(card.stem.removeprefix("spi-")).name
    make_policy(task=task).save_pretrained(folder / "policy")
    files = read_policy_files(folder / "policy")
    copy_folder(files, "org/name", folder / "published")
    snippets = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        here = snippet.replace(f'"org/{card.stem}"', repr(str(folder / "published")))
        assert here != snippet
        with redirect_stdout(io.StringIO()) as output:
            exec(here, {"__name__": "__main__"})
        assert output.getvalue()


def test_snippets_of_the_main_card_run(tmp_path, monkeypatch):
    check_snippets(MAIN, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("card", [card for card in CARDS if card != MAIN], ids=lambda card: card.stem)
def test_snippets_run(card, tmp_path, monkeypatch):
    check_snippets(card, tmp_path, monkeypatch)
