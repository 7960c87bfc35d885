"""Tasks as the real dsrl makes them: what is taken from it, and what is said where it is missing."""

import sys
from types import ModuleType

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec, registry

from spi_diffusers.data.tasks import get_task
from spi_diffusers.envs import SimulatorNotInstalledError, make_env, make_vector_env

CAR, HOPPER = get_task("carrun"), get_task("hoppervelocity")


class TheirHopper(gymnasium.Env):
    """As dsrl makes it of safety-gymnasium: no render mode, and six values where that has six."""

    observation_space = gymnasium.spaces.Box(-1, 1, (11,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    six_values = True

    def __init__(self, dataset_url=None):
        self.dataset_url = dataset_url
        self.legacy_seed = np.random.randint(2**32, dtype=np.uint64)  # noqa: NPY002  (as safety-gymnasium)

    def reset(self, *, seed=None, options=None):
        self.legacy_seed = self.legacy_seed if seed is None else seed
        generator = np.random.RandomState(self.legacy_seed)  # takes 32 bits
        return generator.uniform(-1, 1, 11), {}

    def step(self, action):
        values, cost, info = (np.full(11, action[0]), 0.5), np.float64(1.0), {"x_velocity": 2.0}
        if self.six_values:
            return *values, cost, False, False, info
        return *values, False, False, {**info, "cost": cost}


def their_car(**numbers):
    """As dsrl makes it: bullet-safety-gym's own class with an interface beside it, which takes no more."""
    from bullet_safety_gym.envs.builder import EnvironmentBuilder

    class OfflineEnv(gymnasium.Env):
        def __init__(self, dataset_url=None, **others):
            super().__init__(**others)

    class OfflineCar(EnvironmentBuilder, OfflineEnv):
        def __init__(self, **options):
            EnvironmentBuilder.__init__(self, "RaceCar", "RunTask", {}, {"name": "Plane200", "factor": 1})
            OfflineEnv.__init__(self, **options)

    return OfflineCar(**numbers)


@pytest.fixture
def installed(monkeypatch):
    """As if dsrl had just been imported: it has registered two of its tasks over ours."""
    monkeypatch.setitem(sys.modules, "dsrl", ModuleType("dsrl"))
    for task, entry_point in ((HOPPER, TheirHopper), (CAR, their_car)):
        spec = EnvSpec(
            id=task.name, entry_point=entry_point, max_episode_steps=3, kwargs={"dataset_url": "http://x"}
        )
        monkeypatch.setitem(registry, task.name, spec)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("six_values", [True, False])
def test_their_environment_behind_our_interface(monkeypatch, six_values):
    monkeypatch.setattr(TheirHopper, "six_values", six_values)
    env = make_env("hoppervelocity", seed=3, simulator="dsrl")
    assert isinstance(env.unwrapped, TheirHopper)
    observation, info = env.reset()
    assert (observation.dtype, info["cost"]) == (np.float32, 0.0)
    np.testing.assert_array_equal(make_env("hoppervelocity", simulator="dsrl").reset(seed=3)[0], observation)
    for step in range(1, HOPPER.max_episode_steps + 1):
        observation, reward, terminated, truncated, info = env.step([0.25, 0.0, 0.0])
        assert (observation.tolist(), reward, info["cost"]) == ([0.25] * 11, 0.5, 1.0)
        assert (terminated, truncated) == (False, step == HOPPER.max_episode_steps)
    with pytest.raises(SimulatorNotInstalledError, match="dsrl's environment draws no pictures"):
        make_env("hoppervelocity", simulator="dsrl", render_mode="rgb_array")


@pytest.mark.usefixtures("installed")
def test_the_global_generator_neither_decides_nor_changes():
    starts = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002
        starts.append(make_env("hoppervelocity", simulator="dsrl").reset()[0])
        assert np.random.random() == np.random.RandomState(0).random()  # noqa: NPY002
    assert (starts[0] != starts[1]).any()
    make_env("hoppervelocity", simulator="dsrl").reset(seed=2**40)  # more than it takes


@pytest.mark.usefixtures("installed")
def test_a_bullet_task_of_theirs_is_mended_as_ours_is():
    pytest.importorskip("bullet_safety_gym")
    theirs = make_env("carrun", simulator="dsrl", render_mode="rgb_array", render_size=(16, 24))
    ours = make_env("carrun")
    np.random.seed(0)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    for _ in range(2):  # the second episode does not depend on the first
        np.testing.assert_array_equal(theirs.reset(seed=7)[0], ours.reset(seed=7)[0])
        for _ in range(20):
            mine, other = ours.step([1.0, 0.4]), theirs.step([1.0, 0.4])
            np.testing.assert_array_equal(mine[0], other[0])
            assert mine[1:4] == other[1:4]
            assert mine[4]["cost"] == other[4]["cost"]
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert theirs.render().shape == (16, 24, 3)
    for env in (theirs, ours):
        env.close()


@pytest.mark.usefixtures("installed")
def test_a_vector_of_them():
    env = make_vector_env("hoppervelocity", 2, seed=0, simulator="dsrl")
    env.reset()
    assert env.step(np.zeros((2, 3), np.float32))[4]["cost"].tolist() == [1.0, 1.0]
    env.close()
    with pytest.raises(ValueError, match="must be one of 'auto', 'bullet', 'dsrl'; got 'sync'"):
        make_vector_env("ballcircle", 2, seed=0, simulator="sync")


@pytest.mark.usefixtures("installed")
def test_a_task_that_it_has_not_registered():
    with pytest.raises(SimulatorNotInstalledError, match=r"CarCircle-v0 .*has not registered the task"):
        make_env("carcircle", simulator="dsrl")


@pytest.mark.parametrize("task", ["ballcircle", "antvelocity", "pointgoal1"])
def test_missing_package(monkeypatch, task):
    monkeypatch.setitem(sys.modules, "dsrl", None)  # importing it is an ImportError
    with pytest.raises(
        SimulatorNotInstalledError, match=r"pip install dsrl.*Python 3\.10 and before"
    ) as caught:
        make_env(task, simulator="dsrl")
    assert get_task(task).name in str(caught.value)


def test_their_environments_that_cannot_be_made(monkeypatch, installed):
    def fail(**_):
        raise TypeError("an unexpected keyword")

    monkeypatch.setattr(registry[CAR.name], "entry_point", fail)
    with pytest.raises(SimulatorNotInstalledError, match=r"by dsrl \(TypeError: an unexpected keyword"):
        make_env("carrun", simulator="dsrl")
