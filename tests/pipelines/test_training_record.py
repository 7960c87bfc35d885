"""The training record of a policy: set by training and loading, saved beside the weights."""

import json

import pytest
from pipeline_factory import make_pipeline

from spi_diffusers.pipelines import SPIPolicyPipeline

RECORD = {"config": {"task": None, "seed": 3}, "info": {"algorithm": "spi", "train_seed": 3, "updates": 7}}


def trained() -> SPIPolicyPipeline:
    pipe = make_pipeline()
    assert (pipe.training_record, pipe.is_as_trained) == (None, False)
    pipe.training_record = RECORD
    return pipe


def test_it_is_saved_beside_the_weights_and_loaded(tmp_path):
    trained().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "train_config.json").read_text()) == RECORD["config"]
    assert json.loads((tmp_path / "train_info.json").read_text()) == RECORD["info"]
    loaded = SPIPolicyPipeline.from_pretrained(tmp_path)
    assert (loaded.training_record, loaded.is_as_trained) == (RECORD, True)


def test_moving_and_acting_change_nothing():
    pipe = trained().to("cpu")
    pipe([0.0, 0.0, 0.0], cost_limit=5.0)
    assert pipe.is_as_trained


@pytest.mark.parametrize("change", ["weights", "settings", "scheduler", "component"])
def test_a_policy_that_was_changed_is_saved_without_it(tmp_path, caplog, change):
    pipe = trained()
    pipe.save_pretrained(tmp_path)
    if change == "weights":
        pipe.reward_critic.net[0].bias.data[0] += 1.0
    elif change == "settings":
        pipe.register_to_config(budget_reserve=1.0)
    elif change == "scheduler":
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, clip_sample=False)
    else:
        pipe.register_modules(normalizer=None)
    assert not pipe.is_as_trained
    if change == "component":
        return
    pipe.save_pretrained(tmp_path)
    assert "changed after its training" in caplog.text
    assert not list(tmp_path.glob("train_*.json"))
    assert SPIPolicyPipeline.from_pretrained(tmp_path).training_record is None


def test_half_a_record_is_none_and_a_broken_one_is_named(tmp_path):
    trained().save_pretrained(tmp_path)
    info = (tmp_path / "train_info.json").read_text()
    (tmp_path / "train_info.json").write_text(info[:20])
    with pytest.raises(ValueError, match=r"train_info\.json is not complete JSON"):
        SPIPolicyPipeline.from_pretrained(tmp_path)
    (tmp_path / "train_info.json").unlink()
    assert SPIPolicyPipeline.from_pretrained(tmp_path).training_record is None
    with pytest.raises(ValueError, match="must have the keys config and info, got"):
        make_pipeline().training_record = {"info": {}}
