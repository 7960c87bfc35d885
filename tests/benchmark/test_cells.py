"""One cell in this process: what it plays, what keeps it from training, and the points of its curve."""

import dataclasses
import os
import signal

import pytest
from benchmark_factory import make_cells, tiny_config
from training_factory import tiny_config as tiny_train_config

from spi_diffusers.benchmark import cells
from spi_diffusers.benchmark.cells import policies_along_training, resolve_configs, run_cell, write_cell
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.simulators import SimulatorStatus
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.training.trainer import Trainer


def make_cell(folder, algorithm):
    options = {"tasks": ["ballcircle"], "seeds": [0], "episodes": 2, "updates": {"": 20}}
    (cell,) = made = make_cells(["table1"], algorithms=[algorithm], **options)
    write_cell(folder, cell, resolve_configs(made, tiny_config(folder))[cell])


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
    monkeypatch.setattr(cells, "simulator_status", lambda name: missing)
    outcome = run_cell(tmp_path)
    assert outcome.status == "failed"
    assert outcome.message.endswith("ballcircle: pybullet not installed. Install it: pip install pybullet")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_what_an_interruption_saved_is_no_point_of_the_curve(tmp_path):
    config = tiny_train_config(tmp_path, updates=12, checkpoint_every=5, keep_checkpoints=9)
    data = load_transitions(None, "ballcircle")
    trainer = Trainer(config, data, progress=False)
    update = trainer.algorithm.update

    def update_and_interrupt(*inputs):
        if trainer.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*inputs)

    trainer.algorithm.update = update_and_interrupt
    assert trainer.train().step == 7
    resumed = Trainer(dataclasses.replace(config, resume=True), data, progress=False)
    resumed.train()
    assert resumed.checkpoints.steps() == [5, 7, 10, 12]
    found = [
        (step, policy.training_record["info"]["updates"]) for step, policy in policies_along_training(config)
    ]
    assert found == [(5, 5), (10, 10), (12, 12)]
