"""The benchmark scripts as a user runs them: real processes on one core, with few and short turns."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spi_diffusers.config.algorithms import BASELINES

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(
    "script",
    [
        "benchmark_training.py",
        "benchmark_algorithms.py",
        "benchmark_inference.py",
        "benchmark_time_to_safe.py",
    ],
)
def test_help_says_how_to_read_the_table(script):
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    assert "how to read it:" in done.stdout
    assert "worker" not in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("benchmark_training.py", ["--cores", 100_000], "--cores 100000: this process may use 1 to"),
        ("benchmark_training.py", ["--seconds", -1], "must be above zero, got -1"),
        ("benchmark_algorithms.py", ["--rounds", 0], "must be above zero, got 0"),
        ("benchmark_inference.py", ["--calls", 0], "must be above zero, got 0"),
        ("benchmark_time_to_safe.py", ["--settings", "128"], "invalid setting value: '128'"),
        ("benchmark_time_to_safe.py", ["--settings", "128x0"], "must be above zero, got 0"),
    ],
)
def test_bad_arguments_end_before_anything_is_measured(script, arguments, message, tmp_path):
    done = run(script, *arguments, "--output", tmp_path / "results.json")
    assert done.returncode != 0
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_training_benchmark_compares_the_plain_step_with_the_default(tmp_path):
    file = tmp_path / "new" / "results.json"
    done = run("benchmark_training.py", "--cores", 1, "--rounds", 3, "--seconds", 0.5, "--output", file)
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    assert results["settings"]["batch_size"] == 256
    assert results["settings"]["hidden_dims"] == [256, 256, 256]
    assert results["machine"]["versions"]["torch"]
    (part,) = results["results"]
    rows = {row["variant"]: row for row in part["variants"]}
    plain, default = rows["plain"], rows[part["default"]]
    assert (plain["mixed_precision"], plain["activation"], plain["guidance"]) == ("no", "mish", "chain")
    assert default["mixed_precision"] in ("bf16", "no")
    assert (default["activation"], default["guidance"]) == ("silu", "one_step")
    assert plain["times_plain"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    for row in rows.values():
        assert len(row["rounds"]) == 3
        assert min(row["rounds"]) <= row["updates_per_second"] <= max(row["rounds"])
        assert row["threads_per_operation"] == 1
        assert not row["overlap"]
        assert row["peak_memory_mb"] > 50
    # SiLU and one-step guidance do less work on any machine.
    assert rows["+ one-step guidance"]["times_plain"]["median"] > 1.5
    assert "(default)" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error(tmp_path):
    done = run("benchmark_training.py", "--device", "cuda", "--output", tmp_path / "results.json")
    assert done.returncode != 0
    assert "error: --device cuda: PyTorch" in done.stderr
    assert "finds no GPU on this machine" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_is_waited_for_around_each_turn_and_stands_beside_the_cpu(monkeypatch, capsys):
    """The GPU is a CPU that says so. Updates count when the GPU has done them."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])  # as Python does
    script, helpers = map(importlib.import_module, ("benchmark_training", "helpers"))
    done, waits = [], []  # updates until each wait, and the waits

    class Training(helpers.MeasuredTraining):
        def __init__(self, overrides, dataset_name):
            super().__init__({"network.hidden_dims": [8], "batch_size": 16}, dataset_name)
            self.device = torch.device(overrides["device"])

        def _wait(self):
            done.append(self.algorithm.updates)
            super()._wait()

    monkeypatch.setattr(script, "MeasuredTraining", Training)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(device.type))
    arguments = ["--device", "cuda", "--rounds", "1", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", ["benchmark_training.py", *arguments])
    script.main()
    table = capsys.readouterr().out
    assert "CPU, 1 thread(s)" in table
    assert "a GPU" in table
    assert "1.00" in table
    # Before and after two updates that are not measured, and before and after the turn.
    assert waits == ["cuda"] * 4
    before, after = done[-2:]
    assert done[-4:-2] == [before - 2, before]
    assert after > before


@pytest.mark.slow
def test_algorithms_are_compared_with_spi(tmp_path):
    file = tmp_path / "results.json"
    done = run("benchmark_algorithms.py", "--rounds", 2, "--seconds", 0.2, "--output", file)
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    rows = {row["algorithm"]: row for row in results["results"]}
    assert list(rows) == ["spi", "spi-paper", *BASELINES]
    assert rows["spi"]["times_spi"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert rows["spi"]["updates_as_long_as_spi"] == results["settings"]["spi_updates"] == 15_000
    for row in rows.values():
        assert len(row["rounds"]) == 2
        assert row["updates_as_long_as_spi"] == round(15_000 * row["times_spi"]["median"])
    # One network with a plain loss against a diffusion model and two critics; ten critics against two.
    assert rows["bc"]["times_spi"]["median"] > 2 > 1 > rows["bear-lag"]["times_spi"]["median"]
    assert "as long as SPI" in done.stdout


@pytest.mark.slow
def test_inference_benchmark_measures_every_extraction(tmp_path):
    file = tmp_path / "results.json"
    done = run("benchmark_inference.py", "--calls", 20, "--candidates", 12, "--output", file)
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    assert results["settings"]["policy"] == "untrained"
    (part,) = results["results"]
    assert part["hidden_dims"] == [256, 256, 256]
    assert [row["extraction"] for row in part["extractions"]] == [
        *("reward", "safe, limit", "safe, budget"),
        *("safe, budget, exported", "safe, budget, student", "safe, budget, student, exported"),
        "the controller itself",
    ]
    for row in part["extractions"]:
        assert row["calls"] == 20
        assert row["candidates"] == (12 if row["extraction"] == "reward" else 11)
        assert 0 < row["latency_ms_min"] <= row["latency_ms_median"] <= row["latency_ms_99"]
        assert row["latency_ms_32"] > 0
        assert row["actions_per_second"] > 0


@pytest.mark.slow
def test_time_to_a_safe_policy_is_measured_from_the_start_of_python(tmp_path):
    file = tmp_path / "results.json"
    small = ["--settings", "16x100", "16x300", "--cores", 1, "--episodes", 3]
    done = run("benchmark_time_to_safe.py", *small, "--output", file)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(file.read_text())["results"]
    assert (first["hidden_dims"], first["updates"], second["updates"]) == ([16, 16, 16], 100, 300)
    for row in (first, second):
        assert list(row["stages"]) == ["imports", "data", "training", "evaluation_critic"]
        assert min(row["stages"].values()) > 0
        assert sum(row["stages"].values()) == pytest.approx(row["seconds"], abs=0.3)
        assert row["within_limit"] in (0.0, 1 / 3, 2 / 3, 1.0)
    assert second["stages"]["training"] > first["stages"]["training"]
