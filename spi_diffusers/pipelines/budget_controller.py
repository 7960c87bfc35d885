"""Acting with a policy that is told what is left of a cost limit, and remembers nothing."""

from typing import Any

import numpy as np

from spi_diffusers.pipelines.checks import per_observation
from spi_diffusers.pipelines.values import as_number, to_numpy


class BudgetController:
    """Counts cost and steps for CAPS, in one environment or in N; `pipe.controller` makes it.

    Once a cost is not reported, the policy is told the limit alone for the rest of the episode.

    Args:
        pipeline: A baseline's policy whose actor is a `SwitchingActor`.
        cost_limit: Cost that an episode may have, >= 0; a number, or one for each environment.
        num_envs: Number N of environments.

    Raises:
        ValueError: An argument is out of its range, or the policy does not know how long an episode is.
    """

    def __init__(self, pipeline: Any, cost_limit: Any, *, num_envs: int = 1) -> None:
        self.pipeline, self.num_envs = pipeline, as_number("num_envs", num_envs, 1, whole=True)
        limit = to_numpy(per_observation("cost_limit", cost_limit, self.num_envs))
        self.cost_limit = np.broadcast_to(limit, (self.num_envs,)).astype(np.float64)
        pipeline.allowance(self.num_envs, cost_limit=self.cost_limit)  # refuses what cannot be
        self._spent, self._steps = np.zeros((2, self.num_envs))
        self._reported = True

    def reset(self) -> None:
        """Begin an episode in all environments."""
        self._spent[:], self._steps[:], self._reported = 0.0, 0.0, True

    def act(self, observation: Any) -> Any:
        """Actions (A,) or (N, A) in the environment's range, for observations (O,) or (N, O)."""
        if not self._reported:
            return self.pipeline(observation, cost_limit=self.cost_limit)
        left = np.maximum(self.pipeline.config.max_episode_steps - self._steps, 1)
        return self.pipeline(observation, cost_budget=self.cost_limit - self._spent, steps_left=left)

    def observe(self, reward: Any = None, cost: Any = None, ended: Any = False) -> None:
        """Take note of a step: of its cost, a number or (N,), None if it was not reported.

        Nothing follows from `reward` and `ended`, which other controllers look at.
        """
        self._steps += 1
        if cost is None:
            self._reported = False
        else:
            self._spent += to_numpy(per_observation("cost", cost, self.num_envs))
