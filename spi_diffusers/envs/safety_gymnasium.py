"""Tasks in the real safety-gymnasium, where it is installed.

Its releases up to 1.0.0 run on Python 3.10 and before, so on the Pythons of this package only a patched or
later version can be here. Its environments return the cost beside the reward; here it is in the info, as
everywhere in gymnasium.
"""

from typing import Any

import gymnasium
import numpy as np

from spi_diffusers.data.simulators import SIMULATORS
from spi_diffusers.data.tasks import Task
from spi_diffusers.envs.errors import SimulatorNotInstalledError
from spi_diffusers.envs.legacy_random import global_generator_kept, reset_seed
from spi_diffusers.envs.velocity import choose_renderer


class SafetyGymnasiumEnv(gymnasium.Env):
    """A safety-gymnasium environment with gymnasium's 5-tuple interface.

    Observations are float64 of shape (observation_dim,), actions of shape (action_dim,); `info["cost"]` is
    the cost of the step.

    Args:
        simulator: the environment without wrappers; its `step` returns observation, reward, cost,
            terminated, truncated, info.
        render_mode: the mode that it was made with.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, simulator: Any, *, render_mode: str | None = None) -> None:
        self._simulator = simulator
        self._seeded = False
        self.render_mode = render_mode
        self.observation_space = simulator.observation_space
        self.action_space = simulator.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: determines the episode; None goes on in this environment's own random stream.
            options: passed on.

        Returns:
            Observation, shape (observation_dim,) float64, and the info.
        """
        super().reset(seed=seed)
        seed, self._seeded = reset_seed(seed, is_first=not self._seeded), True
        return self._simulator.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance one step; the info gains `cost`."""
        action = np.asarray(action, dtype=np.float64)  # as in velocity.py: the reward's digits depend on it
        observation, reward, cost, terminated, truncated, info = self._simulator.step(action)
        return observation, reward, terminated, truncated, {**info, "cost": cost}

    def render(self) -> np.ndarray | None:
        """Draw the scene: (height, width, 3) uint8, or None without `render_mode="rgb_array"`."""
        return None if self.render_mode is None else self._simulator.render()

    def close(self) -> None:
        """Free the simulator."""
        self._simulator.close()

    def __str__(self) -> str:
        return f"<SafetyGymnasiumEnv {self._simulator}>"


def make_safety_gymnasium_env(
    task: Task, *, render_mode: str | None = None, render_size: tuple[int, int] = (360, 480)
) -> gymnasium.Env:
    """Make a task in the real safety-gymnasium; no time limit is added.

    Args:
        task: a task with `simulator` "safety_gymnasium" or "velocity".
        render_mode: None or "rgb_array".
        render_size: height and width of a rendered frame in pixels.

    Returns:
        The environment.

    Raises:
        SimulatorNotInstalledError: safety-gymnasium is missing, or cannot make the task here.
    """
    choose_renderer(render_mode)
    try:
        with global_generator_kept():  # its constructor draws from it
            import safety_gymnasium

            simulator = safety_gymnasium.make(
                task.env_id, render_mode=render_mode, height=render_size[0], width=render_size[1]
            ).unwrapped
    except Exception as error:  # a version that does not fit fails in many ways, ValueError on Python 3.11
        raise SimulatorNotInstalledError(
            f"task {task.name} cannot be made in safety-gymnasium ({type(error).__name__}: {error}); "
            f"{SIMULATORS['safety_gymnasium'].note}. {_WITHOUT[task.simulator]}"
        ) from error
    return SafetyGymnasiumEnv(simulator, render_mode=render_mode)


_WITHOUT = {
    "safety_gymnasium": "Its dataset can still be loaded and trained on",
    "velocity": "'gymnasium' (or 'auto') simulates the same task, bit for bit, without it",
}
