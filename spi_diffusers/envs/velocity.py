"""The Velocity tasks: gymnasium's own MuJoCo robots plus the cost of running too fast.

These are the tasks of safety-gymnasium 1.0 (Ji et al., 2023), which does not run on Python 3.11 and
later: its environments are gymnasium's `-v4` ones with cost = 1 if the velocity exceeds a threshold, else
0. Observations, rewards, costs and ends are the same bit for bit. Newer MuJoCo versions than 2.3 are not
the same simulator: with 3.x results drift, with 4.x they differ.
"""

import importlib.metadata
import os
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np

from spi_diffusers.data.simulators import (
    SimulatorNotInstalledError,
    install_command,
    mujoco_conflict,
    other_dynamics,
)
from spi_diffusers.data.tasks import Task

#: Velocity (m/s) above which a step costs 1: half of what an unconstrained PPO policy reaches (v1 tasks).
VELOCITY_THRESHOLDS = {
    "Ant": 2.6222,
    "HalfCheetah": 3.2096,
    "Hopper": 0.7402,
    "Swimmer": 0.2282,
    "Walker2d": 2.3415,
}


class VelocityCost(gymnasium.Wrapper):
    """Add the cost to the info of a gymnasium MuJoCo robot: 1 if its velocity is above `threshold`, m/s.

    The velocity is the forward one, except for Ant, which runs in the plane: sqrt(vx^2 + vy^2) (`planar`).
    """

    def __init__(self, env: gymnasium.Env, threshold: float, *, planar: bool) -> None:
        super().__init__(env)
        self._threshold = threshold
        self._planar = planar

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step; the info gains `cost`, 0.0 or 1.0, and `speed`, m/s, which the cost looks at."""
        # The reward holds the action's norm. In float32 its digits would depend on the version of NumPy,
        # because 1.x and 2.x differ in the type of a float32 times a Python float.
        action = np.asarray(action, dtype=np.float64)
        observation, reward, terminated, truncated, info = self.env.step(action)
        velocity = info["x_velocity"]
        if self._planar:
            velocity = np.sqrt(velocity**2 + info["y_velocity"] ** 2)
        cost = float(velocity > self._threshold)
        return observation, reward, terminated, truncated, {**info, "cost": cost, "speed": velocity}


def make_velocity_env(
    task: Task, *, render_mode: str | None = None, render_size: tuple[int, int] = (360, 480)
) -> gymnasium.Env:
    """Make the robot of a Velocity task with its cost; no time limit (`make_env` adds it).

    Without a display MuJoCo renders through EGL. Observations are (observation_dim,) float64, actions
    (action_dim,) float32. SimulatorNotInstalledError if MuJoCo is missing, or does not fit gymnasium's
    version.
    """
    robot = _robot(task)
    _check_versions(task)
    choose_renderer(render_mode)
    try:
        with warnings.catch_warnings():
            # gymnasium advises -v5, which is another environment (Ant observes 105 numbers, not 27).
            warnings.simplefilter("ignore")
            env = gymnasium.make(
                f"{robot}-v4",
                render_mode=render_mode,
                height=render_size[0],
                width=render_size[1],
                disable_env_checker=True,
            ).unwrapped
    except (ImportError, gymnasium.error.DependencyNotInstalled, gymnasium.error.UnregisteredEnv) as error:
        raise SimulatorNotInstalledError(
            f"task {task.name} runs in gymnasium's {robot}-v4 with MuJoCo, which cannot be made here "
            f"({error}). Install it with: {install_command(task.simulator)}"
        ) from error
    env.spec = None  # it is of the robot, without the cost
    env.metadata = {**env.metadata, "render_modes": ["rgb_array"]}
    return VelocityCost(env, speed_threshold(task), planar=robot == "Ant")


def speed_threshold(task: Task) -> float:
    """Speed above which a step of a Velocity task costs 1, m/s."""
    return VELOCITY_THRESHOLDS[_robot(task)]


def choose_renderer(render_mode: str | None) -> None:
    """Let MuJoCo draw through EGL on Linux without a display, unless `MUJOCO_GL` says otherwise."""
    # On macOS and Windows there is no DISPLAY, no EGL either, and MuJoCo's default needs none.
    if render_mode is not None and sys.platform == "linux" and not os.environ.get("DISPLAY"):
        # Read when MuJoCo's renderer is first imported; the default needs a display.
        os.environ.setdefault("MUJOCO_GL", "egl")


def _robot(task: Task) -> str:
    return task.env_id.removeprefix("Safety").partition("Velocity")[0]


def _check_versions(task: Task) -> None:
    """Refuse the pairs of gymnasium and MuJoCo that fail inside, warn of those that simulate differently."""
    try:
        mujoco = importlib.metadata.version("mujoco")
    except importlib.metadata.PackageNotFoundError:
        raise SimulatorNotInstalledError(
            f"task {task.name} runs in MuJoCo, which is not installed. Install it with: "
            f"{install_command(task.simulator)}"
        ) from None
    conflict = mujoco_conflict(gymnasium.__version__, mujoco)
    if conflict:
        raise SimulatorNotInstalledError(f"task {task.name} cannot be simulated: {conflict}")
    if other_dynamics(task.simulator):
        warnings.warn(
            f"mujoco {mujoco} simulates {task.name} differently from the version that the task is defined "
            "by; results are comparable with mujoco 2.3.3 to 2.3.7 only",
            stacklevel=2,
        )
