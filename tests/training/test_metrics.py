import json

import numpy as np
import pytest

from spi_diffusers.training.metrics import MetricsWindow, TrainingLogError, last_step, read_training_log


def _write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_series_by_metric_with_gaps(tmp_path):
    log = read_training_log(
        _write(
            tmp_path / "metrics.jsonl",
            {"step": 10, "lr": 0.1, "loss": 2, "device": "cpu"},
            {"step": 20, "lr": 0.1, "loss": None},
            {"step": 30, "loss": float("nan"), "updates_per_second": 41.5},
        )
    )

    assert set(log) == {"lr", "loss", "updates_per_second"}
    assert log["lr"][0].tolist() == [10, 20]
    steps, values = log["loss"]
    assert steps.tolist() == [10, 30]
    np.testing.assert_array_equal(values, [2.0, np.nan])


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path):
    log = read_training_log(
        _write(
            tmp_path / "m.jsonl",
            *({"step": step, "loss": value} for step, value in [(1, 1), (3, 3), (2, 5), (3, 6)]),
        )
    )

    assert log["loss"][0].tolist() == [1, 2, 3]
    assert log["loss"][1].tolist() == [1.0, 5.0, 6.0]


@pytest.mark.parametrize("broken", ['{"step": 20, "lo', '{"step": 2', "\x00\x00\x00", '{"loss": 1}'])
def test_broken_last_line_is_left_out(tmp_path, broken):
    log = read_training_log(_write(tmp_path / "m.jsonl", {"step": 10, "loss": 1.0}, broken))
    assert log["loss"][0].tolist() == [10]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 20, "lo\n', "line 2: "),
        ("[1]\n", 'line 2: expected an object with an integer "step"'),
        ('{"loss": 1}\n', 'line 2: expected an object with an integer "step"'),
        ('{"step": 2, "loss": [1]}\n', "line 2: metric 'loss' is not a number"),
    ],
)
def test_broken_line_in_the_middle_is_an_error(tmp_path, line, message):
    path = _write(tmp_path / "m.jsonl", {"step": 10}, line, {"step": 30})
    with pytest.raises(TrainingLogError, match=message):
        read_training_log(path)


def test_empty_and_missing_file(tmp_path):
    assert read_training_log(_write(tmp_path / "m.jsonl")) == {}
    with pytest.raises(FileNotFoundError, match="no training log at"):
        read_training_log(tmp_path / "none.jsonl")


def test_means_are_of_the_updates_since_the_last_log_also_after_resuming():
    window = MetricsWindow()
    window.add({"loss": 1.0})
    window.add({"loss": 3.0})
    assert window.close() == window.last == {"loss": 2.0}
    window.add({"loss": 5.0})
    resumed = MetricsWindow()
    resumed.load_state(json.loads(json.dumps(window.state())))
    resumed.add({"loss": 6.0})
    assert (resumed.last, resumed.close()) == ({"loss": 2.0}, {"loss": 5.5})


def test_the_last_step_is_that_of_the_last_complete_line(tmp_path):
    assert last_step(tmp_path / "none.jsonl") == 0
    assert last_step(_write(tmp_path / "empty.jsonl")) == 0
    lines = [{"step": step, "text": "x" * 40_000} for step in (10, 20)]
    assert last_step(_write(tmp_path / "long.jsonl", *lines, '{"step": 3')) == 20
