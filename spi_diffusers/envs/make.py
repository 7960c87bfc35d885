"""`make_env` and `make_vector_env`: every task's simulator behind the same interface."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ClosedEnvironmentError
from gymnasium.spaces import Box
from gymnasium.wrappers import OrderEnforcing, TimeLimit

from spi_diffusers.data.simulators import SIMULATORS, SimulatorNotInstalledError
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.envs.bullet import BulletEnv
from spi_diffusers.envs.costs import NamedCosts
from spi_diffusers.envs.safety_gymnasium import make_dsrl_env, make_safety_gymnasium_env
from spi_diffusers.envs.velocity import make_velocity_env
from spi_diffusers.envs.workers import WorkersVectorEnv

#: What can simulate the tasks of each `Task.simulator`; "auto" takes the first.
_SIMULATORS: dict[str, dict[str, Callable[..., gymnasium.Env]]] = {
    "bullet": {"bullet": BulletEnv, "dsrl": make_dsrl_env},
    "velocity": {
        "gymnasium": make_velocity_env,
        "safety_gymnasium": make_safety_gymnasium_env,
        "dsrl": make_dsrl_env,
    },
    "safety_gymnasium": {"safety_gymnasium": make_safety_gymnasium_env, "dsrl": make_dsrl_env},
    "metadrive": {},
}
#: What episodes may be played for. Each purpose has seeds of its own: what is chosen by the episodes of one
#: cannot have been chosen by those of another.
PURPOSES = ("evaluation", "tuning", "certification")


def make_env(
    task: str | Task,
    *,
    seed: int | None = None,
    render_mode: str | None = None,
    render_size: tuple[int, int] = (360, 480),
    simulator: str = "auto",
    costs: Sequence[str] = ("cost",),
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
        simulator: which one. "auto" takes bullet-safety-gym for the Bullet tasks, gymnasium's own
            robots for the Velocity tasks, and safety-gymnasium for its navigation tasks. Velocity tasks
            run in the real safety-gymnasium with "safety_gymnasium", where that is installed; "gymnasium"
            names their default. "dsrl" takes the environment that the real `dsrl` registers for the task,
            where that is installed (not MetaDrive's).
        costs: names of the costs to report: "cost", the task's own, and "energy", the sum of the squared
            numbers of the executed action. If there are several, `info["cost"]` is an array (K,) of them.

    Returns:
        The environment; observations (observation_dim,) float32, actions (action_dim,) float32.

    Raises:
        UnknownTaskError: no such task.
        SimulatorNotInstalledError: the simulator is missing; the message says what to install.
        ValueError: unknown render mode, a simulator or cost that the task does not have, or a size or seed
            that is not a number of the right kind.
    """
    task = get_task(task)
    if seed is not None:
        seed = check_seed(seed)
    env = make_untimed_env(task, render_mode=render_mode, render_size=render_size, simulator=simulator)
    if len(costs) > 1:
        env = NamedCosts(env, costs)
    return SeedFirstReset(OrderEnforcing(TimeLimit(env, task.max_episode_steps)), seed)


def make_untimed_env(
    task: str | Task,
    *,
    render_mode: str | None = None,
    render_size: tuple[int, int] = (360, 480),
    simulator: str = "auto",
) -> gymnasium.Env:
    """Make the environment of a task without its time limit; arguments and errors as for `make_env`."""
    task = get_task(task)
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
    height, width = _check_size(render_size)
    makers = _SIMULATORS[task.simulator]
    if simulator != "auto" and simulator not in makers:
        names = ", ".join(repr(name) for name in ("auto", *makers))
        raise ValueError(f"the simulator of task {task.name} must be one of {names}; got {simulator!r}")
    if not makers:
        needed = SIMULATORS[task.simulator]
        raise SimulatorNotInstalledError(
            f"task {task.name} cannot be simulated here: it needs {needed.title} ({needed.note}). Its "
            "dataset can still be loaded and trained on"
        )
    make = next(iter(makers.values())) if simulator == "auto" else makers[simulator]
    return UniformEnv(make(task, render_mode=render_mode, render_size=(height, width)))


