"""Tasks as the real dsrl makes them: what is taken from it, and what is said where it is missing."""

import sys
from types import ModuleType

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import registry

from spi_diffusers.data.tasks import get_task
from spi_diffusers.envs import SimulatorNotInstalledError, make_env, make_vector_env

BALL = get_task("ballcircle")


class TheirEnv(gymnasium.Env):
    """Speaks dsrl's protocol: five values, and the cost in the info."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1, 1, (8,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 8), {}

    def step(self, action):
        return np.full(8, action[0]), 0.5, False, False, {"cost": np.float64(1.0)}


@pytest.fixture
def installed(monkeypatch):
    """As if dsrl had just been imported: it has registered one of its tasks over ours."""
    monkeypatch.setitem(sys.modules, "dsrl", ModuleType("dsrl"))
    spec = gymnasium.envs.registration.EnvSpec(id=BALL.name, entry_point=TheirEnv, max_episode_steps=3)
    monkeypatch.setitem(registry, BALL.name, spec)


@pytest.mark.usefixtures("installed")
def test_their_environment_behind_our_interface():
    env = make_env("ballcircle", seed=3, backend="dsrl")
    assert isinstance(env.unwrapped, TheirEnv)
    observation, info = env.reset()
    assert (observation.dtype, info["cost"]) == (np.float32, 0.0)
    np.testing.assert_array_equal(make_env("ballcircle", backend="dsrl").reset(seed=3)[0], observation)
    for step in range(1, BALL.max_episode_steps + 1):
        observation, reward, terminated, truncated, info = env.step([0.25, 0.0])
        assert (observation.tolist(), reward, info["cost"]) == ([0.25] * 8, 0.5, 1.0)
        assert (terminated, truncated) == (False, step == BALL.max_episode_steps)


@pytest.mark.usefixtures("installed")
def test_a_vector_of_them():
    env = make_vector_env("ballcircle", 2, seed=0, simulator="dsrl")
    env.reset()
    assert env.step(np.zeros((2, 2), np.float32))[4]["cost"].tolist() == [1.0, 1.0]
    env.close()
    with pytest.raises(ValueError, match="must be one of 'auto', 'bullet', 'dsrl'; got 'sync'"):
        make_vector_env("ballcircle", 2, seed=0, simulator="sync")


@pytest.mark.usefixtures("installed")
def test_a_task_that_it_has_not_registered():
    with pytest.raises(SimulatorNotInstalledError, match=r"CarCircle-v0 .*has not registered the task"):
        make_env("carcircle", backend="dsrl")


@pytest.mark.parametrize("task", ["ballcircle", "antvelocity", "pointgoal1"])
def test_missing_package(monkeypatch, task):
    monkeypatch.setitem(sys.modules, "dsrl", None)  # importing it is an ImportError
    with pytest.raises(
        SimulatorNotInstalledError, match=r"pip install dsrl.*Python 3\.10 and before"
    ) as caught:
        make_env(task, backend="dsrl")
    assert get_task(task).name in str(caught.value)


def test_their_environments_that_cannot_be_made(monkeypatch, installed):
    def fail(**_):
        raise TypeError("an unexpected keyword")

    monkeypatch.setattr(registry[BALL.name], "entry_point", fail)
    with pytest.raises(SimulatorNotInstalledError, match=r"by dsrl \(TypeError: an unexpected keyword\)"):
        make_env("ballcircle", backend="dsrl")
