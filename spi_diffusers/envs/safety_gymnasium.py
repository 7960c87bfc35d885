"""Tasks in the real safety-gymnasium, or as the real `dsrl` makes them, where these are installed.

Their releases run on Python 3.10 and before, so on the Pythons of this package only a patched or later
version can be here, and nothing here needs them: the Bullet and Velocity tasks are simulated without. Their
environments return the cost beside the reward; here it is in the info, as everywhere in gymnasium.
"""

import secrets
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import registry

from spi_diffusers.data.simulators import SIMULATORS, SimulatorNotInstalledError
from spi_diffusers.data.tasks import Task
from spi_diffusers.envs.bullet import BulletEnv, global_generator_kept
from spi_diffusers.envs.velocity import choose_renderer

_WITHOUT_SAFETY_GYMNASIUM = {
    "safety_gymnasium": "Its dataset can still be loaded and trained on",
    "velocity": "'gymnasium' (or 'auto') simulates the same task, bit for bit, without it",
}
_WITHOUT_DSRL = "'auto' instead of 'dsrl' takes the task's simulator directly"


class SafetyGymnasiumEnv(gymnasium.Wrapper):
    """An environment of safety-gymnasium with gymnasium's 5-tuple interface.

    Observations are float64 of shape (observation_dim,), actions of shape (action_dim,). The `step` of `env`
    returns observation, reward, cost, terminated, truncated, info; or, as in some versions of `dsrl`, five
    values with the cost in the info.
    """

    def __init__(self, env: Any, *, render_mode: str | None = None) -> None:
        super().__init__(env)
        self._render_mode = render_mode
        self._seeded = False
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    @property
    def render_mode(self) -> str | None:
        """The mode that it was made with."""
        return self._render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode that `seed` determines: the observation, (observation_dim,) float64, and the info.

        None goes on in this environment's own random stream, which the operating system seeds at first.
        """
        if seed is not None:
            seed %= 2**32  # it takes no more
        elif not self._seeded:  # unseeded, it draws from NumPy's global generator
            seed = secrets.randbits(32)
        self._seeded = True
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance one step; the info gains `cost`."""
        # As in velocity.py: the reward's digits depend on it.
        values = self.env.step(np.asarray(action, dtype=np.float64))
        if len(values) == 5:
            return values
        observation, reward, cost, terminated, truncated, info = values
        return observation, reward, terminated, truncated, {**info, "cost": cost}

    def render(self) -> np.ndarray | None:
        """Draw the scene: (height, width, 3) uint8, or None without `render_mode="rgb_array"`."""
        return None if self._render_mode is None else self.env.render()


def make_safety_gymnasium_env(
    task: Task, *, render_mode: str | None = None, render_size: tuple[int, int] = (360, 480)
) -> gymnasium.Env:
    """Make a task in the real safety-gymnasium; no time limit is added.

    SimulatorNotInstalledError if safety-gymnasium is missing, or cannot make the task here.
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
            f"{SIMULATORS['safety_gymnasium'].note}. {_WITHOUT_SAFETY_GYMNASIUM[task.simulator]}"
        ) from error
    return SafetyGymnasiumEnv(simulator, render_mode=render_mode)


def make_dsrl_env(
    task: Task, *, render_mode: str | None = None, render_size: tuple[int, int] = (360, 480)
) -> gymnasium.Env:
    """Make the environment that `dsrl` registers under a task's id; no time limit is added.

    Importing `dsrl` replaces what this package has registered under DSRL's ids. Its Bullet environments are
    bullet-safety-gym's, and get what `BulletEnv` mends; the others draw no pictures.
    SimulatorNotInstalledError if `dsrl` is missing, or cannot make the task here.
    """
    try:
        import dsrl  # noqa: F401  (registers its environments)
    except Exception as error:  # a version that does not fit fails in many ways
        raise SimulatorNotInstalledError(
            f"task {task.name} cannot be made by dsrl ({type(error).__name__}: {error}). `pip install dsrl` "
            f"is what it takes, which works on Python 3.10 and before only; {_WITHOUT_DSRL}"
        ) from error
    spec = registry.get(task.name)
    # Where a simulator is missing, importing dsrl prints so, succeeds and registers less.
    if spec is None or str(spec.entry_point).startswith("spi_diffusers."):
        raise SimulatorNotInstalledError(
            f"task {task.name} cannot be made by dsrl: it is installed, but has not registered the task, as "
            f"a simulator that it needs is missing (importing dsrl says which); {_WITHOUT_DSRL}"
        )

    def make() -> Any:
        with global_generator_kept():  # safety-gymnasium's constructor draws from it
            # Its constructors take no render_mode, not even None.
            return gymnasium.make(replace(spec, max_episode_steps=None), disable_env_checker=True).unwrapped

    is_bullet = task.simulator == "bullet"
    if render_mode is not None and not is_bullet:
        raise SimulatorNotInstalledError(
            f"task {task.name}: dsrl's environment draws no pictures; {_WITHOUT_DSRL}"
        )
    try:
        if is_bullet:
            return BulletEnv(task, render_mode=render_mode, render_size=render_size, make_simulator=make)
        return SafetyGymnasiumEnv(make())
    except Exception as error:
        raise SimulatorNotInstalledError(
            f"task {task.name} cannot be made by dsrl ({type(error).__name__}: {error}); {_WITHOUT_DSRL}"
        ) from error
