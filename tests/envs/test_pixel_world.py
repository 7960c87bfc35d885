"""The Pixel world reproduces the closed forms of the paper's section 4.1; its data is true to it."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from pixel_world_data import collect_pixel_world

from spi_diffusers.envs import PixelWorldEnv, transition_table, white_trajectory
from spi_diffusers.envs.pixel_world import (
    DOWN,
    LEFT,
    PIXEL_WORLD_ID,
    RIGHT,
    UP,
    move_of,
    safe_policy,
    white_policy,
)

GAMMA = 0.9


def follow(env, moves):
    env.reset(seed=0)
    return [env.step(move) for move in moves]


@pytest.mark.parametrize("n", [3, 6, 50])
def test_white_trajectory_falls_into_the_trap_at_step_index_n(n):
    steps = follow(PixelWorldEnv(n, continuous=False), white_trajectory(n))
    costs = [info["cost"] for *_, info in steps]
    assert costs == [0.0] * n + [1.0]
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * n + [True]
    assert not any(truncated for *_, truncated, _ in steps)
    assert all(reward == 0 for _, reward, *_ in steps)
    # With c: 1 * gamma^n. With c' = 1 - c: gamma^0 + ... + gamma^(n-1).
    assert sum(GAMMA**i * c for i, c in enumerate(costs)) == GAMMA**n
    assert sum(GAMMA**i * (1 - c) for i, c in enumerate(costs)) == pytest.approx((1 - GAMMA**n) / (1 - GAMMA))


@pytest.mark.parametrize(("n", "cost_value"), [(3, 0.9**3), (6, 0.9**6)])
def test_exact_values_of_the_paper(n, cost_value):
    dynamics = transition_table(n)
    with_cost = dynamics.action_values(white_policy(n), dynamics.cost, GAMMA)
    assert with_cost[dynamics.start, DOWN] == pytest.approx(cost_value, rel=1e-12)
    with_safety = dynamics.action_values(white_policy(n), 1 - dynamics.cost, GAMMA)
    if n == 6:
        paper = GAMMA**5 + GAMMA**4 + GAMMA**3 + GAMMA**2 + GAMMA + 1
        assert with_safety[dynamics.start, DOWN] == pytest.approx(paper, rel=1e-12)


def test_the_cost_vanishes_with_n_and_the_safety_value_does_not():
    cost_values, safety_values = [], []
    for n in (3, 6, 100):
        dynamics = transition_table(n)
        cost_values.append(dynamics.action_values(white_policy(n), dynamics.cost, GAMMA)[0, DOWN])
        safety_values.append(dynamics.action_values(white_policy(n), 1 - dynamics.cost, GAMMA)[0, DOWN])
    assert cost_values[2] == pytest.approx(GAMMA**100)
    assert safety_values[0] < safety_values[1] < safety_values[2] < 10
    assert safety_values[2] == pytest.approx(10, abs=1e-3)  # 1 / (1 - gamma)


def test_safe_policy_reaches_the_goal():
    steps = follow(PixelWorldEnv(6, continuous=False), [RIGHT] * 5)
    assert [reward for _, reward, *_ in steps] == [0, 0, 0, 0, 1]
    assert [terminated for _, _, terminated, _, _ in steps] == [False] * 4 + [True]
    assert all(info["cost"] == 0 for *_, info in steps)
    dynamics = transition_table(6)
    rewards = dynamics.action_values(safe_policy(6), dynamics.reward, GAMMA)
    assert rewards[dynamics.start, RIGHT] == pytest.approx(GAMMA**4)
    assert rewards[2 * 6, UP] == pytest.approx(GAMMA**6)  # from the lower left: two up, five right
    # Ending early ends c' too: five safe moves are all that it counts.
    safety = dynamics.action_values(safe_policy(6), 1 - dynamics.cost, GAMMA)
    assert safety[dynamics.start, RIGHT] == pytest.approx(sum(GAMMA**k for k in range(5)))


@given(n=st.integers(2, 12), moves=st.lists(st.integers(0, 3), max_size=40))
def test_environment_agrees_with_the_transition_table(n, moves):
    env, dynamics = PixelWorldEnv(n, continuous=False), transition_table(n)
    observation, _ = env.reset()
    row = column = 0
    for move in moves:
        state = row * n + column
        # The rules, written once more: row and column steps, the border holds.
        row = min(max(row + {DOWN: 1, UP: -1}.get(move, 0), 0), 2)
        column = min(max(column + {RIGHT: 1, LEFT: -1}.get(move, 0), 0), n - 1)
        observation, reward, terminated, truncated, info = env.step(move)
        goal, trap = (row, column) == (0, n - 1), (row, column) == (2, n - 1)
        assert env.state == dynamics.next_state[state, move] == row * n + column
        assert (reward, info["cost"]) == (float(goal), float(trap))
        assert (terminated, truncated) == (goal or trap, False)
        assert observation.tolist() == pytest.approx([2 * column / (n - 1) - 1, row - 1])
        assert observation.tolist() == dynamics.observations()[env.state].tolist()
        if terminated:
            break


def test_goal_and_trap_are_absorbing():
    dynamics = transition_table(4)
    for state in (dynamics.goal, dynamics.trap):
        assert (dynamics.next_state[state] == state).all()
        assert dynamics.terminated[state].all()
        assert not dynamics.reward[state].any()
        assert not dynamics.cost[state].any()


@pytest.mark.parametrize(
    ("action", "move"),
    [
        ([1, 0], RIGHT), ([-0.2, 0.1], LEFT), ([0.1, 0.2], DOWN), ([0.3, -0.9], UP),
        ([0.5, -0.5], RIGHT), ([-0.5, 0.5], LEFT), ([0, 0], RIGHT), ([0, 1e-3], DOWN),
    ],
)  # fmt: skip
def test_continuous_actions_move_along_their_larger_component(action, move):
    assert move_of(action) == move


def test_continuous_and_discrete_worlds_agree():
    continuous, discrete = PixelWorldEnv(5), PixelWorldEnv(5, continuous=False)
    vectors = {RIGHT: [0.7, 0.2], DOWN: [0.1, 0.4], LEFT: [-1, 0.9], UP: [0, -0.3]}
    moves = [DOWN, RIGHT, RIGHT, UP, LEFT, DOWN, DOWN, RIGHT, RIGHT, RIGHT]
    ours = follow(continuous, [np.array(vectors[move], np.float32) for move in moves])
    for step, expected in zip(ours, follow(discrete, moves), strict=True):
        np.testing.assert_array_equal(step[0], expected[0])
        assert step[1:] == expected[1:]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("n", [3, 6])
def test_gymnasium_checks_pass(n, continuous):
    env = gymnasium.make(
        PIXEL_WORLD_ID, num_columns=n, continuous=continuous, render_mode="rgb_array"
    ).unwrapped
    check_env(env)


def test_registered_environment_has_a_time_limit():
    env = gymnasium.make(PIXEL_WORLD_ID, continuous=False)
    env.reset(seed=0)
    ends = [env.step(LEFT)[2:4] for _ in range(100)]
    assert ends == [(False, False)] * 99 + [(False, True)]


def test_picture_shows_trap_goal_and_agent():
    env = PixelWorldEnv(6, continuous=False, render_mode="rgb_array")
    follow(env, [DOWN, RIGHT])
    image = env.render()
    assert image.shape == (120, 240, 3)
    assert image.dtype == np.uint8
    goal, trap, grass, agent, visited = (
        image[y, x].tolist() for y, x in [(20, 220), (100, 220), (100, 20), (60, 60), (20, 20)]
    )
    assert goal[0] > 200
    assert goal[1] > 150
    assert max(trap) < 100
    assert grass[1] > max(grass[0], grass[2])
    assert agent == visited == [255, 255, 255]
    follow(env, [])
    assert env.render()[60, 60].tolist() == grass
    with pytest.warns(UserWarning, match="rgb_array"):
        assert PixelWorldEnv().render() is None


@pytest.mark.parametrize("n", [1, 2.5, True, -3])
def test_bad_sizes(n):
    with pytest.raises(ValueError, match="num_columns"):
        PixelWorldEnv(n)


@pytest.mark.parametrize("action", [[0.0], [np.nan, 1.0], 2])
def test_bad_continuous_actions(action):
    env = PixelWorldEnv()
    env.reset()
    with pytest.raises(ValueError, match="2 finite numbers"):
        env.step(action)


@pytest.mark.parametrize("action", [4, -1, 1.0, [1, 2]])
def test_bad_moves(action):
    env = PixelWorldEnv(continuous=False)
    env.reset()
    with pytest.raises(ValueError, match="move"):
        env.step(action)


def test_bad_value_arguments():
    dynamics = transition_table(3)
    with pytest.raises(ValueError, match="gamma"):
        dynamics.action_values(white_policy(3), dynamics.cost, 1.0)
    with pytest.raises(ValueError, match="policy"):
        dynamics.action_values(2 * white_policy(3), dynamics.cost, 0.9)
    with pytest.raises(ValueError, match="render_mode"):
        PixelWorldEnv(render_mode="human")


def columns_of(dataset):
    names = ("observation", "next_observation", "action", "reward", "cost", "terminated", "truncated")
    return {name: getattr(dataset.transitions, name).numpy() for name in names}


def states_of(observation, n):
    column = np.rint((observation[:, 0] + 1) / 2 * (n - 1)).astype(int)
    return np.rint(observation[:, 1] + 1).astype(int) * n + column


@pytest.mark.parametrize("n", [3, 6])
def test_every_row_obeys_the_dynamics(n):
    columns, dynamics = columns_of(collect_pixel_world(n, 30, seed=0)), transition_table(n)
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


def test_behaviors_take_turns_and_each_does_its_own():
    dataset = collect_pixel_world(6, 9, seed=1, behaviors=("white", "safe", "random"))
    episodes = dataset.episodes
    assert dataset.num_episodes == 9
    assert episodes.length[0::3].tolist() == [len(white_trajectory(6))] * 3
    assert episodes.cost_return[0::3].tolist() == [1.0] * 3
    assert episodes.length[1::3].tolist() == [5] * 3
    assert episodes.return_[1::3].tolist() == [1.0] * 3
    assert episodes.cost_return[1::3].tolist() == [0.0] * 3


def test_episodes_are_truncated_at_the_limit():
    columns = columns_of(collect_pixel_world(30, 5, seed=0, behaviors=("random",), max_episode_steps=4))
    assert len(columns["reward"]) == 20
    assert columns["truncated"].reshape(5, 4).tolist() == [[False, False, False, True]] * 5
    # An end of the world on the last step in time is an end of the world.
    columns = columns_of(collect_pixel_world(3, 1, seed=0, behaviors=("white",), max_episode_steps=4))
    assert columns["terminated"].tolist() == [False, False, False, True]
    assert not columns["truncated"].any()


def test_bad_counts_of_collecting_are_refused():
    for counts in ({"num_episodes": 0}, {"num_episodes": 1.5}, {"max_episode_steps": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(counts))} must be an integer of at least 1"):
            collect_pixel_world(4, **({"num_episodes": 6} | counts), seed=0)
    with pytest.raises(ValueError, match="seed must be a non-negative integer"):
        collect_pixel_world(4, 6, seed=-1)


def test_seed_determines_the_data():
    first, again, other = (collect_pixel_world(4, 6, seed=seed).sha256 for seed in (0, 0, 1))
    assert first == again != other


def test_actions_fill_the_box():
    action = columns_of(collect_pixel_world(6, 150, seed=0, behaviors=("random",)))["action"]
    quadrant = (action[:, 0] > 0) * 2 + (action[:, 1] > 0)
    assert np.bincount(quadrant, minlength=4).min() > 0.2 * len(action)
    # Uniform in the square: half of the mass has a larger component above sqrt(1/2).
    assert np.mean(np.abs(action).max(axis=1) > np.sqrt(0.5)) == pytest.approx(0.5, abs=0.05)


def test_data_in_dsrl_layout_loads(tmp_path):
    from spi_diffusers.data.arrays import DSRL_NAMES
    from spi_diffusers.data.loading import load_tables

    columns = columns_of(collect_pixel_world(3, 6, seed=0))
    path = tmp_path / "pixel.npz"
    np.savez(path, **{DSRL_NAMES[name]: values for name, values in columns.items()})
    assert load_tables(path).sha256 == collect_pixel_world(3, 6, seed=0).sha256


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"behaviors": ("white", "blue")}, "blue"),
        ({"behaviors": ()}, "behaviors"),
        ({"num_episodes": 0}, "num_episodes"),
        ({"num_columns": 1}, "num_columns"),
    ],
)
def test_bad_arguments_of_collecting(kwargs, message):
    with pytest.raises(ValueError, match=message):
        collect_pixel_world(**{"num_columns": 3, "num_episodes": 3, "seed": 0, **kwargs})
