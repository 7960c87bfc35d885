"""What an export writes, that it acts as the pipeline, and what is refused."""

import hashlib
import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from export_factory import exported, policy_with_margins
from pipeline_factory import make_normalizer, make_pipeline, make_student
from policy_factory import make_certificate, make_run

from spi_diffusers.algorithms.losses import vp_betas
from spi_diffusers.deployment import parity
from spi_diffusers.deployment.export import export
from spi_diffusers.deployment.graph import make_decision
from spi_diffusers.deployment.parity import ExportError, check_parity, random_observations
from spi_diffusers.evaluation.certificate import weights_sha256
from spi_diffusers.models import BatchConstrainedActor, DeterministicActor, DiffusionActor, GaussianActor
from spi_diffusers.pipelines import BaselinePolicyPipeline
from spi_diffusers.runtime import ExportedPolicy


def baseline(actor):
    bounds = {"action_low": [-1.0, 0.0], "action_high": [1.0, 3.0]}
    return BaselinePolicyPipeline(actor, make_normalizer(), algorithm="any", **bounds)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return exported(policy_with_margins(), tmp_path_factory.mktemp("made"))


def test_the_contract_says_what_goes_in_and_what_comes_out(made):
    contract = json.loads((made / "policy.json").read_text())
    graph = (made / "policy.onnx").read_bytes()
    index = json.loads((made.parent / "policy" / "model_index.json").read_text())
    assert sorted(path.name for path in made.iterdir()) == ["policy.json", "policy.onnx"]
    assert contract["graph"] == {
        "file": "policy.onnx",
        "sha256": hashlib.sha256(graph).hexdigest(),
        "opset": 18,
    }
    assert contract["policy"] == {"weights_sha256": weights_sha256(index), "cost_margin": 1.25}
    assert (contract["extraction"], contract["max_episode_steps"]) == ("safe", 100)
    shapes = {name: entry["shape"] for name, entry in contract["inputs"].items()}
    one = ["batch"]
    assert shapes == {"observation": ["batch", 3], "cost_budget": one, "steps_left": one, "risk": []}
    # 0.1 of the width more than the data on each side; beyond the clip at 10, nothing is seen.
    observation = contract["inputs"]["observation"]
    assert observation["low"] == pytest.approx([-1.2, -2.4, None])
    assert observation["high"] == pytest.approx([1.2, 2.4, None])
    outputs = contract["outputs"]
    assert (outputs["action"]["low"], outputs["action"]["high"]) == ([-1.0, 0.0], [1.0, 3000.0])
    assert (outputs["feasible"]["shape"], outputs["step_cost"]["shape"]) == (["batch", 11], one)
    assert contract["certificate"] is None
    assert contract["checked"]["observations"] == {"random": 1000}
    assert contract["checked"]["same_choice"] >= 0.999
    assert contract["checked"]["largest_action_difference"] <= 1e-5
    assert str(made.parent).encode() not in graph


def test_recorded_observations_and_certificate(tmp_path):
    run = make_run(tmp_path / "run")
    certificate = make_certificate(run)
    certificate.save(run / "policy" / "certificate.json")
    contract = ExportedPolicy(export(run, dataset="embedded")).contract
    assert contract["checked"]["observations"] == {"random": 1000, "recorded": 1000}
    assert contract["certificate"] == json.loads(json.dumps(certificate.to_dict()))


def test_a_student_is_exported_alone_and_acts_as_it_does_in_the_pipeline(tmp_path):
    pipeline = policy_with_margins()
    pipeline.register_modules(student=make_student())
    policy = ExportedPolicy(exported(pipeline, tmp_path, extraction="fast"))
    contract = policy.contract
    assert (contract["extraction"], contract["fast"]) == ("safe", True)
    assert 0 < contract["checked"]["observations"]["random"] < 1000, "those in the range of the data"
    row = np.zeros(3, np.float32)
    controllers = policy.controller(30.0), pipeline.controller(30.0, fast=True)
    for controller in controllers:
        controller.reset()
    ours, theirs = (controller.act(row) for controller in controllers)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="cannot act by extraction 'fast'"):
        make_decision(make_pipeline(), "fast")


@pytest.mark.parametrize("unit", [0.003, 5000.0])
def test_costs_of_any_size(tmp_path, unit):
    checked = ExportedPolicy(exported(policy_with_margins(unit), tmp_path)).contract["checked"]
    assert checked["same_choice"] >= 0.999


@pytest.mark.parametrize(
    ("pipeline", "noise"),
    [
        (lambda: make_pipeline(evaluation_critic=None), ["batch", 5, 50, 2]),
        (lambda: baseline(DeterministicActor(3, 2, [4])), None),
        (lambda: baseline(BatchConstrainedActor(3, 2, [4], vae_hidden_dim=4)), ["batch", 10, 4]),
    ],
)
def test_policies_without_a_limit_have_their_noise_as_an_input(tmp_path, pipeline, noise):
    policy = ExportedPolicy(exported(pipeline(), tmp_path))
    assert policy.contract["checked"]["same_choice"] >= 0.999
    assert policy.contract["inputs"].get("noise", {}).get("shape") == noise
    rows = random_observations(policy_with_margins())
    first, again, other = (policy(rows, generator=seed).actions for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (noise is None) == np.array_equal(first, other)


@pytest.mark.parametrize(
    ("pipeline", "extraction", "message"),
    [
        (
            lambda: baseline(DiffusionActor(3, 2, vp_betas(5, 0.1, 10.0), [4])),
            None,
            "a DiffusionActor cannot be exported: it draws its action among candidates",
        ),
        (
            lambda: make_pipeline(scheduler=DDIMScheduler(num_train_timesteps=5)),
            None,
            "a DDIMScheduler with these settings cannot be exported: it computes its steps as it goes",
        ),
        (lambda: make_pipeline(conditioned=False), "safe", "cannot act by extraction 'safe'; it has reward"),
        (lambda: baseline(GaussianActor(3, 2, [4])), "reward", "it has policy"),
        (lambda: make_pipeline().to(torch.bfloat16), None, "weights of torch.bfloat16 cannot be exported"),
    ],
)
def test_what_cannot_be_represented_is_said(pipeline, extraction, message):
    with pytest.raises(ValueError, match=message):
        make_decision(pipeline(), extraction)


def test_a_graph_of_another_policy_is_found_out(made):
    other = policy_with_margins()
    with torch.no_grad():
        other.noise_model.net[0].bias += 0.01
    with pytest.raises(ExportError, match="the graph does not act as the pipeline: the same candidate in"):
        check_parity(make_decision(other), ExportedPolicy(made), {"random": random_observations(other)})
    other = policy_with_margins()
    with torch.no_grad():
        other.evaluation_critic.net[-1].bias[0] += 1.0  # every return, so that choices stay
    with pytest.raises(ExportError, match="the graph's expected_return is not the pipeline's"):
        check_parity(make_decision(other), ExportedPolicy(made), {"random": random_observations(other)})


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_is_left_of_an_export_that_is_refused(made, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "ACTION_TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="Nothing was written"):
        export(made.parent, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_an_export_and_nothing_else(made, tmp_path):
    target = tmp_path / "onnx"
    target.mkdir()
    for name in ("policy.onnx", "policy.json"):
        (target / name).write_text("older")
    export(made.parent, target)
    assert files(target) == files(made)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty; name a new folder"):
        export(made.parent, target)
    assert files(target) == {**files(made), "notes.txt": b"mine"}


def test_data_of_other_sizes_is_refused(made):
    with pytest.raises(ValueError, match="has observations of 8 numbers, the policy's have 3"):
        export(made.parent, dataset="embedded")
