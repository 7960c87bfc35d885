"""Data of the Pixel world: true to its dynamics, and enough to learn exact values from."""

import numpy as np
import pytest

from spi_diffusers.envs import collect_pixel_world, transition_table, white_trajectory
from spi_diffusers.envs.pixel_data import collect_pixel_world_columns
from spi_diffusers.envs.pixel_world import move_of


def states_of(observation, n):
    column = np.rint((observation[:, 0] + 1) / 2 * (n - 1)).astype(int)
    return np.rint(observation[:, 1] + 1).astype(int) * n + column


@pytest.mark.parametrize("n", [3, 6])
def test_every_row_obeys_the_dynamics(n):
    columns, dynamics = collect_pixel_world_columns(n, 30, seed=0), transition_table(n)
    state, next_state = states_of(columns["observation"], n), states_of(columns["next_observation"], n)
    move = np.array([move_of(action) for action in columns["action"]])
    np.testing.assert_array_equal(dynamics.next_state[state, move], next_state)
    np.testing.assert_array_equal(dynamics.reward[state, move], columns["reward"])
    np.testing.assert_array_equal(dynamics.cost[state, move], columns["cost"])
    np.testing.assert_array_equal(dynamics.terminated[state, move], columns["terminated"])
    ended = columns["terminated"] | columns["truncated"]
    assert not (columns["terminated"] & columns["truncated"]).any()
    np.testing.assert_array_equal(next_state[:-1][~ended[:-1]], state[1:][~ended[:-1]])
    assert (state[np.flatnonzero(ended)[:-1] + 1] == dynamics.start).all()
    assert np.abs(columns["action"]).max() <= 1


def test_behaviours_take_turns_and_each_does_its_own():
    dataset = collect_pixel_world(6, 9, seed=1, behaviours=("white", "safe", "random"))
    episodes = dataset.episodes
    assert dataset.num_episodes == 9
    assert episodes.length[0::3].tolist() == [len(white_trajectory(6))] * 3
    assert episodes.cost_return[0::3].tolist() == [1.0] * 3
    assert episodes.length[1::3].tolist() == [5] * 3
    assert episodes.return_[1::3].tolist() == [1.0] * 3
    assert episodes.cost_return[1::3].tolist() == [0.0] * 3


def test_episodes_are_truncated_at_the_limit():
    columns = collect_pixel_world_columns(30, 5, seed=0, behaviours=("random",), max_episode_steps=4)
    assert len(columns["reward"]) == 20
    assert columns["truncated"].reshape(5, 4).tolist() == [[False, False, False, True]] * 5
    # An end of the world on the last step in time is an end of the world.
    columns = collect_pixel_world_columns(3, 1, seed=0, behaviours=("white",), max_episode_steps=4)
    assert columns["terminated"].tolist() == [False, False, False, True]
    assert not columns["truncated"].any()


def test_bad_arguments_are_refused():
    for counts in ({"num_episodes": 0}, {"num_episodes": 1.5}, {"max_episode_steps": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(counts))} must be an integer of at least 1"):
            collect_pixel_world(4, **({"num_episodes": 6} | counts), seed=0)
    with pytest.raises(ValueError, match="seed must be a non-negative integer"):
        collect_pixel_world(4, 6, seed=-1)


def test_seed_determines_the_data():
    first, again, other = (collect_pixel_world(4, 6, seed=seed).sha256 for seed in (0, 0, 1))
    assert first == again != other


def test_actions_fill_the_box():
    action = collect_pixel_world_columns(6, 150, seed=0, behaviours=("random",))["action"]
    quadrant = (action[:, 0] > 0) * 2 + (action[:, 1] > 0)
    assert np.bincount(quadrant, minlength=4).min() > 0.2 * len(action)
    # Uniform in the square: half of the mass has a larger component above sqrt(1/2).
    assert np.mean(np.abs(action).max(axis=1) > np.sqrt(0.5)) == pytest.approx(0.5, abs=0.05)


def test_data_in_dsrl_layout_loads(tmp_path):
    from spi_diffusers.data.dsrl import DSRL_NAMES, load_npz

    columns = collect_pixel_world_columns(3, 6, seed=0)
    path = tmp_path / "pixel.npz"
    np.savez(path, **{DSRL_NAMES[name]: values for name, values in columns.items()})
    assert load_npz(path).sha256 == collect_pixel_world(3, 6, seed=0).sha256


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"behaviours": ("white", "blue")}, "blue"),
        ({"behaviours": ()}, "behaviours"),
        ({"num_episodes": 0}, "num_episodes"),
        ({"num_columns": 1}, "num_columns"),
    ],
)
def test_bad_arguments_of_collecting(kwargs, message):
    with pytest.raises(ValueError, match=message):
        collect_pixel_world(**{"num_columns": 3, "num_episodes": 3, "seed": 0, **kwargs})
