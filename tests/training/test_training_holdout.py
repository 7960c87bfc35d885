"""Episodes that are held out: training sees them only to tell how far predictions are off."""

import dataclasses

import numpy as np
import pytest
import torch
from test_sampler import make_dataset
from training_factory import run, tiny_config

from spi_diffusers.data.holdout import held_out_episodes
from spi_diffusers.data.streaming import open_stream
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.training.build import training_episodes
from spi_diffusers.training.evaluation_stage import learn_residuals
from spi_diffusers.training.export import save_policy
from spi_diffusers.training.run_folder import RunFolderError
from spi_diffusers.training.train import run_training
from spi_diffusers.training.trainer import Trainer

OWN = {"task": None, "dataset": "mine.npz", "updates": 2}
HELD_OUT = held_out_episodes(30, 0, 0.1)


def poisoned() -> TransitionDataset:
    """30 episodes of 4 steps; those that are held out hold numbers that any statistic would show."""
    data = make_dataset(lengths=(4,) * 30, terminated=(3,))
    rows = HELD_OUT[data.episode_index]
    columns = {
        field.name: getattr(data.transitions, field.name).numpy()
        for field in dataclasses.fields(data.transitions)
    }
    for name in ("observation", "next_observation"):
        columns[name] = np.where(rows[:, None], 1e6, columns[name])
    columns["reward"] = np.where(rows, 1e6, 1.0)
    columns["cost"] = np.where(rows, 1e6, columns["cost"])
    return TransitionDataset.from_columns(columns)


@pytest.fixture(scope="module")
def data():
    return poisoned()


@pytest.mark.parametrize("streamed", [False, True])
def test_no_part_of_training_sees_them_but_the_residuals_of_costs(data, streamed, tmp_path):
    dataset = data
    if streamed:
        write_parquet_dataset(data, tmp_path / "set", config_name="robot")
        dataset = open_stream(tmp_path / "set", progress=False)
    kept = data.select_episodes(~HELD_OUT)
    trainer = Trainer(tiny_config(tmp_path / "run", **OWN), dataset, progress=False)
    torch.testing.assert_close(trainer.normalizer.mean, kept.transitions.observation.mean(0))
    assert trainer.units.reward == pytest.approx(Units.of(kept).reward)
    assert trainer.units.cost == pytest.approx(Units.of(kept).cost)
    for _ in range(8):  # of 32 transitions
        assert float(trainer.sampler.draw().reward.max()) == pytest.approx(1.0 / trainer.units.reward)
    trainer.train()
    save_policy(trainer, tmp_path / "policy")
    critic = (tmp_path / "policy" / "evaluation_critic" / "config.json").read_text()
    assert "1000000" not in critic
    assert trainer.dataset.sha256 == data.sha256, "the record names the whole dataset"
    policy = SPIPolicyPipeline.from_pretrained(tmp_path / "policy")
    found = policy.evaluation_critic.residuals.clone()
    learn_residuals(policy, data.select_episodes(HELD_OUT))
    torch.testing.assert_close(found, policy.evaluation_critic.residuals)
    assert float(found.amax()) > 1e4


def test_where_none_is_held_out_residuals_are_those_of_the_training(tmp_path):
    data = make_dataset(lengths=(4,) * 12)
    trainer = Trainer(tiny_config(tmp_path / "run", **OWN), data, progress=False)
    trainer.train()
    save_policy(trainer, tmp_path / "policy")
    policy = SPIPolicyPipeline.from_pretrained(tmp_path / "policy")
    found = policy.evaluation_critic.residuals.clone()
    learn_residuals(policy, data)
    torch.testing.assert_close(found, policy.evaluation_critic.residuals)
    assert found.abs().amax() > 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_resumed_run_holds_out_the_same_ones(data, streamed, tmp_path):
    write_parquet_dataset(data, tmp_path / "set", config_name="robot")
    config = tiny_config(tmp_path / "run", **{**OWN, "dataset": tmp_path / "set", "streaming": streamed})
    dataset = open_stream(tmp_path / "set", progress=False) if streamed else data
    first, _ = run(config, dataset)
    again, _ = run(dataclasses.replace(config, resume=True), dataset)
    tables = [trainer.learned_from.episodes.cost_return for trainer in (first, again)]
    assert torch.equal(tables[0], data.episodes.cost_return[~HELD_OUT])
    assert torch.equal(*tables)
    with pytest.raises(RunFolderError, match=r"holdout: 0\.1 in the checkpoint, 0\.2 now"):
        run(dataclasses.replace(config, resume=True, holdout=0.2), dataset)


@pytest.mark.parametrize(
    "settings", [{"algorithm": "bc"}, {"algorithm": "spi-paper"}, {"holdout": 0}], ids=["bc", "paper", "0"]
)
def test_others_train_on_everything(data, settings, tmp_path):
    config = tiny_config(tmp_path, **OWN, **settings)
    assert training_episodes(config, data) is data
    assert ("holdout" in config.to_dict()) == ("algorithm" not in settings)


def test_training_tells_how_many(data, tmp_path, caplog):
    few = data.select_episodes(torch.arange(19))
    for name, dataset in (("many", data), ("few", few)):
        write_parquet_dataset(dataset, tmp_path / name, config_name="robot")
        config = tiny_config(tmp_path / f"run-{name}", **{**OWN, "dataset": tmp_path / name})
        with caplog.at_level("INFO", "spi_diffusers"):
            run_training(config, progress=False)
    assert "Held out: 3 of 30 episodes, to tell how far predictions are off." in caplog.text
    assert "no episode is held out: there are only 19, and at least 20 are needed" in caplog.text
