"""The whole evaluation job, on a small policy in the real simulator."""

import pytest
from policy_factory import edit_json, make_run

from spi_diffusers.evaluation.evaluate import run_evaluation
from spi_diffusers.evaluation.results import read_results


@pytest.fixture
def run(tmp_path):
    pytest.importorskip("bullet_safety_gym")
    return make_run(tmp_path / "run", entries=())


def evaluate(run, limit, output):
    options = {"cost_limits": [limit], "episodes": 1, "extractions": ["safe"], "output": output}
    return run_evaluation(run, **options, plots=False, video=False, progress=False)


def test_results_of_another_training_of_the_same_name_are_replaced(run, tmp_path, caplog):
    evaluate(run, 10.0, tmp_path / "out")
    evaluate(run, 20.0, tmp_path / "out")
    assert [one.cost_limit for one in read_results(tmp_path / "out" / "results.json")] == [10.0, 20.0]
    # Other weights of the same task, algorithm and seed.
    edit_json(run / "policy" / "train_info.json", train_seconds=99.0)
    evaluate(run, 40.0, tmp_path / "out")
    assert [one.cost_limit for one in read_results(tmp_path / "out" / "results.json")] == [40.0]
    assert "2 results of another training of the same name are replaced" in caplog.text


def test_data_that_the_policy_was_not_trained_on_is_not_compared_with(run, tmp_path, caplog):
    # The small policy's record has a made-up checksum.
    assert evaluate(run, 10.0, tmp_path / "out").behaviour == []
    assert "embedded:OfflineBallCircle-v0 is not what the policy was trained on" in caplog.text


def test_the_datas_own_figures_are_of_the_limits_that_were_played(run, tmp_path):
    options = {"dataset": "embedded", "episodes": 1, "extractions": ["safe"], "output": tmp_path / "out"}
    for limit in (10.0, 20.0):
        found = run_evaluation(run, **options, cost_limits=[limit], plots=False, video=False, progress=False)
        assert [row.cost_limit for row in found.behaviour] == [limit]
