"""Episodes stepped together count every reward and cost exactly once, whichever backend."""

import os
import signal
import threading

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spi_diffusers.envs import PixelWorldEnv, episode_seeds, make_env, make_vector_env
from spi_diffusers.envs.make import PURPOSES, HoldAfterEnd
from spi_diffusers.envs.pixel_world import DOWN, LEFT, RIGHT, white_trajectory
from spi_diffusers.envs.workers import SubEnvironmentDiedError


def actions_of(num_envs, action_dim, steps):
    return np.random.default_rng(0).uniform(-1.2, 1.2, (steps, num_envs, action_dim)).astype(np.float32)


def play_together(env, actions):
    """Per-step observations, rewards, costs and ends, until all episodes have ended."""
    observation, info = env.reset()
    record = {"observation": [observation], "reward": [], "cost": [], "ended": [info["ended"]]}
    for action in actions:
        if info["ended"].all():
            break
        observation, reward, terminated, truncated, info = env.step(action)
        assert not terminated.any()
        assert not truncated.any()
        record["observation"].append(observation)
        record["reward"].append(reward)
        record["cost"].append(info["cost"])
        record["ended"].append(info["ended"])
    assert info["ended"].all()
    env.close()
    record["terminated"], record["truncated"] = info["terminated_episode"], info["truncated_episode"]
    return {key: np.array(values) for key, values in record.items()}


def play_by_hand(task, seed, actions):
    """Return, cost return, length, last observation, terminated, truncated of one episode."""
    env = make_env(task, seed=seed)
    env.reset()
    total = cost = 0.0
    for step, action in enumerate(actions, start=1):  # noqa: B007
        observation, reward, terminated, truncated, info = env.step(action)
        total, cost = total + reward, cost + info["cost"]
        if terminated or truncated:
            break
    env.close()
    return total, cost, step, observation, terminated, truncated


# With these seeds the first BallRun episode ends on a step that costs, the drones crash and the hoppers fall
# at different times: the cases in which automatic resets corrupt sums.
@pytest.mark.parametrize(
    ("task", "action_dim", "steps"),
    [("ballrun", 2, 100), ("dronecircle", 4, 300), ("hoppervelocity", 3, 300)],
)
def test_sums_equal_those_of_episodes_stepped_by_hand(task, action_dim, steps):
    pytest.importorskip("mujoco" if task == "hoppervelocity" else "bullet_safety_gym")
    actions = actions_of(3, action_dim, steps)
    together = play_together(make_vector_env(task, 3, seed=3), actions)
    assert together["cost"].dtype == together["reward"].dtype == np.float64
    assert together["observation"].dtype == np.float32
    lengths = []
    for index, seed in enumerate(episode_seeds(3, 3)):
        total, cost, length, observation, terminated, truncated = play_by_hand(task, seed, actions[:, index])
        assert together["reward"][:, index].sum() == pytest.approx(total, abs=1e-9)
        assert together["cost"][:, index].sum() == cost
        assert (~together["ended"][:, index]).sum() == length
        np.testing.assert_array_equal(
            together["observation"][length:, index], [observation] * (len(together["observation"]) - length)
        )
        assert (together["reward"][length:, index] == 0).all()
        assert (together["cost"][length:, index] == 0).all()
        assert bool(together["terminated"][index]) == terminated
        assert bool(together["truncated"][index]) == truncated
        lengths.append(length)
    if task == "ballrun":
        assert together["cost"][-1, 0] == 1.0
        assert together["truncated"].all()
    else:
        assert len(set(lengths)) > 1
        assert together["terminated"].any()


@pytest.mark.parametrize(("task", "action_dim"), [("ballrun", 2), ("hoppervelocity", 3)])
def test_async_equals_sync(task, action_dim):
    pytest.importorskip("mujoco" if task == "hoppervelocity" else "bullet_safety_gym")
    actions = actions_of(3, action_dim, 300)
    sync = play_together(make_vector_env(task, 3, seed=3), actions)
    parallel = play_together(make_vector_env(task, 3, seed=3, backend="async"), actions)
    for key, values in sync.items():
        np.testing.assert_array_equal(parallel[key], values, err_msg=key)
    starts = sync["observation"][0]
    assert len(np.unique(starts, axis=0)) == 3  # the workers differ
    if task == "hoppervelocity":
        assert sync["terminated"].all()
        assert len(set(sync["ended"].sum(0))) > 1  # they fell at different times


def test_resets_start_new_episodes_with_the_given_seeds():
    pytest.importorskip("bullet_safety_gym")
    env = make_vector_env("ballcircle", 2, seed=0)
    first, _ = env.reset()
    second, infos = env.reset()
    assert not np.array_equal(first, second)
    assert not infos["ended"].any()
    again, _ = env.reset(seed=episode_seeds(0, 2))
    np.testing.assert_array_equal(first, again)
    env.close()


