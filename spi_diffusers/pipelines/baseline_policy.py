"""The policy of a baseline as a diffusers pipeline."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from spi_diffusers.models import DecisionTransformer, SwitchingActor
from spi_diffusers.pipelines.allowance import DEFAULT_RISK, CostAllowance, cost_allowance
from spi_diffusers.pipelines.budget_controller import BudgetController
from spi_diffusers.pipelines.checks import (
    as_batch,
    as_generator,
    check_finite,
    check_given,
    check_same,
    make_settings_plain,
    per_observation,
    without_autocast,
)
from spi_diffusers.pipelines.diffusers_methods import DiffusersMethods
from spi_diffusers.pipelines.loading import CheckedLoading
from spi_diffusers.pipelines.spi_policy import FORMAT_VERSION, SPIPolicyPipeline
from spi_diffusers.pipelines.target_controller import TargetController
from spi_diffusers.pipelines.values import LARGEST, as_number, as_plain, check_text, shown


class BaselinePolicyPipeline(CheckedLoading, DiffusersMethods, DiffusionPipeline):
    """Maps observations to actions by an actor, for the cost limit that it was trained for.

    Those of CDT and CAPS are told a limit when they act: `controller` makes what keeps count. CDT's remembers
    the steps before; CAPS's may also be called, like SPI's.

    Args:
        actor: Has `act(observation, generator) -> action`, and `observation_dim` in its configuration.
        normalizer: Observation statistics.
        algorithm: Name of the algorithm.
        cost_limit: Cost of an episode that it was trained for.
        task: Name of the task it was trained for.
        max_episode_steps: Steps of an episode.
        action_low: Smallest action of the environment, one number or one for each dimension.
        action_high: Largest action of the environment, one number or one for each dimension.
        format_version: Version of this folder format.

    Raises:
        ValueError: A weight or statistic is not finite, or the components do not belong together.
    """

    publishable = False

    def __init__(
        self,
        actor: Any,
        normalizer: Any,
        algorithm: str | None = None,  # settings need defaults: diffusers takes what has none for components
        cost_limit: float | None = None,
        task: str | None = None,
        max_episode_steps: int | None = None,
        action_low: float | Sequence[float] = -1.0,
        action_high: float | Sequence[float] = 1.0,
        format_version: int = FORMAT_VERSION,
    ):
        super().__init__()
        settings = {
            "algorithm": algorithm,
            "cost_limit": cost_limit,
            "task": task,
            "max_episode_steps": max_episode_steps,
            "action_low": action_low,
            "action_high": action_high,
            "format_version": format_version,
        }
        self.check_settings(**settings)
        check_given(actor=actor, normalizer=normalizer)
        normalizer.check()
        check_finite(actor=actor)
        check_same("observation_dim", actor=actor, normalizer=normalizer)
        for name, bound in (("action_low", action_low), ("action_high", action_high)):
            if len(_numbers(name, bound)) not in (1, actor.config.action_dim):
                raise ValueError(f"{name} needs 1 or {actor.config.action_dim} numbers, got {shown(bound)}.")
        self.register_modules(actor=actor, normalizer=normalizer)
        self.register_to_config(**settings)
        make_settings_plain(self, *self.components.values())
        actor.eval()
        normalizer.eval()

    @classmethod
    def check_settings(
        cls,
        algorithm: Any,
        cost_limit: Any,
        task: Any,
        max_episode_steps: Any,
        action_low: Any,
        action_high: Any,
        format_version: Any,
    ) -> None:
        """Raise ValueError if a setting of the pipeline makes no sense."""
        SPIPolicyPipeline.check_format_version(format_version)
        check_text("algorithm", algorithm)
        check_text("task", task)
        if cost_limit is not None:
            as_number("cost_limit", cost_limit, 0)
        if max_episode_steps is not None:
            as_number("max_episode_steps", max_episode_steps, 1, whole=True)
        low, high = (
            np.array(_numbers("action_low", action_low)),
            np.array(_numbers("action_high", action_high)),
        )
        if len({len(low), len(high), 1}) > 2 or not (low < high).all():
            raise ValueError(
                f"action_low must lie below action_high, got {shown(action_low)} and {shown(action_high)}."
            )

    @property
    def extractions(self) -> tuple[str, ...]:
        """The one way in which it acts: "policy", or "limit" if it is told a limit."""
        return ("limit",) if isinstance(self.actor, DecisionTransformer | SwitchingActor) else ("policy",)

    def controller(
        self, cost_limit: Any, *, num_envs: int = 1, **options: Any
    ) -> TargetController | BudgetController:
        """What acts with the policy of CDT or CAPS in a loop, and keeps count of what the steps cost.

        Args:
            cost_limit: Cost that an episode may have; a number, or one for each environment.
            num_envs: Number of environments side by side.
            **options: The others of [`TargetController`], for CDT, which explains all of them.

        Raises:
            ValueError: An argument is out of its range, or the policy is not told a limit when it acts.
        """
        if self.extractions != ("limit",):
            raise ValueError(f"The policy acts {self._how_it_acts()}, and is told no other: call it.")
        if isinstance(self.actor, SwitchingActor):
            return BudgetController(self, cost_limit, num_envs=num_envs, **options)
        return TargetController(self, cost_limit, num_envs=num_envs, **options)

    @torch.no_grad()
    @without_autocast
    def __call__(
        self,
        observation: Tensor | np.ndarray | Sequence[float],
        *,
        cost_limit: Any = None,
        cost_budget: Any = None,
        steps_left: Any = None,
        generator: torch.Generator | int | None = None,
    ) -> Tensor | np.ndarray:
        """Choose actions.

        Args:
            observation: One observation (O,) or a batch (B, O), not normalized.
            cost_limit: For CAPS: cost that an episode may have, where the cost so far is not known; a number,
                or one for each observation, like the next two.
            cost_budget: For CAPS: what is left of the limit; it goes with `steps_left`.
            steps_left: For CAPS: steps left in the episode.
            generator: Source of randomness, or a seed; the same seed gives the same actions.

        Returns:
            Actions in the environment's range, (A,) or (B, A); NumPy or torch, as the observation was.

        Raises:
            ValueError: For an observation of the wrong size, with NaN or of something else than numbers; or
                the policy needs the steps before it; or a limit is missing, or without effect.

        Examples:
            ```python
            pipe = BaselinePolicyPipeline.from_pretrained("outputs/ballcircle-cpq")
            action = pipe(observation)
            ```
        """
        if isinstance(self.actor, DecisionTransformer):
            raise ValueError(
                "This policy looks at the steps before, and needs a cost limit: act with "
                "policy.controller(cost_limit=...)."
            )
        observations, single, as_numpy = as_batch(
            observation, self.actor.config.observation_dim, self.normalizer.mean.device
        )
        told = {"cost_limit": cost_limit, "cost_budget": cost_budget, "steps_left": steps_left}
        if isinstance(self.actor, SwitchingActor):
            allowed = self.allowance(len(observations), **told)
            budget, steps = (
                torch.as_tensor(part, device=observations.device).expand(len(observations))
                for part in (allowed.budget, allowed.steps)
            )
            action = self.actor.act(self.normalizer(observations), budget, steps)
        elif any(value is not None for value in told.values()):
            raise ValueError(f"The policy acts {self._how_it_acts()}, and is told no other.")
        else:
            action = self.actor.act(self.normalizer(observations), as_generator(generator))
        action = self.to_environment_range(action)
        action = action[0] if single else action
        return action.cpu().numpy() if as_numpy else action

    def allowance(
        self, batch: int, cost_limit: Any = None, cost_budget: Any = None, steps_left: Any = None
    ) -> CostAllowance:
        """What the rest of B episodes may cost, from what `__call__` was told; ValueError: too little."""
        if cost_limit is None and cost_budget is None and steps_left is None:
            raise ValueError("This policy needs a cost_limit, or cost_budget with steps_left.")
        _, allowed = cost_allowance(
            self.config.max_episode_steps,
            "safe",
            cost_limit,
            cost_budget,
            steps_left,
            DEFAULT_RISK,
            lambda name, value: per_observation(name, value, batch),
        )
        assert allowed is not None  # as the extraction is safe
        return allowed

    def to_environment_range(self, action: Tensor) -> Tensor:
        """Map actions from [-1, 1] to [action_low, action_high]; shape (..., A)."""
        low, high = self.config.action_low, self.config.action_high
        if (low, high) == (-1.0, 1.0):
            return action
        low, high = action.new_tensor(low), action.new_tensor(high)
        return (low + (action + 1.0) * 0.5 * (high - low)).clamp(low, high)

    @property
    def default_limit(self) -> float | None:
        """The cost limit that the policy was trained for."""
        limit: float | None = self.config.cost_limit
        return limit

    def _how_it_acts(self) -> str:
        limit = "" if self.config.cost_limit is None else f", for a cost limit of {self.config.cost_limit:g}"
        return f"by {self.config.algorithm or 'a baseline'}{limit}"


def _numbers(name: str, bound: Any) -> list[float]:
    """A bound of actions, one number or several, as a list; ValueError for what is none."""
    plain = as_plain(bound)
    several = plain if isinstance(plain, list | tuple) and plain else [plain]
    return [as_number(name, number, -LARGEST) for number in several]
