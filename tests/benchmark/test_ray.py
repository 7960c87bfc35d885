"""The benchmark on a Ray cluster of this machine."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from benchmark_factory import steps_done, tiny_config

from spi_diffusers.benchmark.runner import RayExecutor, WorkerDiedError
from spi_diffusers.cli import main
from spi_diffusers.evaluation.results import read_results


def ray_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes of the cluster that run a cell right now."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "_run_on_node" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_is_replaced_and_the_cell_goes_on(tmp_path):
    pytest.importorskip("ray")
    pytest.importorskip("bullet_safety_gym")
    output = tmp_path / "out"
    arguments = ["benchmark", "--suite", "table1", "--tasks", "ballcircle", "--episodes", "2", "--seeds", "0"]
    arguments += ["--algorithms", "spi-paper", "bc", "--updates", "1000", "--config", tiny_config(tmp_path)]
    arguments += ["--output", str(output), "--quiet", "--jobs", "1", "--ray-address", "local"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spi_diffusers.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    folder = output / "runs" / "ballcircle" / "spi-paper" / "seed0"
    deadline = time.monotonic() + 180
    while steps_done(folder) < 100:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the cell does not start"
        time.sleep(0.01)
    before = (folder / "metrics.jsonl").read_bytes().splitlines()[:10]
    (worker,) = ray_workers(process)
    worker.kill()
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "(attempt 1 of 2)" in errors
    entries = read_results(output / "results.json")
    assert [(entry.algorithm, entry.updates) for entry in entries] == [("bc", 1000), ("spi-paper", 1000)]
    # It went on from a checkpoint: the log has every step once, and of the first fifty the same lines, with
    # their times.
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(5, 1001, 5))
    assert lines[:10] == before


@pytest.mark.slow
def test_an_error_on_a_node_is_told_by_its_last_words(tmp_path):
    pytest.importorskip("ray")
    executor = RayExecutor("local")
    try:
        # The folder of no cell: the task fails on the node, many frames deep.
        with pytest.raises(WorkerDiedError, match=r"nothing: FileNotFoundError: .*cell\.json") as caught:
            executor.run(tmp_path / "nothing")
    finally:
        executor.stop()
    assert "Traceback" not in str(caught.value)


def test_without_ray_the_extra_is_named(tmp_path, capsys):
    try:
        import ray  # noqa: F401
    except ImportError:
        arguments = ["benchmark", "--suite", "table1", "--tasks", "ballcircle", "--ray-address", "auto"]
        assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
        assert "pip install 'spi-diffusers[ray]'" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    else:
        pytest.skip("ray is installed")
