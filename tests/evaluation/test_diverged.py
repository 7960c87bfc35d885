import json

import pytest
from evaluation_factory import make_entry

from spi_diffusers.evaluation.results import (
    DivergedRun,
    ResultsFileError,
    merge_results,
    read_diverged,
    read_results,
    write_results,
)

BALL = "OfflineBallCircle-v0"


def test_diverged_runs_stay_beside_the_entries(tmp_path):
    file = tmp_path / "results.json"
    runs = [DivergedRun(BALL, "spi", None, 3, "loss is nan"), DivergedRun(BALL, "cpq", 10.0, 0, "inf")]
    write_results(file, [make_entry()], runs)
    assert read_diverged(file) == [runs[1], runs[0]]
    assert read_results(file) == [make_entry()]
    merge_results(file, [make_entry(train_seed=1)])
    assert read_diverged(file) == [runs[1], runs[0]]
    assert len(read_results(file)) == 2
    write_results(file, [make_entry()])
    assert read_diverged(file) == []
    assert "diverged" not in json.loads(file.read_text())


def test_a_run_with_results_did_not_diverge_after_all(tmp_path):
    file = tmp_path / "results.json"
    at_ten, at_twenty = (DivergedRun(BALL, "cpq", limit, 0, "inf") for limit in (10.0, 20.0))
    merge_results(file, [], [at_ten, at_twenty, DivergedRun(BALL, "cpq", 10.0, 1, "inf")])
    merge_results(file, [make_entry(algorithm="cpq", extraction="policy", feedback=False, cost_limit=10)])
    assert [(run.cost_limit, run.train_seed) for run in read_diverged(file)] == [(10.0, 1), (20.0, 0)]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("none", "must be a list"),
        ([{"task": BALL}], "must have the fields algorithm, cost_limit, message, task, train_seed"),
        ([[]], "must have the fields"),
    ],
)
def test_what_is_no_list_of_runs_is_refused(tmp_path, runs, message):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"format_version": 1, "entries": [], "diverged": runs}))
    with pytest.raises(ResultsFileError, match=message):
        read_diverged(file)


@pytest.mark.parametrize(
    ("field", "value"),
    [("task", "ballcircle"), ("algorithm", ""), ("cost_limit", -1.0), ("train_seed", -1), ("message", 3)],
)
def test_every_field_is_checked(field, value):
    values = DivergedRun(BALL, "spi", None, 3, "loss is nan").to_dict()
    assert DivergedRun.from_dict(values).to_dict() == values
    with pytest.raises(ValueError, match=field.replace("_", ".")):
        DivergedRun.from_dict({**values, field: value})
