"""Where a policy is found, and its training record, which is saved beside the weights."""

import json
import shlex
import subprocess
import sys

import pytest
from pipeline_factory import make_normalizer, make_pipeline

from spi_diffusers.models import GaussianActor
from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline
from spi_diffusers.pipelines.loading import PolicyError, resolve_policy
from spi_diffusers.pipelines.saving import seal_folder

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
        pipe.register_to_config(gamma=0.5)
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


def test_the_representation_says_what_it_is_and_how_it_was_trained(tmp_path):
    pipe = make_pipeline(task="OfflineBallCircle-v0")
    assert repr(pipe).splitlines() == [
        "SPIPolicyPipeline(",
        "  task: OfflineBallCircle-v0, at most 100 steps",
        "  sizes: observation 3, action 2",
        "  acts: takes a cost limit at run time; 11 safety weights, 5 denoising steps",
        "  trained: not recorded",
        ")",
    ]
    pipe.register_to_config(cost_margin=2.0)
    assert "5 denoising steps, cost_margin 2\n" in str(pipe)
    info = {"algorithm": "spi", "train_seed": 3, "updates": 15_000, "dataset": {"id": "mine.parquet"}}
    pipe.training_record = {"config": {}, "info": info}
    assert "trained: spi, 15,000 updates, seed 3, on mine.parquet\n" in str(pipe)
    pipe.register_to_config(gamma=0.6)
    assert "on mine.parquet; changed since\n" in str(pipe)
    pipe.training_record = RECORD  # names no data
    assert "'updates': 7" in str(pipe)
    actor = GaussianActor(3, 2, hidden_dims=[4])
    baseline = BaselinePolicyPipeline(actor, make_normalizer(), algorithm="cpq", cost_limit=10.0)
    assert repr(baseline).splitlines() == [
        "BaselinePolicyPipeline(",
        "  task: no DSRL task",
        "  sizes: observation 3, action 2",
        "  acts: by cpq, for a cost limit of 10",
        "  trained: not recorded",
        ")",
    ]


def test_a_run_keeps_its_configuration_when_a_policy_without_a_record_is_saved_there(tmp_path):
    (tmp_path / "train_config.json").write_text("{}")
    make_pipeline().save_pretrained(tmp_path)
    assert (tmp_path / "train_config.json").read_text() == "{}"


def test_half_a_record_is_none_and_a_broken_one_is_named(tmp_path):
    trained().save_pretrained(tmp_path)
    info = (tmp_path / "train_info.json").read_text()
    (tmp_path / "train_info.json").write_text(info[:20])
    with pytest.raises(ValueError, match=r"train_info\.json is damaged"):
        SPIPolicyPipeline.from_pretrained(tmp_path)
    seal_folder(tmp_path)  # somebody meant it
    with pytest.raises(ValueError, match=r"train_info\.json is not complete JSON"):
        SPIPolicyPipeline.from_pretrained(tmp_path)
    (tmp_path / "train_info.json").unlink()
    assert SPIPolicyPipeline.from_pretrained(tmp_path).training_record is None
    with pytest.raises(ValueError, match="must have the keys config and info, got"):
        make_pipeline().training_record = {"info": {}}
    for record in (3, "x", [], {"config": 1, "info": {}}, {"config": {}, "info": None}):
        with pytest.raises(ValueError, match="must hold the dicts config and info, got"):
            make_pipeline().training_record = record


@pytest.mark.parametrize("name", [None, "", 3, [], b"outputs/x"])
def test_a_policy_must_be_named(name):
    with pytest.raises(PolicyError, match="a policy is named by its folder or its id on the Hub, not by"):
        SPIPolicyPipeline.from_pretrained(name)


def test_a_policy_is_found_in_its_folder_or_its_runs(tmp_path):
    trained().save_pretrained(tmp_path / "run" / "policy")
    assert resolve_policy(tmp_path / "run") == resolve_policy(f"{tmp_path}/run/policy")
    assert SPIPolicyPipeline.from_pretrained(tmp_path / "run").is_as_trained


def test_a_missing_folder_is_said_at_once_with_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody is asked
    (tmp_path / "outputs" / "ballcircle-seed0").mkdir(parents=True)
    for name in (
        "outputs/balcircle-seed0",
        str(tmp_path / "outputs" / "balcircle"),
        "outputs/balcircle/policy",
    ):
        with pytest.raises(
            FileNotFoundError, match=r"no such folder.*did you mean.*outputs/ballcircle-seed0\?"
        ):
            resolve_policy(name)
    with pytest.raises(FileNotFoundError, match="outputs/quite-another: no such folder; for one on the Hub"):
        resolve_policy("outputs/quite-another")
    with pytest.raises(
        FileNotFoundError, match=r"nothing: no such folder, and not an id on the Hub \(org/name\)$"
    ):
        resolve_policy("nothing")
    with pytest.raises(
        FileNotFoundError, match=r"outputs: holds no policy \(there is no model_index\.json\)"
    ):
        resolve_policy("outputs")
    with pytest.raises(PolicyError, match="outputs: revision=v1 applies to Hub ids only"):
        resolve_policy("outputs", "v1")


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_a_closed_terminal_does_not_end_loading_from_python(tmp_path, stream):
    make_pipeline().save_pretrained(tmp_path)
    code = f"from spi_diffusers import SPIPolicyPipeline as P; P.from_pretrained({str(tmp_path)!r})"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {stream}"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0
