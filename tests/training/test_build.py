import dataclasses

import numpy as np
import pytest
import torch
from test_sampler import make_dataset
from training_factory import newest_checkpoint, run, tiny_config

from spi_diffusers import train
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.data.actions import ActionRange
from spi_diffusers.data.streaming import open_stream
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.pipelines.loading import load_pipeline
from spi_diffusers.training.run_folder import RunFolderError, write_config
from spi_diffusers.training.settle import action_range, episode_steps, settle

MIXED = {"lengths": (20, 30, 12), "terminated": (2,)}
OWN = {"task": None, "dataset": "mine.npz", "updates": 4}


def test_a_run_keeps_the_length_of_an_episode_that_was_found_and_resumes_with_no_other(tmp_path):
    dataset = make_dataset(lengths=(30, 30, 12), terminated=(2,))
    config = tiny_config(tmp_path, **OWN)
    trainer, _ = run(config, dataset)
    assert newest_checkpoint(tmp_path).state["config"]["max_episode_steps"] == 30
    assert trainer.policy().config.max_episode_steps == 30
    run(dataclasses.replace(config, resume=True), dataset)
    with pytest.raises(RunFolderError, match="max_episode_steps: 30 in the checkpoint, 40 now"):
        run(dataclasses.replace(config, resume=True, max_episode_steps=40), dataset)


@pytest.mark.parametrize("streamed", [False, True])
def test_where_the_data_does_not_tell_the_length_it_is_asked_for(tmp_path, streamed):
    dataset = make_dataset(**MIXED)
    if streamed:
        write_parquet_dataset(dataset, tmp_path / "set", config_name="robot")
        dataset = open_stream(tmp_path / "set", progress=False)
    config = tiny_config(tmp_path, **OWN)
    question = r"3 episodes, of which 2 were truncated, have 12 to 30 steps .*\(--max-episode-steps\)"
    with pytest.raises(ConfigError, match=question) as refused:
        settle(config, dataset)
    assert refused.value.name == "max_episode_steps"
    given = settle(dataclasses.replace(config, max_episode_steps=25), dataset)
    assert (given.max_episode_steps, given.streaming, episode_steps(given, dataset)) == (25, streamed, 25)


def test_a_task_says_it_itself(small_dataset, tmp_path):
    config = settle(tiny_config(tmp_path), small_dataset)
    assert (config.max_episode_steps, episode_steps(config, small_dataset)) == (None, 200)


@pytest.mark.parametrize(("has_tiles", "chosen"), [(True, "bf16"), (False, "no")])
def test_precision_is_what_the_device_multiplies_faster(
    small_dataset, tmp_path, monkeypatch, has_tiles, chosen
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    config = tiny_config(tmp_path, mixed_precision="auto")
    assert settle(config, small_dataset).mixed_precision == chosen
    assert settle(config, small_dataset, "mps").mixed_precision == "no"
    write_config(tmp_path, dataclasses.replace(config, mixed_precision="bf16" if chosen == "no" else "no"))
    resumed = dataclasses.replace(config, resume=True)
    assert settle(resumed, small_dataset).mixed_precision != chosen, "as it was begun, on whatever machine"
    for given in ("bf16", "no"):
        named = dataclasses.replace(config, mixed_precision=given)
        assert settle(named, small_dataset).mixed_precision == given


def test_training_tells_of_episodes_that_are_longer_than_the_setting(tmp_path, caplog):
    write_parquet_dataset(make_dataset(**MIXED), tmp_path / "set", config_name="robot")
    small = {"updates": 2, "batch_size": 8, "network": {"hidden_dims": [8]}, "progress": False}
    with pytest.raises(ConfigError, match="max_episode_steps"):
        train(dataset=tmp_path / "set", **small)
    policy = train(dataset=tmp_path / "set", max_episode_steps=20, **small)
    assert policy.config.max_episode_steps == 20
    assert "1 of 3 episodes are longer than 20 steps" in caplog.text


def wide_dataset(low=(-1.0, -3.0), high=(1.0, 5.0), **options):
    """Actions of two dimensions, each with a range of its own."""
    dataset = make_dataset(lengths=(30, 30), terminated=(), **options)
    action = dataset.transitions.action
    least, most = torch.tensor(low), torch.tensor(high)
    scaled = least + (action + 1) / 2 * (most - least)
    return dataclasses.replace(dataset, transitions=dataclasses.replace(dataset.transitions, action=scaled))


@pytest.mark.parametrize("streamed", [False, True])
def test_the_range_of_actions_is_given_or_stated_or_seen(tmp_path, streamed):
    def opened(dataset, name):
        if not streamed:
            return dataset
        write_parquet_dataset(dataset, tmp_path / name, config_name="robot")
        return open_stream(tmp_path / name, progress=False)

    config = tiny_config(tmp_path, **OWN)
    wide = opened(wide_dataset(), "wide")
    low, high = action_range(config, wide)
    assert (low[0], high[0]) == (-1, 1)
    assert -3 <= low[1] < -2.5
    assert 4.5 < high[1] <= 5
    stated = ActionRange((-1.0, -4.0), (1.0, 6.0))
    states_it = opened(dataclasses.replace(wide_dataset(), action_range=stated), "stated")
    assert action_range(config, states_it) == ([-1, -4], [1, 6])
    assert action_range(dataclasses.replace(config, clip_actions=True), states_it) == ([-1, -4], [1, 6])
    assert action_range(dataclasses.replace(config, clip_actions=True), wide) == (-1, 1)
    given = dataclasses.replace(config, action_low=-7, action_high=[7, 9])
    assert action_range(given, states_it) == (-7, [7, 9])
    usual = opened(make_dataset(lengths=(30, 30), terminated=()), "usual")
    assert action_range(config, usual) == (-1, 1)
    with pytest.raises(ConfigError, match=r"action_high has 3 numbers, but the actions of .* have 2"):
        action_range(dataclasses.replace(config, action_low=-7, action_high=[7, 9, 10]), wide)


@pytest.mark.parametrize("algorithm", ["spi", "bc", "bcq-lag", "coptidice"])
def test_every_algorithm_acts_in_the_range_of_each_dimension(tmp_path, algorithm):
    limit = {} if algorithm == "spi" else {"cost_limit": 5.0}
    trainer, _ = run(tiny_config(tmp_path, **OWN, algorithm=algorithm, **limit), wide_dataset())
    config = newest_checkpoint(tmp_path).state["config"]
    low, high = config["action_low"], config["action_high"]
    assert low[1] < -2
    trainer.policy().save_pretrained(tmp_path / "saved")
    policy = load_pipeline(tmp_path / "saved")
    noise = np.random.default_rng(0).normal(size=(300, 3)) * 30
    output = policy(noise, generator=0)
    actions = output.actions if algorithm == "spi" else output
    assert (actions >= np.float32(low)).all()
    assert (actions <= np.float32(high)).all()
    assert actions[:, 1].max() > 1.5  # and not only in the model's own
