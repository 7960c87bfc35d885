"""Baselines through the same trainer: configuration, data, resuming, and a policy that is evaluated."""

import json

import pytest
import torch
from training_factory import assert_same_training, newest_checkpoint, read_metrics, tiny_config

from spi_diffusers.cli import main
from spi_diffusers.config.algorithms import BASELINES
from spi_diffusers.config.layers import make_train_config
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.transitions import DatasetError
from spi_diffusers.data.units import Units
from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline
from spi_diffusers.training.build import build_normalizer, build_sampler, training_episodes
from spi_diffusers.training.trainer import Trainer, TrainingDivergedError


@pytest.fixture(scope="module")
def data():
    whole = load_transitions(None, "ballcircle")
    return whole.select_episodes(torch.arange(0, whole.num_episodes, 20))


def config_of(folder, algorithm="bc", **overrides):
    own = {f"{BASELINES[algorithm].group}.hidden_dims": [16, 16]}
    return tiny_config(folder, algorithm=algorithm, **own, **overrides)


def train(config, data):
    trainer = Trainer(config, data, progress=False)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("algorithm", "own"),
    [
        *((name, {}) for name in BASELINES if name != "bc-safe"),
        ("bear-lag", {"bear_lag.alpha_optimizer": "sgd"}),  # an optimiser without a state
    ],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(data, tmp_path, algorithm, own):
    train(config_of(tmp_path / "whole", algorithm, **own), data)
    trainer = Trainer(config_of(tmp_path / "parts", algorithm, **own), data, progress=False)
    save = trainer._save_checkpoint

    def save_and_stop(pending):
        save(pending)
        raise KeyboardInterrupt

    trainer._save_checkpoint = save_and_stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    train(config_of(tmp_path / "parts", algorithm, resume=True, **own), data)
    assert_same_training(newest_checkpoint(tmp_path / "whole"), newest_checkpoint(tmp_path / "parts"))
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")


def test_a_baseline_that_diverges_says_which_learning_rate_to_lower(data, tmp_path):
    config = config_of(tmp_path, updates=50, **{"bc.learning_rate": 1e30})
    advice = r"after update \d+\. No checkpoint was made\. Try a lower bc\.learning_rate\."
    with pytest.raises(TrainingDivergedError, match=advice):
        train(config, data)


def test_processes_share_a_batch_out_and_draw_the_same(data, tmp_path):
    config, normalizer = config_of(tmp_path), build_normalizer(data)
    whole, *parts = (
        build_sampler(config, data, normalizer, Units(), **share).draw().tensors()
        for share in ({}, {"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 2})
    )
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([part[name] for part in parts])), name


def test_batches_are_rows_of_the_data_with_start_states_of_episodes(data, tmp_path):
    normalizer = build_normalizer(data)
    batch = build_sampler(config_of(tmp_path), data, normalizer, Units()).draw().batch
    rows = data.transitions
    observations, starts = normalizer(rows.observation), normalizer(rows.observation[data.episodes.start])
    for index in range(len(batch.reward)):
        (row,) = (observations == batch.observation[index]).all(dim=1).nonzero()[0]
        assert batch.reward[index] == rows.reward[row]
        assert batch.truncated[index] == rows.truncated[row]
        assert (starts == batch.initial_observation[index]).all(dim=1).any()


def test_safe_bc_learns_from_the_episodes_within_the_limit(data, tmp_path):
    kept = training_episodes(config_of(tmp_path, "bc-safe", cost_limit=20), data)
    assert 0 < kept.num_episodes < data.num_episodes
    assert kept.episodes.cost_return.max() <= 20
    assert training_episodes(config_of(tmp_path), data) is data
    costly = data.select_episodes(data.episodes.cost_return > 30)
    with pytest.raises(DatasetError, match="no episode is within cost_limit=10, the least costly one has 3"):
        Trainer(config_of(tmp_path / "x", "bc-safe"), costly, progress=False)


def test_limits_are_the_tasks_first_unless_said_otherwise(tmp_path):
    assert config_of(tmp_path).cost_limit == 10.0
    assert config_of(tmp_path, cost_limit=40).cost_limit == 40.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"algorithm": "bcq"}, r"algorithm must be one of spi, .*, got 'bcq'; did you mean bc"),
        (
            {"algorithm": "bc", "cost_limit": -1.0},
            "cost_limit must be a number of at least 0 or null",
        ),
        ({"algorithm": "bc", "streaming": True}, "bc trains on data in memory only"),
        (
            {"algorithm": "cpq", "task": None, "dataset": "x.npz"},
            "cpq needs cost_limit: this data has no DSRL",
        ),
        ({"cost_limit": 10.0}, r"no effect on training spi; .* \(spi evaluate --cost-limit 10\)"),
        ({"algorithm": "bc", "bc.hidden_dims": []}, "hidden_dims must be a list of at least one item"),
        (
            {"algorithm": "bc", "spi.eta": 0.3},
            r"spi.eta has no effect on bc, .* bc\.\*",
        ),
        ({"algorithm": "bc", "network.activation": "mish"}, "network.activation has no effect on bc"),
        ({"algorithm": "bc", "max_grad_norm": 1.0}, r"max_grad_norm has no effect on bc, .* \(keyword\)"),
        ({"bc.learning_rate": 0.1}, r"bc.learning_rate has no effect on spi, .* spi\.\*"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, **overrides)


