"""Tasks in the real safety-gymnasium: the adapter, and what is said where it cannot run."""

import sys
from types import ModuleType

import gymnasium
import numpy as np
import pytest

from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.envs import SimulatorNotInstalledError, make_env
from spi_diffusers.envs.make import UniformEnv
from spi_diffusers.envs.safety_gymnasium import SafetyGymnasiumEnv


class SixTuple(gymnasium.Env):
    """Speaks safety-gymnasium's protocol: the cost is returned beside the reward."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self):
        self.seeds, self.closed = [], False

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return np.zeros(3), {"options": options}

    def step(self, action):
        return np.full(3, action[0]), 0.5, np.float64(2.0), False, True, {"cost_sum": 2.0}

    def render(self):
        return np.zeros((4, 5, 3), np.uint8)

    def close(self):
        self.closed = True


def test_the_cost_moves_into_the_info():
    env = UniformEnv(SafetyGymnasiumEnv(SixTuple()))
    assert env.reset(seed=1)[1] == {"options": None, "cost": 0.0}
    observation, reward, terminated, truncated, info = env.step(np.array([0.25, 0.0]))
    assert observation.tolist() == [0.25] * 3
    assert (reward, terminated, truncated) == (0.5, False, True)
    assert info == {"cost_sum": 2.0, "cost": 2.0}
    assert type(info["cost"]) is float


def test_seeds_never_come_from_the_global_generator():
    first, second = SixTuple(), SixTuple()
    for simulator in (first, second):
        np.random.seed(0)  # noqa: NPY002
        env = SafetyGymnasiumEnv(simulator)
        env.reset()
        env.reset()
        env.reset(seed=2**32 + 7)
        env.reset()
    assert first.seeds[0] != second.seeds[0]  # 32 bits of the operating system
    assert 0 <= first.seeds[0] < 2**32
    assert first.seeds[1:] == second.seeds[1:] == [None, 7, None]


def test_rendering_and_closing_are_passed_on():
    simulator = SixTuple()
    assert SafetyGymnasiumEnv(simulator).render() is None
    env = SafetyGymnasiumEnv(simulator, render_mode="rgb_array")
    assert (env.render_mode, env.metadata["render_modes"]) == ("rgb_array", ["rgb_array"])
    assert env.render().shape == (4, 5, 3)
    env.close()
    assert simulator.closed


@pytest.fixture
def without(monkeypatch):
    monkeypatch.setitem(sys.modules, "safety_gymnasium", None)  # importing it is an ImportError


@pytest.mark.usefixtures("without")
def test_missing_package():
    with pytest.raises(
        SimulatorNotInstalledError, match=r"OfflinePointGoal1Gymnasium-v0.*Python 3\.10"
    ) as caught:
        make_env("pointgoal1")
    assert "dataset can still be loaded" in str(caught.value)
    with pytest.raises(SimulatorNotInstalledError, match=r"'gymnasium' \(or 'auto'\) simulates"):
        make_env("hoppervelocity", simulator="safety_gymnasium")


def test_a_release_that_cannot_make_its_tasks(monkeypatch):
    def make(*_, **__):
        np.random.random(5)  # noqa: NPY002
        raise ValueError("mutable default <class 'numpy.ndarray'> is not allowed")

    # What release 1.0.0 does on Python 3.11: it imports, and every make fails.
    release = ModuleType("safety_gymnasium")
    release.make = make
    monkeypatch.setitem(sys.modules, "safety_gymnasium", release)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    with pytest.raises(SimulatorNotInstalledError, match=r"ValueError: mutable default.*Python 3\.10"):
        make_env("cargoal1")
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("task", "simulator", "names"),
    [
        ("ballcircle", "safety_gymnasium", "'auto', 'bullet', 'dsrl'; got 'safety_gymnasium'"),
        ("hoppervelocity", "bullet", "'auto', 'gymnasium', 'safety_gymnasium', 'dsrl'; got 'bullet'"),
        ("pointgoal1", "gymnasium", "'auto', 'safety_gymnasium', 'dsrl'; got 'gymnasium'"),
        ("easysparse", "gymnasium", "'auto'; got 'gymnasium'"),
    ],
)
def test_simulators_that_a_task_does_not_have(task, simulator, names):
    with pytest.raises(ValueError, match=f"simulator of task {get_task(task).name} must be one of {names}"):
        make_env(task, simulator=simulator)


@pytest.mark.parametrize("simulator", ["velocity", "safety_gymnasium"])
def test_the_real_one(simulator):
    pytest.importorskip("safety_gymnasium", reason="safety-gymnasium's releases need Python 3.10 or before")
    generator = np.random.default_rng(0)
    for task in TASKS.values():
        if task.simulator != simulator:
            continue
        env = make_env(task, simulator="safety_gymnasium")
        # Where both can run, they are the same task bit for bit; else the same seed is the same episode.
        other = make_env(task, simulator="auto")
        observation, info = env.reset(seed=5)
        assert info["cost"] == 0.0
        assert observation.shape == (task.observation_dim,)
        assert env.action_space.shape == (task.action_dim,)
        np.testing.assert_array_equal(observation, other.reset(seed=5)[0])
        for _ in range(50):
            action = generator.uniform(-1, 1, task.action_dim)
            mine, theirs = env.step(action), other.step(action)
            np.testing.assert_array_equal(mine[0], theirs[0])
            assert mine[1:4] == theirs[1:4]
            assert mine[4]["cost"] == theirs[4]["cost"]
            if mine[2]:
                break
        env.close()
        other.close()