def make_vector_env(
    task: str | Task,
    num_envs: int,
    *,
    seed: int | None,
    backend: str = "sync",
    simulator: str = "auto",
    render_mode: str | None = None,
    purpose: str = "evaluation",
    costs: Sequence[str] = ("cost",),
    first: int = 0,
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
        seed: the sub-environments' first episodes get the seeds `episode_seeds(seed, num_envs, purpose)`.
            `reset(seed=s)` on the result follows gymnasium: s, s + 1, ...
        backend: "sync" (one process; best for Bullet) or "async" (one process per sub-environment,
            started by spawn: a script needs an `if __name__ == "__main__"` guard).
        simulator: as in `make_env`.
        render_mode: as in `make_env`.
        purpose: as in `episode_seeds`.
        costs: as in `make_env`; the costs of several are arrays in an array of objects, or (num_envs, K), by
            the version of gymnasium.
        first: number of the first episode, whose seed is that of `episode_seeds(..., first=first)`.

    Returns:
        A vector environment; observations (num_envs, observation_dim) float32, actions
        (num_envs, action_dim), rewards (num_envs,) float64. Close it when done.

    Raises:
        UnknownTaskError: no such task.
        SimulatorNotInstalledError: the simulator is missing.
        ValueError: num_envs below 1, unknown backend, simulator, render mode or purpose, invalid seed.
        SubEnvironmentDiedError: A process of the async backend has died, now or later; all others end.
    """
    task = get_task(task)
    num_envs = check_count("num_envs", num_envs, least=1)
    if backend not in ("sync", "async"):
        raise ValueError(f"backend must be 'sync' or 'async', got {backend!r}")
    makers = [
        functools.partial(_make_episode_env, task, episode_seed, render_mode, simulator, tuple(costs))
        for episode_seed in episode_seeds(seed, num_envs, purpose, first=first)
    ]
    return gymnasium.vector.SyncVectorEnv(makers) if backend == "sync" else WorkersVectorEnv(makers)


def episode_seeds(
    seed: int | None, num_envs: int, purpose: str = "evaluation", *, first: int = 0
) -> list[int]:
    """Independent seeds for episodes, from the one numbered `first` on; None draws one seed.

    Unlike seed, seed + 1, ... the seeds of neighboring `seed`s do not overlap, so that evaluations with seeds
    0 and 1 share no episode. The first k of n seeds do not depend on n. Evaluation has the seeds in
    [0, 2**32), tuning those from there to 2 * 2**32, and certification to 3 * 2**32; only the real
    safety-gymnasium, which takes 32 bits, may meet one again by chance. ValueError for a seed or number that
    is not a non-negative integer, or an unknown purpose.
    """
    num_envs = check_count("num_envs", num_envs, least=0)
    if purpose not in PURPOSES:
        raise ValueError(f"purpose must be one of {', '.join(PURPOSES)}; got {purpose!r}")
    place = PURPOSES.index(purpose)
    # Words of their own as well: cut to 32 bits, they are still other ones.
    sequence = np.random.SeedSequence(
        None if seed is None else check_seed(seed), spawn_key=(place,) if place else ()
    )
    words = sequence.generate_state(first + num_envs, np.uint32)[first:]
    return [place * 2**32 + int(word) for word in words]


def check_seed(seed: Any) -> int:
    """Turn a seed into an int (NumPy integers included); ValueError unless it is one of at least 0."""
    if not _is_integer(seed) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    return int(seed)


def check_count(name: str, value: Any, *, least: int) -> int:
    """Turn a count into an int (NumPy integers included); ValueError unless it is at least `least`."""
    if not _is_integer(value) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


class UniformEnv(gymnasium.Wrapper):
    """Give every simulator the same interface.

    * Actions are clipped to the action space, as those of the datasets were before they were executed.
      (gymnasium's own wrapper declares an unbounded space in version 1.x; the bounds are what a policy
      scales its output to.)
    * Observations are float32, the dtype of the datasets and the models; simulators give float64.
    * `info["cost"]` is a Python float after every reset (0.0) and step, the reward one after every step.
      From Bullet's ints a vector environment would build an array of another dtype.
    * What is closed cannot be used any more (ClosedEnvironmentError); closing twice does no harm.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        self.observation_space = Box(space.low.astype(np.float32), space.high.astype(np.float32))
        self._is_closed = False

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset; returns the observation, (observation_dim,) float32, and the info with a cost of 0.0."""
        self._check_open()
        observation, info = self.env.reset(**kwargs)
        return np.asarray(observation, dtype=np.float32), {**info, "cost": 0.0}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Clip the action, (action_dim,) of any real dtype, and step; the info holds the cost of this step.

        ValueError for a wrong shape, NaN or infinite values (clipping would hide the latter); KeyError if the
        simulator reported no cost (counting it as 0 would call an unsafe step safe).
        """
        self._check_open()
        space = self.action_space
        action = np.asarray(action, dtype=np.float32)
        if action.shape != space.shape:
            raise ValueError(f"{self.unwrapped} takes actions of shape {space.shape}, got {action.shape}")
        if not np.isfinite(action).all():
            raise ValueError(f"action for {self.unwrapped} is not finite: {action.tolist()}")
        action = np.clip(action, space.low, space.high)
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "cost" not in info:
            raise KeyError(f"{self.unwrapped} reported no cost; its info holds {sorted(info)}")
        observation, info = np.asarray(observation, dtype=np.float32), {**info, "cost": float(info["cost"])}
        return observation, float(reward), bool(terminated), bool(truncated), info

    def render(self) -> Any:
        """Draw the scene, (height, width, 3) uint8; None, with a warning, without `render_mode`."""
        self._check_open()
        return self.env.render()

    def close(self) -> None:
        """Close the simulator; closing twice does no harm."""
        if not self._is_closed:
            self._is_closed = True
            self.env.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedEnvironmentError(f"{self.unwrapped} was closed; make a new one")


class SeedFirstReset(gymnasium.Wrapper):
    """Start the environment's random stream at a seed, without the caller passing it to `reset`.

    The first `reset()` without a seed uses it; an explicit `reset(seed=...)` wins; later resets without a
    seed go on in the same stream.
    """

    def __init__(self, env: gymnasium.Env, seed: int | None) -> None:
        super().__init__(env)
        self._seed = None if seed is None else check_seed(seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Reset with the given seed, else with the seed that is still waiting, else go on in the stream."""
        seed = self._seed if seed is None else check_seed(seed)
        self._seed = None
        return self.env.reset(seed=seed, options=options)


class HoldAfterEnd(gymnasium.Wrapper):
    """One episode that lasts for ever: after its end, the last observation with reward 0 and cost 0.

    Vector environments reset a sub-environment by themselves when it signals an end, and they differ in
    how: gymnasium 0.28 puts the info of the last step (with its cost) aside in `final_info`, 1.x follows
    an end with a step that has reward 0 and no cost. Sums over an episode go wrong either way. This
    wrapper never signals an end to the vector environment; it reports it in the info instead:

    * `cost`: float, the cost of this step; 0.0 after the end. Of several costs an array of them.
    * `ended`: bool, true from the step that ended the episode on (that step's reward and cost count).
    * `terminated_episode`, `truncated_episode`: bool, how it ended; they stay until the next reset.

    All other entries of the info are dropped, so that its arrays are the same in every version.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._last_observation: np.ndarray | None = None
        self._terminated = self._truncated = False
        self._no_cost: Any = 0.0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset the episode; returns the observation, shape (observation_dim,), and the info above."""
        self._last_observation, info = self.env.reset(**kwargs)
        self._no_cost = info["cost"]
        self._terminated = self._truncated = False
        return self._last_observation.copy(), self._info(self._no_cost)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step, or hold if the episode has ended (the action is then not looked at); both ends stay False.

        ResetNeeded if `reset` was never called.
        """
        if self._last_observation is None:
            raise gymnasium.error.ResetNeeded(f"reset {self.unwrapped} before the first step")
        if self._terminated or self._truncated:
            return self._last_observation.copy(), 0.0, False, False, self._info(self._no_cost)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._last_observation, self._terminated, self._truncated = observation, terminated, truncated
        return observation.copy(), reward, False, False, self._info(info["cost"])

    def _info(self, cost: Any) -> dict[str, Any]:
        return {
            "cost": cost,
            "ended": self._terminated or self._truncated,
            "terminated_episode": self._terminated,
            "truncated_episode": self._truncated,
        }


def _check_size(size: Any) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, Iterable) else ()
    if len(sides) != 2 or not all(_is_integer(side) and side >= 1 for side in sides):
        raise ValueError(f"render_size must be (height, width) in pixels, got {size!r}")
    return int(sides[0]), int(sides[1])


def _make_episode_env(
    task: Task, seed: int, render_mode: str | None, simulator: str, costs: tuple[str, ...]
) -> Any:
    return HoldAfterEnd(make_env(task, seed=seed, render_mode=render_mode, simulator=simulator, costs=costs))
