"""The SPI policy as a diffusers pipeline: draw candidate actions, value them, extract one.

This file is shipped in a policy's folder and Hub repository as `pipeline.py`, with the modules beside it that
it needs in place of their imports; all of them need only torch, numpy and diffusers. It is one file there
because diffusers puts the shipped code of all local policies into one flat package and reloads only the
pipeline's own file: a second policy would act with the first one's modules. What the installed package adds,
checked loading, saving and publishing, is in `hub_policy.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from spi_diffusers.pipelines.checks import (
    LARGEST,
    as_batch,
    as_generator,
    as_number,
    as_plain,
    check_finite,
    check_given,
    check_origin,
    check_same,
    check_text,
    make_settings_plain,
    shown,
    without_autocast,
)
from spi_diffusers.pipelines.diffusers_methods import DiffusersMethods
from spi_diffusers.pipelines.extraction import (
    SAFETY_WEIGHT_GRID,
    SELECTIONS,
    cost_allowance,
    extract_reward,
    extract_safe,
    group_means,
)

FORMAT_VERSION = 1
NUM_CANDIDATES = 50
MAX_CANDIDATES = 100_000


@dataclass
class SPIPolicyOutput(BaseOutput):
    """Output of [`SPIPolicyPipeline`], for B observations, N candidates each, actions of size A.

    Attributes:
        actions: The chosen actions in the environment's range, shape (B, A), or (A,) for one observation;
            NumPy or torch, as the observation was.
        candidates: All candidate actions in the environment's range, shape (B, N, A).
        safety_weights: The safety weight each candidate was drawn with, shape (B, N); NaN for a model
            that is not conditioned.
        reward_values: Reward critic Q^r of each candidate (the lower twin), in units of reward, shape (B, N).
        safety_values: Safety critic Q^c' of each candidate (the lower twin), shape (B, N).
        cost_rates: Predicted cost per step from each candidate on, in units of cost, shape (B, N).
        feasible: Whether a candidate's predicted cost is within what is allowed, shape (B, N); all True
            where no limit applies.
        chosen: Index of the chosen candidate, shape (B,).
    """

    actions: Tensor | np.ndarray
    candidates: Tensor
    safety_weights: Tensor
    reward_values: Tensor
    safety_values: Tensor
    cost_rates: Tensor
    feasible: Tensor
    chosen: Tensor


class SPIPolicyPipeline(DiffusersMethods, DiffusionPipeline):
    r"""A safe policy: maps observations to actions that keep a cost limit chosen at run time.

    Candidate actions are drawn from the noise model by denoising (Eq. 8); critics value them; one is
    extracted. With `extraction="reward"` that is the paper's Eq. 12. With `extraction="safe"`, the default
    whenever a limit or budget is given, candidates come from a grid of safety weights, and a candidate is
    feasible if its predicted cost rate is at most the allowed one: limit / episode length, or, with the
    running cost fed back, what is left of the budget but for a reserve / steps left (with the limit as well:
    at most 1.5 times limit / episode length). A fed-back budget has a second condition: the predicted cost of
    the safest way on (safety weight 1) must fit into what is left but for the reserve. Of the feasible ones
    the highest Q^r is taken; where there is none, the highest Q^c'.

    Args:
        noise_model ([`MLPNoiseModel`]): Predicts the noise in an action, given the observation.
        reward_critic ([`TwinCritic`]): Q^r.
        safety_critic ([`TwinCritic`]): Q^c', and the predicted cost Q^c as its second head.
        scheduler ([`~diffusers.DDPMScheduler`]): A diffusers scheduler that takes predicted noise.
        normalizer ([`ObservationNormalizer`]): Observation statistics.
        calibration ([`CostCalibration`], *optional*): What cost results from what the critic allows; used for
            a `cost_limit` alone. Where the running cost is fed back, the feedback corrects the critic.
        task: Name of the task it was trained for, for example "OfflineBallCircle-v0".
        max_episode_steps: Steps of an episode, over which a `cost_limit` is spread.
        gamma: Discount factor of the critics.
        reward_unit: What a 1 of Q^r is worth in the rewards of the data, > 0.
        cost_unit: What a 1 of Q^c is worth in the costs of the data, > 0.
        budget_reserve: Part of a fed-back cost budget, in units of cost, that is kept back; under a limit
            at or below it the policy always does the safest thing it knows.
        reserve_decay: At a step the reserve is budget_reserve * (steps left / max_episode_steps) **
            reserve_decay. 0 keeps all of it to the end, for where costs come many in a row; with 0.5 it
            shrinks as the spread of single costs that are still to come.
        selection: What safe extraction compares: "candidate", single actions, of which it takes the one with
            the highest Q^r; or "weight", the policies of the safety weights, valued by the mean over their
            candidates, of which it plays one. The latter does not seek out the critics' errors; it was better
            on Walker2d and worse on BallCircle and HalfCheetah.
        format_version: Version of this folder format.
    """

    _optional_components = ["calibration"]  # noqa: RUF012 - diffusers' own convention

    def __init__(
        self,
        noise_model: Any,
        reward_critic: Any,
        safety_critic: Any,
        scheduler: Any,
        normalizer: Any,
        calibration: Any | None = None,
        task: str | None = None,
        max_episode_steps: int | None = None,
        gamma: float = 0.99,
        reward_unit: float = 1.0,
        cost_unit: float = 1.0,
        budget_reserve: float = 3.0,
        reserve_decay: float = 0.0,
        selection: str = "candidate",
        format_version: int = FORMAT_VERSION,
    ):
        super().__init__()
        settings = {
            "task": task,
            "max_episode_steps": max_episode_steps,
            "gamma": gamma,
            "reward_unit": reward_unit,
            "cost_unit": cost_unit,
            "budget_reserve": budget_reserve,
            "reserve_decay": reserve_decay,
            "selection": selection,
            "format_version": format_version,
        }
        self.check_settings(**settings)
        networks = {
            "noise_model": noise_model,
            "reward_critic": reward_critic,
            "safety_critic": safety_critic,
        }
        check_given(**networks, scheduler=scheduler, normalizer=normalizer)
        self._check_origin(noise_model)
        normalizer.check()
        check_finite(**networks)
        for key in ("observation_dim", "action_dim", "use_safety_weight"):
            check_same(key, **networks)
        check_same("observation_dim", noise_model=noise_model, normalizer=normalizer)
        if calibration is not None:
            calibration.check()
        self.register_modules(**networks, scheduler=scheduler, normalizer=normalizer, calibration=calibration)
        self.register_to_config(**settings)
        make_settings_plain(self, *self.components.values())
        for component in (*networks.values(), normalizer):
            component.eval()

    def _check_origin(self, component: Any) -> None:
        check_origin(component)

    @classmethod
    def check_settings(
        cls,
        task: Any,
        max_episode_steps: Any,
        gamma: Any,
        reward_unit: Any,
        cost_unit: Any,
        budget_reserve: Any,
        reserve_decay: Any,
        selection: Any,
        format_version: Any,
    ) -> None:
        """Raise ValueError if a setting of the pipeline makes no sense."""
        cls.check_format_version(format_version)
        check_text("task", task)
        if max_episode_steps is not None:
            as_number("max_episode_steps", max_episode_steps, 1, whole=True)
        as_number("gamma", gamma, 0, 1, below=True)
        as_number("reward_unit", reward_unit, 1 / LARGEST)
        as_number("cost_unit", cost_unit, 1 / LARGEST)
        as_number("budget_reserve", budget_reserve, 0)
        if as_number("reserve_decay", reserve_decay, 0) and max_episode_steps is None:
            raise ValueError("reserve_decay needs max_episode_steps.")
        if selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {SELECTIONS}, got {shown(selection)}.")

    @staticmethod
    def check_format_version(format_version: Any) -> None:
        """Raise ValueError if this code cannot read a policy of that format."""
        if as_number("format_version", format_version, 1, whole=True) > FORMAT_VERSION:
            raise ValueError(
                f"This policy has format version {format_version}, but this code reads versions up to "
                f"{FORMAT_VERSION}: upgrade with `pip install -U spi-diffusers`."
            )

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:
        """Refused: diffusers' own would publish a repository that only this class can load."""
        raise ImportError(
            "Publishing needs the package: pip install spi-diffusers, and load the policy with its class."
        )

    @torch.no_grad()
    @without_autocast
    def __call__(
        self,
        observation: Tensor | np.ndarray | Sequence[float],
        *,
        extraction: str | None = None,
        cost_limit: float | Tensor | np.ndarray | None = None,
        cost_budget: float | Tensor | np.ndarray | None = None,
        steps_left: int | Tensor | np.ndarray | None = None,
        safety_weight: float | None = None,
        num_candidates: int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | int | None = None,
        return_dict: bool = True,
    ) -> SPIPolicyOutput | tuple[Tensor | np.ndarray]:
        """Choose actions.

        Args:
            observation: One observation (O,) or a batch (B, O), not normalized.
            extraction: "reward" (Eq. 12) or "safe"; by default "safe" if a limit or budget is given.
            cost_limit: Cost an episode may have, in units of cost, >= 0; one number or one per observation.
                Alone it is spread evenly over `max_episode_steps`: use that if the running cost is not
                observed. With `cost_budget` it bounds how fast the budget is spent.
            cost_budget: What is left of the limit: limit - cost so far (may be negative once overspent);
                one number or one per observation. Needs `steps_left`. Keeps the limit most reliably.
            steps_left: Steps left in the episode, >= 1; one number or one per observation.
            safety_weight: Safety weight in [0, 1] of all candidates instead of the grid (safe) or 0.5
                (reward); only for a conditioned model.
            num_candidates: Candidates per observation; 50 by default. With a grid of safety weights it is
                rounded down to a multiple of the grid's size (at least one each).
            num_inference_steps: Denoising steps; by default all of the scheduler's training timesteps.
            generator: Source of the noise, or a seed; the same seed gives the same actions.
            return_dict: Whether to return a [`SPIPolicyOutput`] instead of a tuple.

        Returns:
            [`SPIPolicyOutput`], or a tuple holding the actions only.

        Raises:
            ValueError: For an observation of the wrong size, with NaN or of something else than numbers, an
                unknown extraction, a negative limit, a budget without steps left, a safety weight that does
                not apply, or an argument of the wrong type.

        Example:
            ```python
            pipe = SPIPolicyPipeline.from_pretrained("outputs/ballcircle-seed0")
            env = make_env("ballcircle", seed=0)
            observation, info = env.reset()
            limit, cost, steps = 20.0, 0.0, pipe.config.max_episode_steps
            for step in range(steps):
                budget = {"cost_budget": limit - cost, "steps_left": steps - step}
                action = pipe(observation, cost_limit=limit, **budget).actions
                observation, reward, terminated, truncated, info = env.step(action)
                cost += info["cost"]
                if terminated or truncated:
                    break
            ```
        """
        # Not self.device: diffusers searches all components for it, which takes as long as a forward pass.
        observations, single, as_numpy = as_batch(
            observation, self.noise_model.config.observation_dim, self.normalizer.mean.device
        )
        generator = as_generator(generator)
        batch, device = len(observations), observations.device
        extraction, allowance = cost_allowance(
            self.config, self.calibration, extraction, cost_limit, cost_budget, steps_left, batch, device
        )
        weights, count = self._candidate_weights(extraction, safety_weight, num_candidates, device)

        states = self.normalizer(observations).repeat_interleave(count, dim=0)
        tiled = None if weights is None else weights.repeat(batch)
        denoising_steps = as_plain(num_inference_steps)
        candidates = self.noise_model.sample(self.scheduler, states, tiled, denoising_steps, generator)
        (reward_twins,) = self.reward_critic(states, candidates, tiled, return_dict=False)
        guarded = allowance is not None and allowance.recovery is not None
        safety_values, cost_values, recovery_costs = self._safety(states, candidates, tiled, guarded)
        reward_values, safety_values, cost_values, recovery_costs = (
            values.view(batch, count).float()
            for values in (reward_twins[..., 0].amin(dim=0), safety_values, cost_values, recovery_costs)
        )
        reward_values = reward_values * self.config.reward_unit
        cost_rates = cost_values * (1.0 - self.config.gamma)

        if allowance is None:
            chosen = extract_reward(reward_values)
            feasible = torch.ones_like(reward_values, dtype=torch.bool)
        else:
            groups = self.num_groups if safety_weight is None else None
            feasible = group_means(cost_rates, groups) <= allowance.rate.unsqueeze(1)
            if allowance.recovery is not None:
                recoverable = group_means(recovery_costs, groups) <= allowance.recovery.unsqueeze(1)
                feasible = feasible & recoverable
            chosen = extract_safe(reward_values, safety_values, feasible, groups)

        candidates = self.noise_model.to_environment_range(candidates).view(batch, count, -1)
        picked = candidates[torch.arange(batch, device=device), chosen]
        if not math.isfinite(float(picked.sum())):
            raise ValueError("The noise model gave actions that are not finite.")
        picked = picked[0] if single else picked
        actions = picked.cpu().numpy() if as_numpy else picked
        if not return_dict:
            return (actions,)
        if weights is None:
            weights = torch.full((count,), torch.nan, dtype=torch.float32, device=device)
        return SPIPolicyOutput(
            actions=actions,
            candidates=candidates,
            safety_weights=weights.expand(batch, count),
            reward_values=reward_values,
            safety_values=safety_values,
            cost_rates=cost_rates,
            feasible=feasible,
            chosen=chosen,
        )

    @property
    def num_groups(self) -> int | None:
        """Number of groups that safe extraction compares; None where it compares candidates."""
        grouped = self.config.selection == "weight" and self.noise_model.config.use_safety_weight
        return len(SAFETY_WEIGHT_GRID) if grouped else None

    def _candidate_weights(
        self,
        extraction: str,
        safety_weight: float | None,
        num_candidates: int | None,
        device: torch.device,
    ) -> tuple[Tensor | None, int]:
        """The safety weight of each candidate (N,), None for an unconditioned model; and N."""
        count = NUM_CANDIDATES
        if num_candidates is not None:
            count = as_number("num_candidates", num_candidates, 1, MAX_CANDIDATES, whole=True)
        if not self.noise_model.config.use_safety_weight:
            if safety_weight is not None:
                raise ValueError("This policy was trained without a safety weight; do not pass one.")
            return None, count
        if safety_weight is not None:
            safety_weight = as_number("safety_weight", safety_weight, 0, 1)
        if extraction == "safe" and safety_weight is None:
            grid = torch.tensor(SAFETY_WEIGHT_GRID, dtype=torch.float32, device=device)
            per_weight = max(1, count // len(grid))
            return grid.repeat_interleave(per_weight), per_weight * len(grid)
        # The paper weighs both critics; without further notice, equally.
        weight = 0.5 if safety_weight is None else safety_weight
        return torch.full((count,), float(weight), dtype=torch.float32, device=device), count

    def _safety(
        self, states: Tensor, candidates: Tensor, weights: Tensor | None, guarded: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Q^c', predicted cost, and with `guarded` that of the safest way on (else the same), each (M,)."""
        count = len(states)
        if guarded and weights is not None:  # one pass for both, as its weights are read only once
            states, candidates = torch.cat([states, states]), torch.cat([candidates, candidates])
            weights = torch.cat([weights, torch.ones_like(weights)])
        (heads,) = self.safety_critic(states, candidates, weights, return_dict=False)
        safety = heads[..., 0].amin(dim=0)
        if heads.shape[-1] > 1:
            cost = heads[..., 1].mean(dim=0)
        else:
            # Without termination, and for costs of at most a unit, Q^c = 1 / (1 - gamma) - Q^c' exactly.
            cost = 1.0 / (1.0 - self.config.gamma) - safety
        cost = cost * self.config.cost_unit
        return safety[:count], cost[:count], cost[-count:]
