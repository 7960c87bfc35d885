"""Several costs of a simulator, by name."""

import numpy as np
import pytest

from spi_diffusers.envs import make_env, make_vector_env

COSTS = ("cost", "energy")


def test_costs_by_hand():
    """Energy is of the action as it was executed: clipped to [-1, 1]."""
    env = make_env("ballcircle", seed=0, costs=COSTS)
    one = make_env("ballcircle", seed=0)
    assert env.reset()[1]["cost"].tolist() == [0.0, 0.0]
    one.reset()
    for action in ([0.5, -0.5], [3.0, 0.5]):
        info, known = (each.step(np.array(action))[4] for each in (env, one))
        energy = np.square(np.clip(action, -1, 1)).sum()
        assert info["cost"].tolist() == [known["cost"], pytest.approx(energy)]
    env.close()
    one.close()


def test_side_by_side_and_after_the_end():
    env = make_vector_env("ballcircle", 2, seed=0, costs=COSTS)
    _, infos = env.reset()
    assert np.array(infos["cost"].tolist()).shape == (2, 2)
    total = np.zeros((2, 2))
    for _ in range(210):
        _, _, _, _, infos = env.step(np.full((2, 2), 0.5))
        total += np.array(infos["cost"].tolist())
    assert infos["ended"].all()
    assert total[:, 1].tolist() == pytest.approx([100.0, 100.0])  # 200 steps, and nothing after the end
    env.close()


def test_an_unknown_cost_is_refused():
    with pytest.raises(ValueError, match="no simulator reports a cost 'noise', only cost and energy"):
        make_env("ballcircle", costs=("cost", "noise"))
