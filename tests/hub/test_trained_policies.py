"""Which policies lie under a folder, and what each is called on the Hub."""

import json

import pytest
from policy_factory import BALL, INFO, edit_json

from spi_diffusers.files import PolicyError
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish_all import (
    TrainedPolicy,
    choose,
    find_trained_policies,
)


def make(root, name, task=BALL.name, **info):
    """A policy folder, as far as its name depends on it."""
    folder = root / name
    (folder / "noise_model").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"task": task}))
    (folder / "train_info.json").write_text(json.dumps(INFO | info))
    return folder


def found(root, *exclude):
    policies = find_trained_policies(root, exclude).policies
    return {policy.folder.relative_to(root).as_posix(): policy.repo_name for policy in policies}


def test_every_policy_is_found_and_named(tmp_path):
    make(tmp_path, "run/policy")
    make(tmp_path, "deep/down/here", "OfflineCarCircle-v0")
    make(tmp_path, "paper/policy", "OfflineHopperVelocityGymnasium-v1", algorithm="spi-paper")
    make(tmp_path, "other/policy", algorithm="BCQ_Lag")
    make(tmp_path, ".policy.0a1b2c3d-12-0a1b2c3d-0.tmp")  # left by a run that was killed while saving
    make(tmp_path, "run/policy/copy")  # part of a policy
    assert found(tmp_path) == {
        "run/policy": "spi-ballcircle",
        "deep/down/here": "spi-carcircle",
        "paper/policy": "spi-paper-hoppervelocity",
        "other/policy": "bcq-lag-ballcircle",
    }
    assert found(tmp_path / "run") == {"policy": "spi-ballcircle"}


def test_excluded_folders(tmp_path):
    for name in ("a/policy", "b/policy", "old/c/policy"):
        make(tmp_path, name)
    assert found(tmp_path, "a", "old/*").keys() == {"b/policy"}
    with pytest.raises(ValueError, match="--exclude none fits no folder"):
        found(tmp_path, "none")


def test_links_are_followed_once(tmp_path):
    make(tmp_path, "elsewhere/policy")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "run").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "outputs") == {"run/policy": "spi-ballcircle"}


def test_what_cannot_be_named_is_said(tmp_path):
    make(tmp_path, "good")
    make(tmp_path, "taskless", task=None)
    make(tmp_path, "unknown", task="OfflineNothing-v0")
    (make(tmp_path, "broken") / "model_index.json").write_text('{"task": "Off')
    (make(tmp_path, "recordless") / "train_info.json").unlink()
    (tmp_path / "training" / "checkpoints" / "step-10").mkdir(parents=True)
    (make(tmp_path, "done/policy").parent / "checkpoints").mkdir()
    result = find_trained_policies(tmp_path)
    assert {policy.folder.name for policy in result.policies} == {"good", "policy"}
    assert result.unfinished == (tmp_path / "training",)
    reasons = {path.name: text for path, text in result.unnamed.items()}
    assert reasons.keys() == {"taskless", "unknown", "broken", "recordless"}
    assert "names no task" in reasons["taskless"]
    assert "OfflineNothing-v0" in reasons["unknown"]
    assert "is not complete JSON" in reasons["broken"]
    assert "has no train_info.json" in reasons["recordless"]


def test_a_baseline_is_left_out_and_never_published(tmp_path, caplog):
    make(tmp_path, "good")
    edit_json(make(tmp_path, "bc") / "model_index.json", _class_name="BaselinePolicyPipeline")
    result = find_trained_policies(tmp_path)
    assert [policy.folder.name for policy in result.policies] == ["good"]
    assert result.unnamed == {}
    assert "bc: is left out, as policies of baselines are not published" in caplog.text
    with pytest.raises(PolicyError, match="is a baseline's policy; only SPI's are published"):
        read_policy_files(tmp_path / "bc")


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_trained_policies(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no trained policy"):
        find_trained_policies(tmp_path)


def test_one_for_each_name(tmp_path):
    ball = [TrainedPolicy("ballcircle", "spi", seed, tmp_path / f"ball{seed}") for seed in (0, 1)]
    car = TrainedPolicy("carcircle", "spi", 0, tmp_path / "car")
    paper = TrainedPolicy("ballcircle", "spi-paper", 0, tmp_path / "paper")
    assert choose([car, ball[0], paper]) == (ball[0], paper, car)
    with pytest.raises(ValueError, match=r"spi-ballcircle: .*ball0 \(training seed 0\), .*ball1"):
        choose([*ball, car])
    assert choose([*ball, car], seed=0) == (ball[0], car)
    assert choose([*ball, car], seed=1) == (ball[1],)
    demo = TrainedPolicy("ballcircle", "spi", 0, tmp_path / "demo")
    with pytest.raises(ValueError, match="choose by --seed, or leave folders out"):
        choose(ball)
    with pytest.raises(ValueError, match="Nothing was published; leave folders out by --exclude"):
        choose([ball[0], demo])  # no seed tells them apart
    with pytest.raises(ValueError, match="no policy has training seed 7; there are 0, 1"):
        choose([*ball, car], seed=7)
