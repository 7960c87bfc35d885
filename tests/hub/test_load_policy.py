"""Policies to evaluate or to play: by folder, and from a real (loopback) Hub."""

import json

import pytest
import torch
from hub_faults import Fault
from policy_factory import BALL, INFO, make_policy, make_run

from spi_diffusers.evaluation.evaluate import training_of
from spi_diffusers.evaluation.folder import evaluate_to_folder
from spi_diffusers.models import GaussianActor, ObservationNormalizer
from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline
from spi_diffusers.pipelines.loading import PolicyError, load_pipeline


def upload(hub, folder, repo_id):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.store.put("models", repo_id, files)


def make_baseline(folder):
    normalizer = ObservationNormalizer(observation_dim=BALL.observation_dim)
    normalizer.set_statistics(torch.zeros(BALL.observation_dim), torch.ones(BALL.observation_dim))
    actor = GaussianActor(BALL.observation_dim, BALL.action_dim, hidden_dims=[8])
    pipeline = BaselinePolicyPipeline(actor, normalizer, algorithm="cpq", cost_limit=10.0, task=BALL.name)
    pipeline.save_pretrained(folder)
    (folder / "train_info.json").write_text(json.dumps(INFO | {"algorithm": "cpq"}))
    (folder / "train_config.json").write_text(json.dumps({"algorithm": "cpq"}))
    return folder


def test_a_run_its_policy_and_the_same_from_the_hub(hub, tmp_path):
    run = make_run(tmp_path / "run")
    upload(hub, run / "policy", "org/spi")
    local, same, remote = load_pipeline(run), load_pipeline(run / "policy"), load_pipeline("org/spi")
    for loaded in (same, remote):
        assert isinstance(loaded, SPIPolicyPipeline)
        assert loaded.training_record == local.training_record
        assert training_of(loaded) == training_of(local)
        weights, expected = loaded.noise_model.state_dict(), local.noise_model.state_dict()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_baseline_loads_from_the_hub_as_from_its_folder(hub, tmp_path):
    upload(hub, make_baseline(tmp_path / "cpq"), "org/cpq")
    observation = torch.zeros(BALL.observation_dim)
    local, remote = load_pipeline(tmp_path / "cpq"), load_pipeline("org/cpq")
    assert isinstance(remote, BaselinePolicyPipeline)
    assert training_of(remote).algorithm == "cpq"
    assert torch.equal(remote(observation), local(observation))


def test_a_policy_without_a_record_acts_but_its_results_would_be_of_nobody_knows_what(hub, tmp_path):
    make_policy().save_pretrained(tmp_path / "bare")
    upload(hub, tmp_path / "bare", "org/bare")
    for name in (str(tmp_path / "bare"), "org/bare"):
        assert load_pipeline(name).config.task == BALL.name
        with pytest.raises(PolicyError, match=r"bare: has no train_info\.json"):
            evaluate_to_folder(name)


def test_a_gated_policy_says_where_access_is_asked_for(hub, tmp_path):
    upload(hub, make_run(tmp_path / "run") / "policy", "org/spi")
    gated = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted"}
    for status in (401, 403):
        hub.faults.set(Fault("status", "", "/resolve/", times=99, number=status, headers=gated))
        with pytest.raises(PolicyError, match=f"access must be asked for on {hub.url}/org/spi; then log in"):
            SPIPolicyPipeline.from_pretrained("org/spi")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop before", "", "/resolve/"),
        Fault("drop within", "GET", "/resolve/"),
        Fault("short", "GET", "/get/models/"),
        Fault("short", "GET", r"resolve/.*/normalizer/config\.json"),
        Fault("status", "GET", "/api/models/", times=2, number=503),
        Fault("status", "GET", "/tree/", number=429),
    ],
    ids=lambda fault: f"{fault.kind} {fault.path}",
)
def test_a_request_that_fails_once_is_made_again(hub, tmp_path, fault):
    upload(hub, make_run(tmp_path / "run") / "policy", "org/spi")
    hub.faults.set(fault)
    assert SPIPolicyPipeline.from_pretrained("org/spi").config.task == BALL.name
    assert hub.faults.happened


def test_what_is_no_policy_is_refused(hub, tmp_path):
    hub.store.put("models", "org/other", {"README.md": b"A language model.", "config.json": b"{}"})
    for name, message in (
        ("org/other", r"org/other: holds no policy: model_index\.json is missing"),
        (
            "org/nothing",
            "org/nothing: no such folder, and cannot be loaded from the Hub: there is no",
        ),
    ):
        with pytest.raises(PolicyError, match=message):
            load_pipeline(name)
    for name, message in ((tmp_path, "holds no policy"), ("a/b/c", "no such folder, and not an id")):
        with pytest.raises(FileNotFoundError, match=message):
            load_pipeline(name)
    with pytest.raises(PolicyError, match="revision=main applies to Hub ids only"):
        load_pipeline(tmp_path, revision="main")


# ---- damage on the way, and in the cache


def weights_of(pipeline):
    return {name: value.clone() for name, value in pipeline.reward_critic.state_dict().items()}


@pytest.mark.parametrize("path", ["/get/models/", r"resolve/.*/normalizer/config\.json", "model_index"])
def test_what_arrives_damaged_is_downloaded_again_once(hub, tmp_path, caplog, path):
    """The client checks sizes only, and the Hub's own checksums never reach who loads a policy."""
    policy = make_run(tmp_path / "run") / "policy"
    upload(hub, policy, "org/spi")
    expected = weights_of(load_pipeline(policy))
    hub.faults.set(Fault("wrong bytes", "GET", path))
    loaded = weights_of(SPIPolicyPipeline.from_pretrained("org/spi"))
    assert hub.faults.happened
    assert "org/spi: what the cache holds is damaged; it is downloaded again" in caplog.text
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())

    # Later, in the cache.
    (blob,) = tmp_path.glob("cache/models--org--spi/snapshots/*/reward_critic/*.safetensors")
    content = blob.read_bytes()
    blob.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"reward_critic/.*\.safetensors is damaged"):
        SPIPolicyPipeline.from_pretrained("org/spi", local_files_only=True)
    loaded = weights_of(load_pipeline("org/spi"))
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    before = len(hub.log)
    load_pipeline("org/spi")
    assert not [line for line in hub.log[before:] if line.startswith("GET") and "/resolve/" in line]


def test_what_is_damaged_on_the_hub_is_refused_after_the_second_download(hub, tmp_path):
    policy = make_run(tmp_path / "run") / "policy"
    weights = policy / "reward_critic" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    upload(hub, policy, "org/spi")
    for load in (load_pipeline, SPIPolicyPipeline.from_pretrained):
        before = len(hub.log)
        with pytest.raises(ValueError, match=r"reward_critic/.*\.safetensors is damaged"):
            load("org/spi")
        fetched = [line for line in hub.log[before:] if "GET" in line and "reward_critic/config" in line]
        assert len(fetched) <= 2