@pytest.mark.parametrize(
    "moment", ["between steps", "in a step", "before closing", "with an error", "Ctrl-C"]
)
def test_processes_end_together_whatever_ends_one(moment):
    pytest.importorskip("bullet_safety_gym")
    env = make_vector_env("ballcircle", 2, seed=0, backend="async")
    env.reset()
    actions = np.zeros((2, 2), np.float32)
    if moment == "with an error":
        with pytest.raises(ValueError, match="is not finite"):
            env.step(np.array([[0, 0], [0, np.nan]], np.float32))
    elif moment == "Ctrl-C":
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # only the workers ignore it
        os.kill(env.processes[1].pid, signal.SIGSTOP)  # so that the step lasts until the interrupt
        main = threading.main_thread().ident
        threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            env.step(actions)
    else:
        if moment == "in a step":
            os.kill(env.processes[1].pid, signal.SIGSTOP)  # else its step may be done before
            env.step_async(actions)
        os.kill(env.processes[1].pid, signal.SIGKILL)
        if moment != "before closing":
            message = r"sub-environment 1 \(by SIGKILL\) has ended, and all others with it"
            with pytest.raises(SubEnvironmentDiedError, match=message):
                env.step_wait() if moment == "in a step" else env.step(actions)
    if moment != "before closing":
        with pytest.raises(gymnasium.error.ClosedEnvironmentError):
            env.step(actions)
    env.close()
    env.close()
    assert not any(process.is_alive() for process in env.processes)


def test_cost_of_the_last_step_counts_once():
    # Three Pixel worlds: one falls into the trap on its 4th move, one walks for ever, one reaches the goal.
    def make():
        return HoldAfterEnd(
            gymnasium.wrappers.TimeLimit(PixelWorldEnv(3, continuous=False), max_episode_steps=6)
        )

    env = gymnasium.vector.SyncVectorEnv([make] * 3)
    _, infos = env.reset()
    assert not infos["ended"].any()
    moves = np.array([[*white_trajectory(3), 0, 0, 0, 0], [LEFT] * 8, [RIGHT] * 2 + [DOWN] * 6]).T
    rewards, costs, ended = [], [], []
    for move in moves:
        _, reward, terminated, truncated, infos = env.step(move)
        assert not (terminated | truncated).any()
        rewards.append(reward)
        costs.append(infos["cost"])
        ended.append(infos["ended"])
    assert np.array(costs).T.tolist() == [[0, 0, 0, 1, 0, 0, 0, 0], [0] * 8, [0] * 8]
    assert np.array(rewards).T.tolist() == [[0] * 8, [0] * 8, [0, 1, 0, 0, 0, 0, 0, 0]]
    assert np.argmax(ended, axis=0).tolist() == [3, 5, 1]
    assert infos["terminated_episode"].tolist() == [True, False, True]
    assert infos["truncated_episode"].tolist() == [False, True, False]
    env.close()


def test_hold_after_end_needs_a_reset():
    with pytest.raises(gymnasium.error.ResetNeeded):
        HoldAfterEnd(PixelWorldEnv()).step(np.zeros(2))


@pytest.mark.parametrize("num_envs", [-1, 1.5, True])
def test_no_number_of_episodes(num_envs):
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 0"):
        episode_seeds(0, num_envs)


@given(seed=st.integers(0, 2**70), num_envs=st.integers(1, 40))
@settings(max_examples=50)
def test_episode_seeds_do_not_depend_on_the_number_of_episodes(seed, num_envs):
    seeds = episode_seeds(seed, num_envs)
    assert len(seeds) == num_envs
    assert all(type(value) is int and 0 <= value < 2**32 for value in seeds)
    assert episode_seeds(seed, num_envs + 7)[:num_envs] == seeds
    assert episode_seeds(seed, 7, first=num_envs) == episode_seeds(seed, num_envs + 7)[num_envs:]


def test_purposes_have_seeds_of_their_own():
    """Also where a simulator takes 32 bits of them."""
    words = {purpose: episode_seeds(3, 500, purpose) for purpose in PURPOSES}
    assert words["evaluation"] == episode_seeds(3, 500)
    for place, seeds in enumerate(words.values()):
        assert all(place * 2**32 <= seed < (place + 1) * 2**32 for seed in seeds)
    assert len({seed % 2**32 for seeds in words.values() for seed in seeds}) == 1500
    assert episode_seeds(3, 600, "tuning")[:500] == words["tuning"]
    with pytest.raises(ValueError, match="one of evaluation, tuning, certification; got 'fun'"):
        episode_seeds(3, 5, "fun")


def test_neighbouring_evaluations_share_no_episode():
    seeds = [seed for evaluation in range(50) for seed in episode_seeds(evaluation, 100)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_envs": 0}, "num_envs.*0"),
        ({"num_envs": 2.0}, "num_envs"),
        ({"num_envs": True}, "num_envs"),
        ({"backend": "threads"}, "backend.*'threads'"),
        ({"seed": -1}, "seed.*-1"),
        ({"render_mode": "human"}, "render_mode"),
    ],
)
def test_bad_arguments_of_make_vector_env(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_vector_env("ballcircle", **{"num_envs": 2, "seed": 0, **kwargs})
