from importlib import resources

import pytest

from spi_diffusers.collection.config import CollectConfig, load_collect_config
from spi_diffusers.data.tasks import get_task

PRESETS = sorted(
    file.name.removesuffix(".yaml")
    for file in (resources.files("spi_diffusers.collection") / "presets").iterdir()
)


def test_there_is_a_preset_for_every_task_of_the_paper():
    from spi_diffusers.data.tasks import TASKS

    assert {task.short_name for task in TASKS.values() if task.paper} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads(name):
    config = load_collect_config(name)
    assert config != CollectConfig()
    assert get_task(name).max_episode_steps % config.segment_steps == 0  # no short segment at the end
    assert (config.scripted_episodes > 0) == (name == "carcircle")
    assert all(
        isinstance(value, float) for value in (*config.cost_targets, *config.penalties, *config.speed_targets)
    )


def test_overrides_win_and_none_leaves_the_preset():
    config = load_collect_config("OfflineCarCircle-v0", steps=7, runs=None, hidden_dims=[3, 4])
    assert (config.steps, config.runs, config.scripted_episodes) == (7, 1, 1200)
    assert config.hidden_dims == (3, 4)
    assert load_collect_config("dronerun") == CollectConfig()  # without a preset: the defaults


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stpes": 1}, r"unknown setting stpes; did you mean steps\?"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"runs": 0}, "runs must be a whole number of at least 1, got 0"),
        ({"scripted_episodes": -1}, "scripted_episodes must be a whole number of at least 0, got -1"),
        ({"num_envs": 4, "num_probes": 3}, "at least two of num_envs=4 to learn from, got 3"),
        ({"num_probes": -1}, "got -1"),
        ({"runs": 1.5}, "runs must be a whole number of at least 1, got 1.5"),
        ({"epochs": True}, "epochs must be a whole number of at least 1, got True"),
        ({"steps": float("inf")}, "steps must be a whole number of at least 1, got inf"),
        ({"steps": "5"}, "steps must be a whole number of at least 1, got '5'"),
        ({"cost_targets": (), "penalties": ()}, "are all empty: name a budget"),
        (
            {"cost_targets": (5.0, -1.0)},
            "cost_targets must be a list, each a number of at least 0",
        ),
        (
            {"penalties": (float("nan"),)},
            "penalties must be a list, each a number of at least 0",
        ),
        (
            {"speed_targets": (0.9, -0.1)},
            "speed_targets must be a list, each a number of at least 0",
        ),
        ({"speed_penalty": -0.1}, "speed_penalty must be a number of at least 0, got -0.1"),
        ({"max_cost_return": -1.0}, "max_cost_return must be a number of at least 0 or null, got -1.0"),
        ({"multiplier_rate": float("inf")}, "multiplier_rate must be a finite number of at least 0, got inf"),
        ({"gamma": 1.0}, r"gamma must be a number in \(0, 1\), got 1"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0.0"),
        ({"hidden_dims": ()}, "hidden_dims must be a list of at least one item"),
        ({"hidden_dims": (8, 0)}, "hidden_dims must be a list of at least one item"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        load_collect_config("ballcircle", **settings)


def test_number_of_budgets():
    config = CollectConfig(cost_targets=(1.0, 2.0), penalties=(0.0,), speed_targets=(0.9,))
    assert config.num_budgets == 4