def test_options_without_effect_are_refused_by_the_command(tmp_path, capsys):
    run = ["train", "--task", "ballcircle", "--algorithm", "bc", "--output_dir", str(tmp_path / "run")]
    assert main([*run, "--learning-rate", "0.1"]) != 0
    assert (
        "learning_rate has no effect on bc, whose own settings are bc.* (command line)"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_a_config_file_may_serve_several_algorithms(tmp_path):
    file = tmp_path / "all.yaml"
    file.write_text("task: ballcircle\nspi: {eta: 0.3}\nbc: {learning_rate: 0.1}\n")
    assert make_train_config({"algorithm": "bc"}, file).settings.learning_rate == 0.1
    assert make_train_config({}, file).settings.eta == 0.3


def test_saved_configs_hold_what_is_used_and_are_read_back(tmp_path):
    spi, bc = tiny_config(tmp_path).to_dict(), config_of(tmp_path).to_dict()
    assert not spi.keys() & {"cost_limit", "bc"}
    assert (spi["algorithm"], bc["algorithm"]) == ("spi", "bc")
    assert "spi" not in bc
    for name, config, content in (("spi", tiny_config(tmp_path), spi), ("bc", config_of(tmp_path), bc)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        assert make_train_config({}, tmp_path / f"{name}.json").to_dict() == config.to_dict()


def test_a_baseline_is_trained_saved_and_played_by_the_commands(tmp_path, capsys):
    run = tmp_path / "run"
    tiny = ["--updates", "5", "--bc.hidden_dims", "16", "--device", "cpu", "--threads", "1", "--quiet"]
    chosen = ["--algorithm", "bc", "--cost_limit", "25"]
    assert main(["train", "--task", "ballcircle", *chosen, "--output_dir", str(run), *tiny]) == 0
    arguments = ["evaluate", str(run), "--episodes", "2", "--no-plots", "--no-video", "--quiet"]
    assert main([*arguments, "--cost-limit", "10", "40"]) == 0
    entries = json.loads((run / "evaluation" / "results.json").read_text())["entries"]
    named = [(e["algorithm"], e["extraction"], e["cost_limit"], e["feedback"]) for e in entries]
    assert named == [("bc", "policy", 10.0, False), ("bc", "policy", 40.0, False)]
    assert entries[0]["reward_mean"] == entries[1]["reward_mean"]
    assert "bc " in capsys.readouterr().out
    assert main(["play", str(run), "--quiet", "--output", str(tmp_path / "episode.mp4")]) == 0
    assert " of 25" in capsys.readouterr().out  # its own limit, not the task's first
    for words in (
        ["evaluate", "--no-feedback"],
        ["evaluate", "--extraction", "safe"],
        ["play", "--no-feedback"],
    ):
        assert main([words[0], str(run), *words[1:]]) == 2
        assert "is a baseline (bc), which acts in one way" in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", [name for name in BASELINES if name != "bc-safe"])
def test_the_saved_policy_acts_as_the_trained_one(data, tmp_path, algorithm):
    from spi_diffusers.training.export import save_policy

    trainer = train(config_of(tmp_path / "run", algorithm), data)
    folder = save_policy(trainer, tmp_path / "policy")
    pipe = BaselinePolicyPipeline.from_pretrained(str(folder))
    observation = data.transitions.observation[:3]
    seeded = [torch.Generator().manual_seed(0) for _ in range(2)]
    expected = trainer.algorithm.actor.act(trainer.normalizer(observation), seeded[0])
    # Not bit for bit: where in memory weights lie can change the last bit of a product on some processors.
    torch.testing.assert_close(pipe(observation, generator=seeded[1]), expected)
    assert pipe(observation[0].numpy()).shape == (2,)
    with pytest.raises(ValueError, match="is of a BaselinePolicyPipeline"):
        SPIPolicyPipeline.from_pretrained(str(folder))
    with pytest.raises(ValueError, match="this policy takes"):
        pipe(torch.zeros(5))
    with pytest.raises(ValueError, match="NaN"):
        pipe(torch.full((8,), torch.nan))
    weights = folder / "actor" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        BaselinePolicyPipeline.from_pretrained(str(folder))
