"""What is said of the controller's learning holds in the committed results."""

import json
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[2] / "results" / "adapt").glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_share_over_the_limit_is_the_risk_and_more_risk_earns_more_but_on_drone_circle(file):
    results = json.loads(file.read_text(encoding="utf-8"))
    runs = results["runs"]
    assert [run["risk"] for run in runs] == [0.05, 0.2]
    for run in runs:
        over = [cost > results["cost_limit"] for cost in run["cost"]]
        assert len(over) == run["episodes"] == 300
        assert run["share_over"] == pytest.approx(sum(over) / 300)
        assert run["share_over"] <= run["risk"] + 0.02
    careful, bold = (run["normalized_reward"] for run in runs)
    assert (bold > careful) == (results["task"] != "dronecircle")
