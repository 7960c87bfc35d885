import dataclasses

import pytest
from test_sampler import make_dataset
from training_factory import newest_checkpoint, run, tiny_config

from spi_diffusers import train
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.data.streaming import open_stream
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.training.build import episode_steps, settle
from spi_diffusers.training.run_folder import RunFolderError

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


def test_training_tells_of_episodes_that_are_longer_than_the_setting(tmp_path, caplog):
    write_parquet_dataset(make_dataset(**MIXED), tmp_path / "set", config_name="robot")
    small = {"updates": 2, "batch_size": 8, "network": {"hidden_dims": [8]}, "progress": False}
    with pytest.raises(ConfigError, match="max_episode_steps"):
        train(dataset=tmp_path / "set", **small)
    policy = train(dataset=tmp_path / "set", max_episode_steps=20, calibrate=False, **small)
    assert policy.config.max_episode_steps == 20
    assert "1 of 3 episodes are longer than 20 steps" in caplog.text
