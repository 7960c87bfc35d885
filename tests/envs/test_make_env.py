"""What make_env refuses, and how it says so."""

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError

from spi_diffusers.data.tasks import UnknownTaskError, get_task
from spi_diffusers.envs import PixelWorldEnv, SimulatorNotInstalledError, make_env, make_vector_env
from spi_diffusers.envs.make import UniformEnv, check_seed


def test_unknown_task():
    with pytest.raises(UnknownTaskError, match="ballcircel"):
        make_env("ballcircel")


@pytest.mark.parametrize(
    ("task", "needed"),
    [("pointgoal1", "safety-gymnasium.*Python 3.10"), ("easysparse", "MetaDrive")],
)
def test_tasks_without_a_simulator_say_what_is_needed(task, needed):
    with pytest.raises(SimulatorNotInstalledError, match=needed) as caught:
        make_env(task)
    assert "dataset can still be loaded" in str(caught.value)
    assert get_task(task).name in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"render_mode": "human"}, "render_mode.*'human'"),
        ({"render_size": (0, 10)}, "render_size"),
        ({"render_size": (10,)}, "render_size"),
        ({"render_size": 10}, "render_size"),
        ({"render_size": (10, True)}, "render_size"),
        ({"render_size": (10.0, 10)}, "render_size"),
        ({"render_size": (float("nan"), 10)}, "render_size"),
        ({"seed": -1}, "seed.*-1"),
        ({"seed": 1.5}, r"seed.*1\.5"),
        ({"seed": True}, "seed.*True"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_env("ballcircle", **kwargs)


def test_numpy_seeds_are_seeds():
    assert check_seed(np.int64(3)) == 3
    assert type(check_seed(np.uint32(3))) is int


def test_step_before_reset_is_refused():
    pytest.importorskip("bullet_safety_gym")
    env = make_env("ballcircle", seed=0)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step([0.0, 0.0])
    with pytest.raises(ValueError, match="seed"):
        env.reset(seed=-3)
    env.close()


def test_a_simulator_without_a_cost_is_refused():
    class Costless(gymnasium.Wrapper):
        def step(self, action):
            return (*self.env.step(action)[:4], {})

    env = UniformEnv(Costless(PixelWorldEnv()))
    env.reset()
    with pytest.raises(KeyError, match="no cost"):
        env.step(np.array([1.0, 0.0], np.float32))


@pytest.mark.parametrize(
    ("task", "module"), [("ballcircle", "bullet_safety_gym"), ("hoppervelocity", "mujoco")]
)
def test_a_closed_environment_says_so(task, module):
    pytest.importorskip(module)
    env = make_env(task, seed=0)
    env.reset()
    env.close()
    env.close()
    for call in (lambda: env.step(np.zeros(env.action_space.shape)), env.reset, env.render):
        with pytest.raises(ClosedEnvironmentError, match="was closed; make a new one"):
            call()
    together = make_vector_env(task, 2, seed=0)
    together.reset()
    together.close()
    with pytest.raises(ClosedEnvironmentError):
        together.step(np.zeros(together.action_space.shape))
