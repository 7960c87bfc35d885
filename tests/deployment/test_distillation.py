"""Distillation: what a student learns, and what happens to the folder that it is put into."""

import json

import numpy as np
import pytest
import torch
from export_factory import policy_with_margins
from pipeline_factory import make_normalizer, make_pipeline
from policy_factory import make_certificate, make_run

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.deployment.distillation import DistillationSpec, distill, train_student
from spi_diffusers.evaluation.certificate import own_certificate
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.pipelines.saving import add_component


def data(rows: int = 1500, costs: float = 1.0) -> TransitionDataset:
    rng = np.random.default_rng(0)
    observation = rng.uniform(-1.0, 1.0, (rows + 1, 3))
    return TransitionDataset.from_columns(
        {
            "observation": observation[:-1],
            "action": rng.uniform(0.0, 1.0, (rows, 2)),
            "reward": rng.normal(size=rows),
            "cost": costs * (rng.random(rows) < 0.2),
            "next_observation": observation[1:],
            "terminated": np.zeros(rows, bool),
            "truncated": np.arange(rows) % 100 == 99,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("policy") / "policy"
    policy_with_margins().save_pretrained(place)
    return place


def files(folder, but=("model_index.json",)):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in but and "student" not in path.parts
    }


@pytest.mark.parametrize("unit", [0.003, 5000.0])
def test_a_student_learns_what_its_teacher_does_in_any_units(unit):
    pipeline = policy_with_margins(unit)
    few, many = (
        train_student(pipeline, data(costs=unit), DistillationSpec(updates=updates), progress=False)[1]
        for updates in (20, 1500)
    )
    assert (many.states, many.held_out) == (1425, 75)
    assert many.action_error < 0.05 < few.action_error
    assert many.same_choice > 0.8 > few.same_choice


def test_the_folder_has_a_student_then_and_all_else_is_as_it_was(folder):
    before = files(folder)
    distill(folder, data(300), updates=3, progress=False)
    assert files(folder) == before
    pipe = SPIPolicyPipeline.from_pretrained(folder)
    assert pipe.extractions == ("safe", "reward", "fast")
    assert pipe(np.zeros(3), cost_limit=20, fast=True).by_student.tolist() == [True]
    first = pipe.student.state_dict()
    distill(folder, data(300), updates=3, progress=False)
    again = SPIPolicyPipeline.from_pretrained(folder).student.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first), "a seed gives the same weights"
    distill(folder, data(300), updates=3, seed=1, progress=False)
    other = SPIPolicyPipeline.from_pretrained(folder).student.state_dict()
    assert not torch.equal(first["net.0.weight"], other["net.0.weight"])


def test_record_and_certificate_are_still_the_policys(tmp_path):
    run = make_run(tmp_path / "run")
    make_certificate(run).save(run / "policy" / "certificate.json")
    distill(run, "embedded", updates=2, progress=False)
    assert own_certificate(run) is not None
    assert SPIPolicyPipeline.from_pretrained(run / "policy").is_as_trained


def test_whoever_is_stopped_leaves_a_policy_that_acts(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    student = SPIPolicyPipeline.from_pretrained(folder).student
    monkeypatch.setattr("spi_diffusers.pipelines.saving.replace_folder", full)
    with pytest.raises(OSError, match="No space left"):
        add_component(folder, "student", student)
    pipe = SPIPolicyPipeline.from_pretrained(folder)
    assert pipe.student is None
    assert pipe(np.zeros(3), cost_limit=20).actions.shape == (2,)
    monkeypatch.undo()
    add_component(folder, "student", student)
    assert SPIPolicyPipeline.from_pretrained(folder).student is not None
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_what_cannot_be_distilled_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match="updates must be a whole number of at least 1"):
        distill(folder, data(300), updates=0)
    with pytest.raises(FileNotFoundError, match="typo"):
        distill(tmp_path / "typo")
    make_pipeline(evaluation_critic=None).save_pretrained(tmp_path / "policy")
    with pytest.raises(ValueError, match="without an evaluation critic takes no limit"):
        distill(tmp_path / "policy", data(300))
    narrow = make_pipeline(normalizer=make_normalizer())
    narrow.save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match="observations of 8 numbers, but the policy's have 3"):
        distill(tmp_path / "narrow", "embedded")
    assert "student" not in json.loads((tmp_path / "narrow" / "model_index.json").read_text()) or (
        SPIPolicyPipeline.from_pretrained(tmp_path / "narrow").student is None
    )
