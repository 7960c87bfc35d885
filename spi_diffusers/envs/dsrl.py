"""Tasks as the real `dsrl` package makes them, where it is installed.

It pins packages that do not install on the Pythons of this package, so only a patched or later version can be
here, and nothing here needs it: its environments are the simulators that `make_env` takes anyway.
"""

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import registry

from spi_diffusers.data.tasks import Task
from spi_diffusers.envs.bullet import BulletEnv
from spi_diffusers.envs.errors import SimulatorNotInstalledError
from spi_diffusers.envs.legacy_random import global_generator_kept, reset_seed
from spi_diffusers.envs.registration import ENTRY_POINT


def make_dsrl_env(
    task: Task, *, render_mode: str | None = None, render_size: tuple[int, int] = (360, 480)
) -> gymnasium.Env:
    """Make the environment that `dsrl` registers under a task's id; no time limit is added.

    Importing `dsrl` replaces what this package has registered under DSRL's ids.

    Args:
        task: a task.
        render_mode: None, or "rgb_array" for a Bullet task; `dsrl` makes the others without pictures.
        render_size: height and width of a rendered frame in pixels.

    Returns:
        The environment. Those of the Bullet tasks are bullet-safety-gym's, and get what `BulletEnv` mends.

    Raises:
        SimulatorNotInstalledError: `dsrl` is missing, or cannot make the task here.
    """
    try:
        import dsrl  # noqa: F401  (registers its environments)
    except Exception as error:  # a version that does not fit fails in many ways
        raise SimulatorNotInstalledError(
            f"task {task.name} cannot be made by dsrl ({type(error).__name__}: {error}). `pip install dsrl` "
            f"is what it takes, which works on Python 3.10 and before only; {_WITHOUT}"
        ) from error
    spec = registry.get(task.name)
    # Where a simulator is missing, importing dsrl prints so, succeeds and registers less.
    if spec is None or spec.entry_point == ENTRY_POINT:
        raise SimulatorNotInstalledError(
            f"task {task.name} cannot be made by dsrl: it is installed, but has not registered the task, as "
            f"a simulator that it needs is missing (importing dsrl says which); {_WITHOUT}"
        )

    def make() -> Any:
        with global_generator_kept():  # safety-gymnasium's constructor draws from it
            # Its constructors take no render_mode, not even None.
            return gymnasium.make(replace(spec, max_episode_steps=None), disable_env_checker=True).unwrapped

    is_bullet = task.simulator == "bullet"
    if render_mode is not None and not is_bullet:
        raise SimulatorNotInstalledError(
            f"task {task.name}: dsrl's environment draws no pictures; {_WITHOUT}"
        )
    try:
        if is_bullet:
            return BulletEnv(task, render_mode=render_mode, render_size=render_size, make_simulator=make)
        return _CostInInfo(make())
    except Exception as error:
        raise SimulatorNotInstalledError(
            f"task {task.name} cannot be made by dsrl ({type(error).__name__}: {error}); {_WITHOUT}"
        ) from error


class _CostInInfo(gymnasium.Wrapper):
    """safety-gymnasium's environments, whose steps have six values in some versions, the cost among them."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._seeded = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        seed, self._seeded = reset_seed(seed, is_first=not self._seeded), True
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> Any:
        values = self.env.step(action)
        if len(values) == 5:
            return values
        observation, reward, cost, terminated, truncated, info = values
        return observation, reward, terminated, truncated, {**info, "cost": cost}


_WITHOUT = "'auto' instead of 'dsrl' takes the task's simulator directly"
