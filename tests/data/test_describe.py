import json
import math

import numpy as np
import pytest
from data_factory import make_columns, make_dataset
from rich.console import Console

from spi_diffusers.data.describe import describe_dataset, description_tables, save_description
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset

BALL = get_task("ballcircle")


@pytest.fixture
def dataset():
    """Three episodes: returns 6, 10, 40 and cost returns 3, 0, 4."""
    columns = make_columns(lengths=(3, 2, 4), terminated=(1,))
    columns["reward"] = np.repeat(np.float32([2, 5, 10]), [3, 2, 4])
    columns["cost"] = np.repeat(np.float32([1, 0, 1]), [3, 2, 4])
    return TransitionDataset.from_columns(columns, task=BALL, source="a test")


def test_numbers_by_hand(dataset):
    description = describe_dataset(dataset, [3, 0, 100])
    assert (description["episodes"], description["transitions"], description["terminated_episodes"]) == (
        3,
        9,
        1,
    )
    assert (description["task"], description["sha256"]) == (BALL.name, dataset.sha256)
    assert description["return"]["min"] == 6
    assert description["return"]["median"] == 10
    assert description["return"]["mean"] == pytest.approx(56 / 3)
    assert description["return"]["max"] == 40
    assert (description["return"]["quarter"], description["return"]["three_quarters"]) == (8, 25)
    assert (description["cost_return"]["min"], description["cost_return"]["max"]) == (0, 4)
    assert (description["length"]["min"], description["length"]["max"]) == (2, 4)
    assert description["costly_steps"] == pytest.approx(7 / 9)
    assert [entry["cost_limit"] for entry in description["limits"]] == [0, 3, 100]
    assert [entry["episodes"] for entry in description["limits"]] == [1, 2, 3]
    assert [entry["share"] for entry in description["limits"]] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [entry["best_return"] for entry in description["limits"]] == [10, 10, 40]
    best = description["limits"][2]["best_normalized_reward"]
    assert best == pytest.approx((40 - BALL.reward_min) / (BALL.reward_max - BALL.reward_min))


def test_limits_are_the_tasks_own_unless_others_are_given(dataset):
    assert tuple(entry["cost_limit"] for entry in describe_dataset(dataset)["limits"]) == BALL.cost_limits
    costs = make_dataset().episodes.cost_return.tolist()
    assert sorted(costs) == [0.0, 1.0, 1.0]  # quartiles: 0.5, 1 and 1
    assert [entry["cost_limit"] for entry in describe_dataset(make_dataset())["limits"]] == [0.5, 1.0]
    for limit in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="a cost limit must be a finite number of at least 0"):
            describe_dataset(dataset, [limit])


def test_a_limit_that_no_episode_keeps():
    columns = make_columns(lengths=(2,))
    columns["cost"] = np.float32([1, 1])
    description = describe_dataset(TransitionDataset.from_columns(columns), [1])
    (entry,) = description["limits"]
    assert (entry["episodes"], entry["share"], entry["best_return"], entry["best_normalized_reward"]) == (
        0,
        0,
        None,
        None,
    )
    assert "none" in shown(description)


def shown(description):
    console = Console(width=140)
    with console.capture() as capture:
        for table in description_tables(description):
            console.print(table)
    return capture.get()


def test_tables_and_files(dataset, tmp_path):
    description = describe_dataset(dataset, [3])
    text = shown(description)
    assert "3 episodes, 9 transitions" in text
    assert "66.7%" in text
    assert "77.8% of the steps cost something" in text
    files = save_description(dataset, description, tmp_path / "new" / "folder")
    assert [path.name for path in files] == ["description.json", "description.png"]
    content = json.loads(files[0].read_text())
    assert content["return"]["max"] == 40
    assert content["limits"][0]["best_return"] == 10
    assert files[1].read_bytes().startswith(b"\x89PNG")
