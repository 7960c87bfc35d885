"""One cell in this process: what it plays, and what keeps it from training."""

import pytest
from benchmark_factory import tiny_config

from spi_diffusers.benchmark import preflight
from spi_diffusers.benchmark.cell_folder import write_cell
from spi_diffusers.benchmark.cell_run import run_cell
from spi_diffusers.benchmark.preflight import resolve_configs
from spi_diffusers.benchmark.suites import make_cells
from spi_diffusers.data.simulators import SimulatorStatus
from spi_diffusers.pipelines import SPIPolicyPipeline


def make_cell(folder, algorithm):
    options = {"tasks": ["ballcircle"], "seeds": [0], "episodes": 2, "updates": {"": 20}}
    (cell,) = cells = make_cells(["table1"], algorithms=[algorithm], **options)
    write_cell(folder, cell, resolve_configs(cells, tiny_config(folder))[cell])


def test_safe_spi_is_played_with_its_running_cost_and_without(tmp_path, monkeypatch):
    pytest.importorskip("bullet_safety_gym")
    make_cell(tmp_path, "spi")
    told, real = [], SPIPolicyPipeline.__call__

    def recording(self, *arguments, **options):
        told.append(options.get("cost_budget") is not None)
        return real(self, *arguments, **options)

    monkeypatch.setattr(SPIPolicyPipeline, "__call__", recording)
    outcome = run_cell(tmp_path)
    assert outcome.status == "done", outcome.message
    found = {entry.feedback: entry for entry in outcome.entries}
    assert found.keys() == {True, False}
    assert {(e.algorithm, e.extraction, e.cost_limit, e.episodes) for e in outcome.entries} == {
        ("spi", "safe", 10.0, 2)
    }
    assert len(found) == len(outcome.entries) == 2
    assert told == [True] * 200 + [False] * 200


def test_a_cell_whose_task_cannot_be_played_here_is_not_trained(tmp_path, monkeypatch):
    """On a cluster, the node may lack what the machine that started the benchmark has."""
    make_cell(tmp_path, "bc")
    missing = SimulatorStatus(False, "pybullet not installed", "pip install pybullet")
    monkeypatch.setattr(preflight, "simulator_status", lambda name: missing)
    outcome = run_cell(tmp_path)
    assert outcome.status == "failed"
    assert outcome.message.endswith("ballcircle: pybullet not installed. Install it: pip install pybullet")
    assert not (tmp_path / "metrics.jsonl").exists()
