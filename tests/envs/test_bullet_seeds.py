"""Seeds of the Bullet environments: what they decide, and the global generator, which is left alone."""

import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
from env_factory import play, play_fresh

from spi_diffusers.data.tasks import TASKS
from spi_diffusers.envs import make_env
from spi_diffusers.envs.bullet import as_global_generator, global_generator_kept

pytest.importorskip("bullet_safety_gym")

BULLET_TASKS = [task for task in TASKS.values() if task.simulator == "bullet"]
#: One per agent and kind; Car and Drone carry state over resets in the bare simulator, Ball does not.
AGENTS = ["ballcircle", "carrun", "dronecircle"]
# ruff: noqa: NPY002  (the generator that the rule advises against is what is tested)


@pytest.mark.parametrize("task", AGENTS)
def test_seed_determines_the_episode_in_fresh_environments(task):
    first, again, other = play_fresh(task, 7), play_fresh(task, 7), play_fresh(task, 8)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[0] - other[0]).max() > 1e-5


@pytest.mark.parametrize("task", AGENTS)
def test_seed_determines_the_episode_whatever_was_played_before(task):
    expected = play_fresh(task, 7)
    env = make_env(task, seed=3)
    for action_seed in (5, 6):
        play(env, action_seed=action_seed, steps=60)
    np.testing.assert_array_equal(play(env, seed=7), expected)
    env.close()


@pytest.mark.parametrize("task", AGENTS)
def test_seed_determines_the_episode_after_a_single_step(task):
    # The new episode starts where the last one ended, under the largest forces: contacts must be new too.
    env = make_env(task)
    action = np.resize([1.0, -1.0], env.action_space.shape)
    expected = []
    for seed in (0, 1):
        fresh = make_env(task)
        fresh.reset(seed=seed)
        expected.append([fresh.step(action)[0] for _ in range(2)])
        fresh.close()
    for seed in (0, 0, 1, 1, 0):
        env.reset(seed=seed)
        np.testing.assert_array_equal([env.step(action)[0] for _ in range(2)], expected[seed])
        env.reset(seed=seed)
        env.step(action)
    env.close()


@pytest.mark.parametrize("task", AGENTS)
def test_fresh_episodes_equal_the_bare_simulators(task):
    from bullet_safety_gym.envs.builder import EnvironmentBuilder
    from gymnasium import spec

    env = make_env(task)
    with redirect_stdout(sys.__stdout__), redirect_stderr(sys.__stderr__):
        bare = EnvironmentBuilder(**spec(env.unwrapped.task.env_id).kwargs)
    state = np.random.get_state()
    np.random.seed(11)
    expected = [bare.reset()[0]]
    np.random.set_state(state)
    observed = [env.reset(seed=11)[0]]
    action = np.linspace(-0.9, 0.8, env.action_space.shape[0], dtype=np.float32)
    for _ in range(20):
        observation, reward, *_ = bare.step(action)
        expected.append(np.append(observation, reward))
        observation, reward, *_ = env.step(action)
        observed.append(np.append(observation, reward))
    for row, expected_row in zip(observed, expected, strict=True):
        np.testing.assert_array_equal(np.float32(row), np.float32(expected_row))
    bare.close()
    env.close()


def test_seed_of_make_env_is_that_of_the_first_reset():
    env, other = make_env("ballcircle", seed=5), make_env("ballcircle")
    first, second = play(env), play(env)
    np.testing.assert_array_equal(first, play(other, seed=5))
    np.testing.assert_array_equal(second, play(other))  # the stream goes on from there
    assert not np.array_equal(first, second)
    env.close()
    other.close()


def test_environments_without_a_seed_differ_even_if_numpy_is_seeded():
    starts = []
    for _ in range(2):
        np.random.seed(0)
        starts.append(play_fresh("ballcircle", None, steps=0))
    assert not np.array_equal(*starts)


def test_environments_in_one_process_do_not_disturb_each_other():
    seeds = (1, 2)
    expected = [np.concatenate([play_fresh("ballcircle", seed)]) for seed in seeds]
    envs = [make_env("ballcircle", seed=seed) for seed in seeds]
    generators = [np.random.default_rng(0) for _ in seeds]
    rows = [[np.append(env.reset()[0], [0, 0])] for env in envs]
    for _ in range(40):
        for env, generator, row in zip(envs, generators, rows, strict=True):
            observation, reward, _, _, info = env.step(generator.uniform(-1, 1, 2))
            row.append(np.append(observation, [reward, info["cost"]]))
    for env, row, episode in zip(envs, rows, expected, strict=True):
        np.testing.assert_array_equal(np.array(row), episode)
        env.close()


@pytest.mark.parametrize("task", [task.short_name for task in BULLET_TASKS])
def test_global_numpy_generator_is_left_alone(task):
    np.random.seed(123)
    expected = np.random.random(3)
    np.random.seed(123)
    env = make_env(task, seed=0)
    play(env, steps=5)
    play(env, seed=4, steps=5)
    env.close()
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_large_seeds_differ_from_their_low_words():
    np.testing.assert_array_equal(play_fresh("ballcircle", 2**40 + 1), play_fresh("ballcircle", 2**40 + 1))
    assert not np.array_equal(play_fresh("ballcircle", 2**40 + 1), play_fresh("ballcircle", 1))


def test_what_is_drawn_from_the_global_generator_leaves_no_trace():
    np.random.seed(0)
    expected = np.random.RandomState(0).random(2)
    assert np.random.random() == expected[0]
    with pytest.raises(ZeroDivisionError), global_generator_kept():
        1 / int(np.random.random(5)[0])
    assert np.random.random() == expected[1]


def test_an_own_generator_goes_on_where_it_was():
    own, expected = np.random.RandomState(7), np.random.RandomState(7).random(4)
    np.random.seed(0)
    for start in (0, 2):
        with as_global_generator(own):
            assert np.random.random(2).tolist() == expected[start : start + 2].tolist()
    assert np.random.random() == np.random.RandomState(0).random()
