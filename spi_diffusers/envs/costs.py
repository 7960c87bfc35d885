"""Several costs of an environment, each by its name."""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np

#: What simulators know the cost of a step of, from its info and the executed action: the task's own cost, and
#: the sum of the squared numbers of the action.
MEASURES: MappingProxyType[str, Callable[[dict[str, Any], np.ndarray], float]] = MappingProxyType(
    {
        "cost": lambda info, action: float(info["cost"]),
        "energy": lambda info, action: float(np.square(action, dtype=np.float64).sum()),
    }
)


def check_measures(names: Sequence[str]) -> tuple[str, ...]:
    """Names of costs that simulators report; ValueError: one is not."""
    if unknown := [name for name in names if name not in MEASURES]:
        raise ValueError(
            f"no simulator reports a cost {unknown[0]!r}, only {' and '.join(MEASURES)}: act in your own "
            "environment by policy.controller(...)"
        )
    return tuple(names)


class NamedCosts(gymnasium.Wrapper):
    """Report K costs: `info["cost"]` becomes an array (K,) float64, in the order of `names`."""

    def __init__(self, env: gymnasium.Env, names: Sequence[str]) -> None:
        super().__init__(env)
        self._names = check_measures(names)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset; costs are 0."""
        observation, info = self.env.reset(**kwargs)
        return observation, {**info, "cost": np.zeros(len(self._names))}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step; the info holds the costs of this step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        executed = np.clip(np.asarray(action, np.float32), self.action_space.low, self.action_space.high)
        costs = np.array([MEASURES[name](info, executed) for name in self._names])
        return observation, float(reward), terminated, truncated, {**info, "cost": costs}
