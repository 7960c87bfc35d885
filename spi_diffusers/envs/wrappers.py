"""Small wrappers that give every simulator the same interface, one concept each."""

import operator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class ClipAction(gymnasium.Wrapper):
    """Clip actions to the action space, as the actions of the datasets were before they were executed.

    gymnasium's wrapper of this name declares an unbounded action space in version 1.x; this one leaves
    the bounds in place, because they are what a policy scales its output to.
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Clip the action and step.

        Args:
            action: shape (action_dim,), any real dtype; executed as float32.

        Raises:
            ValueError: wrong shape, or a value that is NaN or infinite (clipping would hide the latter).
        """
        space = self.action_space
        action = np.asarray(action, dtype=np.float32)
        if action.shape != space.shape:
            raise ValueError(f"{self.unwrapped} takes actions of shape {space.shape}, got {action.shape}")
        if not np.isfinite(action).all():
            raise ValueError(f"action for {self.unwrapped} is not finite: {action.tolist()}")
        return self.env.step(np.clip(action, space.low, space.high))


class Float32Observation(gymnasium.Wrapper):
    """Observations as float32, the dtype of the datasets and the models (simulators give float64)."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        self.observation_space = Box(space.low.astype(np.float32), space.high.astype(np.float32))

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset; returns the observation, shape (observation_dim,) float32, and the info."""
        observation, info = self.env.reset(**kwargs)
        return np.asarray(observation, dtype=np.float32), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Step; the observation has shape (observation_dim,) float32."""
        observation, *rest = self.env.step(action)
        return (np.asarray(observation, dtype=np.float32), *rest)


class CostInInfo(gymnasium.Wrapper):
    """`info["cost"]` as a Python float after every reset (0.0) and step; the reward as a Python float.

    Bullet gives the cost as an int or a NumPy scalar, from which a vector environment would build an
    array of another dtype.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset; the info holds a cost of 0.0, because nothing has been done yet."""
        observation, info = self.env.reset(**kwargs)
        return observation, {**info, "cost": 0.0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step; the info holds the cost of this step.

        Raises:
            KeyError: the simulator reported no cost (counting it as 0 would call an unsafe step safe).
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "cost" not in info:
            raise KeyError(f"{self.unwrapped} reported no cost; its info holds {sorted(info)}")
        info = {**info, "cost": float(info["cost"])}
        return observation, float(reward), bool(terminated), bool(truncated), info


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

    * `cost`: float, the cost of this step; 0.0 after the end.
    * `ended`: bool, true from the step that ended the episode on (that step's reward and cost count).
    * `terminated_episode`, `truncated_episode`: bool, how it ended; they stay until the next reset.

    All other entries of the info are dropped, so that its arrays are the same in every version.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._last_observation: np.ndarray | None = None
        self._terminated = self._truncated = False

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset the episode; returns the observation, shape (observation_dim,), and the info above."""
        self._last_observation, _ = self.env.reset(**kwargs)
        self._terminated = self._truncated = False
        return self._last_observation.copy(), self._info(0.0)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step, or hold if the episode has ended (the action is then not looked at).

        Returns:
            observation (observation_dim,), reward, False, False, info as described in the class.

        Raises:
            gymnasium.error.ResetNeeded: `reset` was never called.
        """
        if self._last_observation is None:
            raise gymnasium.error.ResetNeeded(f"reset {self.unwrapped} before the first step")
        if self._terminated or self._truncated:
            return self._last_observation.copy(), 0.0, False, False, self._info(0.0)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._last_observation, self._terminated, self._truncated = observation, terminated, truncated
        return observation.copy(), reward, False, False, self._info(info["cost"])

    def _info(self, cost: float) -> dict[str, Any]:
        return {
            "cost": cost,
            "ended": self._terminated or self._truncated,
            "terminated_episode": self._terminated,
            "truncated_episode": self._truncated,
        }


def check_seed(seed: Any) -> int:
    """Turn a seed into an int (NumPy integers included).

    Raises:
        ValueError: not a non-negative integer.
    """
    try:
        value = operator.index(seed)
    except TypeError:
        raise ValueError(f"seed must be a non-negative integer or None, got {seed!r}") from None
    if isinstance(seed, bool) or value < 0:
        raise ValueError(f"seed must be a non-negative integer or None, got {seed!r}")
    return value
