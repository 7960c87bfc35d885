"""The comparison of assessments with the simulator, on a benchmark of a tiny training."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from spi_diffusers.cli import main

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compare_assessments.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])  # as Python does
    return runpy.run_path(str(SCRIPT))


def row(scale, limit, expected, played, low, high):
    figures = {
        "expected": expected,
        "low": low,
        "high": high,
        "played": played,
        "within": low <= played <= high,
    }
    return {"reward_range": scale, "cost_limit": limit, "return": figures, "cost": figures}


def test_summary_by_hand(script):
    rows = [row(100, 10, 50, 45, 40, 60), row(10, 20, 4, 6, 4, 5), row(10, 5, 3, 4, 1, 4)]
    found = script["summary"](rows)
    assert found["cells"] == 3
    assert found["return"]["within"] == pytest.approx(2 / 3)
    assert found["return"]["median_width"] == pytest.approx(0.2)  # of 0.2, 0.1 and 0.3
    assert found["return"]["median_error"] == pytest.approx(0.1)  # of 0.05, 0.2 and 0.1
    assert found["return"]["spearman"] == pytest.approx(0.5)  # 0.5, 0.4, 0.3 against 0.45, 0.6, 0.4
    assert found["cost"]["median_width"] == pytest.approx(0.6)  # of 2, 0.05 and 0.6


def test_a_benchmark_without_what_is_compared_is_refused(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="holds no training of spi that was played"):
        script["main"]()


@pytest.mark.slow
def test_every_limit_that_was_played_is_compared(script, tmp_path, monkeypatch):
    config = tmp_path / "tiny.yaml"
    config.write_text("updates: 40\nbatch_size: 32\nnetwork: {hidden_dims: [16]}\n")
    folder, output = tmp_path / "safe", tmp_path / "assess.json"
    words = ["--tasks", "ballcircle", "--seeds", "0", "--episodes", "2", "--config", str(config), "--quiet"]
    assert main(["benchmark", "--suite", "safe", *words, "--output", str(folder)]) == 0
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(folder), "--output", str(output)])
    assert script["main"]() == 0
    written = json.loads(output.read_text())
    assert [one["cost_limit"] for one in written["rows"]] == [5, 10, 15, 20, 30, 40]
    for one in written["rows"]:
        for name in ("return", "cost"):
            assert one[name]["low"] <= one[name]["expected"] <= one[name]["high"]
            assert one[name]["within"] == (one[name]["low"] <= one[name]["played"] <= one[name]["high"])
