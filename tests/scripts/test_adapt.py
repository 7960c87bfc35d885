"""Episodes in a row, on a small policy."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "adapt.py"


def test_episodes_in_a_row_are_written_and_drawn(run_folder, tmp_path, monkeypatch):
    pytest.importorskip("bullet_safety_gym")
    words = ["--cost-limit", "20", "--episodes", "4", "--parallel", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(run_folder), *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert not ended.value.code
    results = json.loads((tmp_path / "ballcircle-limit20.json").read_text())
    assert [run["risk"] for run in results["runs"]] == [0.05, 0.2]
    for run in results["runs"]:
        assert len(run["cost"]) == len(run["scale"]) == 4
        assert run["share_over"] == sum(cost > 20 for cost in run["cost"]) / 4
    assert (tmp_path / "ballcircle-limit20.png").stat().st_size > 1000
