import dataclasses

import numpy as np
import pytest
from evaluation_factory import BALL_CIRCLE

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.evaluation.summary import behavior_rows


def _dataset(rewards, costs):
    """Episodes of two steps each."""
    count = len(rewards)
    columns = {
        "observation": np.zeros((count, 8)),
        "next_observation": np.zeros((count, 8)),
        "action": np.zeros((count, 2)),
        "reward": np.array(rewards),
        "cost": np.array(costs),
        "terminated": np.zeros(count, dtype=bool),
        "truncated": np.arange(count) % 2 == 1,
    }
    return TransitionDataset.from_columns(columns, task=BALL_CIRCLE)


def test_rows_by_hand():
    # Returns 300, 500, 400; cost returns 0, 30, 10.
    dataset = _dataset([100.0, 200.0, 250.0, 250.0, 0.0, 400.0], [0.0, 0.0, 20.0, 10.0, 5.0, 5.0])
    tight, wide = behavior_rows(dataset, [10, 40])

    assert (tight.episodes, tight.reward_mean, tight.reward_std) == (3, 400.0, 100.0)
    assert tight.cost_mean == pytest.approx(40 / 3)
    assert tight.normalized_cost == pytest.approx(4 / 3)
    assert tight.within_limit == pytest.approx(2 / 3)
    assert (tight.best_return, tight.best_cost_return) == (400.0, 10.0)
    assert tight.best_normalized_reward == pytest.approx(BALL_CIRCLE.normalize_reward(400.0))
    assert (wide.within_limit, wide.best_return, wide.best_cost_return) == (1.0, 500.0, 30.0)


def test_no_episode_keeps_the_limit():
    (row,) = behavior_rows(_dataset([1.0, 1.0], [3.0, 3.0]), [5])

    assert row.within_limit == 0.0
    assert row.best_return is row.best_cost_return is row.best_normalized_reward is None


def test_bad_arguments():
    dataset = _dataset([1.0, 1.0], [3.0, 3.0])
    with pytest.raises(ValueError, match="a cost limit must be"):
        behavior_rows(dataset, [10, -2])
    nameless = dataclasses.replace(dataset, task=None)
    with pytest.raises(ValueError, match="pass task="):
        behavior_rows(nameless, [10])
    assert behavior_rows(nameless, [10], task="ballcircle") == behavior_rows(dataset, [10])
