"""`make_env` and `make_vector_env`: every task's simulator behind the same interface."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import OrderEnforcing, TimeLimit

from spi_diffusers.data.simulators import SIMULATORS
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.envs.bullet import BulletEnv
from spi_diffusers.envs.dsrl import make_dsrl_env
from spi_diffusers.envs.errors import SimulatorNotInstalledError
from spi_diffusers.envs.safety_gymnasium import make_safety_gymnasium_env
from spi_diffusers.envs.velocity import make_velocity_env
from spi_diffusers.envs.wrappers import (
    ClipAction,
    CostInInfo,
    Float32Observation,
    HoldAfterEnd,
    SeedFirstReset,
    check_seed,
)

#: What makes the environments of a simulator's tasks, by backend; the first of each is what "auto" takes.
_BACKENDS: dict[str, dict[str, Callable[..., gymnasium.Env]]] = {
    "bullet": {"bullet": BulletEnv, "dsrl": make_dsrl_env},
    "velocity": {
        "gymnasium": make_velocity_env,
        "safety_gymnasium": make_safety_gymnasium_env,
        "dsrl": make_dsrl_env,
    },
    "safety_gymnasium": {"safety_gymnasium": make_safety_gymnasium_env, "dsrl": make_dsrl_env},
    "metadrive": {},
}


def make_env(
    task: str | Task,
    *,
    seed: int | None = None,
    render_mode: str | None = None,
    render_size: tuple[int, int] = (360, 480),
    backend: str = "auto",
) -> gymnasium.Env:
    """Make the environment of a task.

    Whatever the simulator, the environment has gymnasium's 5-tuple interface with float32 observations,
    actions clipped to the action space, `info["cost"]` as a Python float after every reset and step, and
    truncation at the task's episode length. `reset(seed=s)` determines the episode, whatever was played
    before, and NumPy's global generator is left alone. Close it when done (`env.close()`).

    Args:
        task: a task or its name, e.g. "OfflineBallCircle-v0" or "ballcircle".
        seed: seed of the first `reset()`; later resets go on in the same random stream. None draws one
            from the operating system.
        render_mode: None, or "rgb_array" for `env.render()` to return (height, width, 3) uint8; no
            display is needed.
        render_size: height and width of a rendered frame in pixels.
        backend: which simulator. "auto" takes bullet-safety-gym for the Bullet tasks, gymnasium's own
            robots for the Velocity tasks, and safety-gymnasium for its navigation tasks. Velocity tasks
            run in the real safety-gymnasium with "safety_gymnasium", where that is installed; "gymnasium"
            names their default. "dsrl" takes the environment that the real `dsrl` registers for the task,
            where that is installed (not MetaDrive's).

    Returns:
        The environment; observations (observation_dim,) float32, actions (action_dim,) float32.

    Raises:
        UnknownTaskError: no such task.
        SimulatorNotInstalledError: the simulator is missing; the message says what to install.
        ValueError: unknown render mode, a backend that the task does not have, or a size or seed that is
            not a number of the right kind.
    """
    task = get_task(task)
    if seed is not None:
        seed = check_seed(seed)
    env = make_untimed_env(task, render_mode=render_mode, render_size=render_size, backend=backend)
    return SeedFirstReset(OrderEnforcing(TimeLimit(env, task.max_episode_steps)), seed)


def make_untimed_env(
    task: str | Task,
    *,
    render_mode: str | None = None,
    render_size: tuple[int, int] = (360, 480),
    backend: str = "auto",
) -> gymnasium.Env:
    """Make the environment of a task without its time limit, for those who add their own.

    Args:
        task: as in `make_env`.
        render_mode: as in `make_env`.
        render_size: as in `make_env`.
        backend: as in `make_env`.

    Returns:
        The environment, which is never truncated by the number of steps.

    Raises:
        UnknownTaskError: no such task.
        SimulatorNotInstalledError: the simulator is missing; the message says what to install.
        ValueError: unknown render mode, a backend that the task does not have, or an impossible size.
    """
    task = get_task(task)
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
    height, width = _check_size(render_size)
    backends = _BACKENDS[task.simulator]
    if backend != "auto" and backend not in backends:
        names = ", ".join(repr(name) for name in ("auto", *backends))
        raise ValueError(f"the simulator of task {task.name} must be one of {names}; got {backend!r}")
    if not backends:
        simulator = SIMULATORS[task.simulator]
        raise SimulatorNotInstalledError(
            f"task {task.name} cannot be simulated here: it needs {simulator.title} ({simulator.note}). Its "
            "dataset can still be loaded and trained on"
        )
    make = next(iter(backends.values())) if backend == "auto" else backends[backend]
    env = make(task, render_mode=render_mode, render_size=(height, width))
    return CostInInfo(Float32Observation(ClipAction(env)))


def make_vector_env(
    task: str | Task,
    num_envs: int,
    *,
    seed: int | None,
    backend: str = "sync",
    simulator: str = "auto",
    render_mode: str | None = None,
) -> gymnasium.vector.VectorEnv:
    """Make environments that are stepped together, one episode each, to the end of the longest.

    Each sub-environment is wrapped in `HoldAfterEnd`: it never signals an end (both end arrays stay
    False, so nothing is ever reset behind your back), but holds its last observation with reward 0 and
    cost 0. The infos carry arrays of shape (num_envs,): `cost` (float), `ended`, `terminated_episode`,
    `truncated_episode` (bool). So with `infos["ended"].all()` as the stop sign, plain sums over the steps
    are the episodes' returns and cost returns. Results are the same for both backends and for every
    version of gymnasium.

        env = make_vector_env("ballcircle", 20, seed=0)
        observations, infos = env.reset()
        while not infos["ended"].all():
            observations, rewards, _, _, infos = env.step(policy(observations))

    Args:
        task: a task or its name.
        num_envs: number of sub-environments, at least 1.
        seed: the sub-environments' first episodes get the seeds `episode_seeds(seed, num_envs)`.
            `reset(seed=s)` on the result follows gymnasium: s, s + 1, ...
        backend: "sync" (one process; best for Bullet) or "async" (one process per sub-environment,
            started by spawn: a script needs an `if __name__ == "__main__"` guard).
        simulator: which simulator, as `backend` of `make_env`.
        render_mode: as in `make_env`.

    Returns:
        A vector environment; observations (num_envs, observation_dim) float32, actions
        (num_envs, action_dim), rewards (num_envs,) float64. Close it when done.

    Raises:
        UnknownTaskError: no such task.
        SimulatorNotInstalledError: the simulator is missing.
        ValueError: num_envs below 1, unknown backend, simulator or render mode, invalid seed.
    """
    task = get_task(task)
    if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
        raise ValueError(f"num_envs must be an integer of at least 1, got {num_envs!r}")
    if backend not in ("sync", "async"):
        raise ValueError(f"backend must be 'sync' or 'async', got {backend!r}")
    makers = [
        functools.partial(_make_episode_env, task, episode_seed, render_mode, simulator)
        for episode_seed in episode_seeds(seed, int(num_envs))
    ]
    if backend == "sync":
        return gymnasium.vector.SyncVectorEnv(makers)
    # Forked workers would inherit torch's and the simulator's threads in an undefined state.
    return gymnasium.vector.AsyncVectorEnv(makers, context="spawn")


def episode_seeds(seed: int | None, num_envs: int) -> list[int]:
    """Independent seeds for the episodes of an evaluation.

    Unlike seed, seed + 1, ... the seeds of neighbouring `seed`s do not overlap, so that evaluations with
    seeds 0 and 1 share no episode. The first k of n seeds do not depend on n.

    Args:
        seed: seed of the evaluation; None draws one from the operating system.
        num_envs: number of episodes.

    Returns:
        num_envs integers in [0, 2**32).

    Raises:
        ValueError: the seed, or the number of episodes, is not a non-negative integer.
    """
    if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 0:
        raise ValueError(f"num_envs must be an integer of at least 0, got {num_envs!r}")
    sequence = np.random.SeedSequence(None if seed is None else check_seed(seed))
    return [int(word) for word in sequence.generate_state(num_envs, np.uint32)]


def _check_size(size: Any) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"render_size must be (height, width) in pixels, got {size!r}")
    return height, width


def _make_episode_env(task: Task, seed: int, render_mode: str | None, simulator: str) -> Any:
    return HoldAfterEnd(make_env(task, seed=seed, render_mode=render_mode, backend=simulator))
