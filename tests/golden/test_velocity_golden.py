"""Our Velocity tasks are the real ones bit for bit (see velocity_golden.py)."""

import importlib.metadata
import platform

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from velocity_golden import FILE, ROBOTS, STEPS

from spi_diffusers.data.simulators import release_numbers
from spi_diffusers.data.tasks import TASKS
from spi_diffusers.envs import make_env
from spi_diffusers.envs.velocity import make_velocity_env

with safe_open(FILE, "numpy") as file:
    ABOUT = file.metadata()


@pytest.fixture(scope="module")
def tensors():
    pytest.importorskip("mujoco")
    mujoco = importlib.metadata.version("mujoco")
    if release_numbers(mujoco)[:2] != (2, 3):
        pytest.skip(f"mujoco {mujoco} simulates differently; recorded with mujoco {ABOUT['mujoco']}")
    here = (platform.system(), platform.machine())
    if here != (ABOUT["system"], ABOUT["machine"]):
        pytest.skip(f"{here} may round differently; recorded on {ABOUT['system']} {ABOUT['machine']}")
    return load_file(FILE)


def play(env, golden, seed):
    """The same calls as when the trajectory was recorded."""
    resets, observations, steps = set(golden["resets"].tolist()), [], []
    for index, action in enumerate(golden["actions"]):
        if index in resets:
            observations.append(env.reset(seed=seed if index == 0 else None)[0])
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        steps.append((reward, info["cost"], terminated, truncated))
    env.close()
    return np.array(observations), [np.array(column) for column in zip(*steps, strict=True)]


@pytest.mark.parametrize("robot", ROBOTS)
def test_trajectory(tensors, robot):
    golden = {
        name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(f"{robot}/")
    }
    task = TASKS[f"Offline{robot}VelocityGymnasium-v1"]
    seed = int(ABOUT["seed"])
    observations, steps = play(make_velocity_env(task), golden, seed)
    assert observations.dtype == np.float64
    np.testing.assert_array_equal(observations, golden["observations"])
    for name, values in zip(("rewards", "costs", "terminated", "truncated"), steps, strict=True):
        np.testing.assert_array_equal(values, golden[name], err_msg=name)
    # What users get is the same, with observations rounded to float32.
    observations, again = play(make_env(task), golden, seed)
    np.testing.assert_array_equal(observations, golden["observations"].astype(np.float32))
    assert all(np.array_equal(first, second) for first, second in zip(steps, again, strict=True))


def test_the_trajectories_hold_both_kinds_of_steps_and_real_ends():
    tensors = load_file(FILE)
    for robot in ROBOTS:
        costs, ends = tensors[f"{robot}/costs"], tensors[f"{robot}/terminated"]
        assert len(costs) == STEPS
        assert set(costs.tolist()) == {0.0, 1.0}
        assert ends[:-1].sum() == len(tensors[f"{robot}/resets"]) - 1
        assert ends.any() == (robot in ("Ant", "Hopper", "Walker2d"))
    assert ABOUT["safety-gymnasium"] == "1.0.0"
