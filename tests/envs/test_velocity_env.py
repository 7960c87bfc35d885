"""The Velocity tasks in the real simulator (skipped where MuJoCo is not installed)."""

import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.envs import SimulatorNotInstalledError, make_env, make_vector_env
from spi_diffusers.envs.velocity import VELOCITY_THRESHOLDS, VelocityCost, choose_renderer

VELOCITY_TASKS = [task for task in TASKS.values() if task.simulator == "velocity"]


class Runner(gymnasium.Env):
    """Runs at the velocities it is told, to see the cost on both sides of the threshold."""

    action_space = gymnasium.spaces.Box(-10, 10, (2,))
    observation_space = gymnasium.spaces.Box(-10, 10, (2,))

    def step(self, action):
        info = {"x_velocity": float(action[0]), "y_velocity": float(action[1])}
        return action, 0.0, False, False, info


@pytest.mark.parametrize(
    ("planar", "velocity", "cost"),
    [
        (False, (2.0, 5.0), 0.0),  # at the threshold is within it; sideways does not count
        (False, (2.01, 0.0), 1.0),
        (False, (-3.0, 0.0), 0.0),  # backwards is not too fast forwards
        (True, (1.2, 1.61), 1.0),  # 2.008
        (True, (1.2, 1.59), 0.0),  # 1.992
        (True, (-3.0, 0.0), 1.0),
    ],
)
def test_cost_is_exceeding_the_threshold(planar, velocity, cost):
    assert VelocityCost(Runner(), 2.0, planar=planar).step(np.array(velocity))[4]["cost"] == cost


def test_every_velocity_task_has_a_threshold():
    robots = {task.env_id.removeprefix("Safety").removesuffix("Velocity-v1") for task in VELOCITY_TASKS}
    assert robots == set(VELOCITY_THRESHOLDS)


def test_missing_mujoco_names_the_extra(monkeypatch):
    import importlib.metadata

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(SimulatorNotInstalledError, match=r"spi-diffusers\[mujoco\]"):
        make_env("hoppervelocity")


def test_versions_that_do_not_fit_are_named(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.3.7")
    monkeypatch.setattr(gymnasium, "__version__", "0.28.1")
    with pytest.raises(SimulatorNotInstalledError, match=r"0\.28\.1 cannot run mujoco 2\.3\.7.*2\.3\.3"):
        make_env("hoppervelocity")


@pytest.mark.parametrize("task", VELOCITY_TASKS, ids=lambda task: task.short_name)
def test_episode_of_every_velocity_task(task):
    pytest.importorskip("mujoco")
    env, again = make_env(task, seed=1), make_env(task)
    observation, info = env.reset()
    assert observation.shape == (task.observation_dim,)
    assert observation.dtype == np.float32
    np.testing.assert_array_equal(observation, again.reset(seed=1)[0])
    generator = np.random.default_rng(0)
    threshold = VELOCITY_THRESHOLDS[task.env_id.removeprefix("Safety").removesuffix("Velocity-v1")]
    for step in range(1, task.max_episode_steps + 1):
        action = generator.uniform(-1.5, 1.5, task.action_dim)
        observation, reward, terminated, truncated, info = env.step(action)
        other = again.step(np.clip(action, -1, 1))
        np.testing.assert_array_equal(observation, other[0])
        assert reward == other[1]
        velocity = (
            np.hypot(info["x_velocity"], info["y_velocity"]) if "Ant" in task.name else info["x_velocity"]
        )
        assert info["speed"] == pytest.approx(velocity, rel=1e-12)
        assert info["cost"] == float(velocity > threshold)
        if terminated:
            break
        assert truncated == (step == task.max_episode_steps)
    env.close()
    again.close()


def test_velocity_episodes_together_equal_those_by_hand():
    pytest.importorskip("mujoco")
    env = make_vector_env("hoppervelocity", 3, seed=2)
    _, infos = env.reset()
    cost, length = np.zeros(3), np.zeros(3, int)
    while not infos["ended"].all():
        length += ~infos["ended"]
        _, _, _, _, infos = env.step(np.ones((3, 3), np.float32))
        cost += infos["cost"]
    env.close()
    assert infos["terminated_episode"].all()  # full thrust makes the hopper fall, after running too fast
    assert (cost > 0).all()
    assert (cost < length).all()
    assert (length < get_task("hoppervelocity").max_episode_steps).all()


# In processes of their own, because MuJoCo chooses its renderer when it is first imported. Whether OpenGL can
# be had here is decided without our code, so that a failure of ours is not taken for a lack of it.
PROBE = """
import mujoco
context = mujoco.GLContext(8, 8)
context.make_current()
from OpenGL import GL
print(GL.glGetString(GL.GL_VERSION).decode())
"""
RENDER = """
import numpy as np
from spi_diffusers.envs import make_env
env = make_env("hoppervelocity", seed=0, render_mode="rgb_array", render_size=(48, 64))
env.reset()
frames = [env.render()]
for _ in range(20):
    env.step(np.ones(3))
frames.append(env.render())
env.close()
assert [frame.shape for frame in frames] == [(48, 64, 3)] * 2
assert [frame.dtype for frame in frames] == [np.uint8] * 2
assert all(len(np.unique(frame.reshape(-1, 3), axis=0)) > 50 for frame in frames), "an empty picture"
assert (frames[0] != frames[1]).any(), "the hopper does not move"
"""


def run_without_a_display(code, **variables):
    hidden = ("DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | variables
    words = [sys.executable, "-c", code]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("platform", "chosen"), [("linux", "egl"), ("darwin", None), ("win32", None)])
def test_only_on_linux_a_missing_display_means_egl(monkeypatch, platform, chosen):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    choose_renderer("rgb_array")
    assert os.environ.pop("MUJOCO_GL", None) == chosen


@pytest.mark.parametrize("renderer", ["egl", "osmesa", None], ids=str)
def test_rendering_without_a_display(renderer):
    pytest.importorskip("mujoco")
    # Where nobody chooses, EGL is what make_env takes.
    probe = run_without_a_display(PROBE, MUJOCO_GL=renderer or "egl")
    if probe.returncode != 0 or not probe.stdout:
        reason = (probe.stderr.strip() or "it gives no context").splitlines()[-1]
        pytest.skip(f"no OpenGL through {renderer or 'egl'} here: {reason}")
    process = run_without_a_display(RENDER, **({"MUJOCO_GL": renderer} if renderer else {}))
    assert process.returncode == 0, process.stderr[-3000:]
