"""The SPI policy as a diffusers pipeline: make candidate actions, value them, extract one.

This file is shipped in a policy's folder and Hub repository as `pipeline.py`, with the modules beside it that
it needs in place of their imports; all of them need only torch, numpy and diffusers. It is one file there
because diffusers puts the shipped code of all local policies into one flat package and reloads only the
pipeline's own file: a second policy would act with the first one's modules. What the installed package adds,
checked loading, saving and publishing, is in `hub_policy.py`.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from spi_diffusers.pipelines.allowance import DEFAULT_RISK, CostAllowance, cost_allowance
from spi_diffusers.pipelines.checks import (
    as_batch,
    as_generator,
    check_finite,
    check_given,
    check_origin,
    check_same,
    make_settings_plain,
    per_cost,
    per_observation,
    without_autocast,
)
from spi_diffusers.pipelines.controlled import ControlledPolicy
from spi_diffusers.pipelines.diffusers_methods import DiffusersMethods
from spi_diffusers.pipelines.extraction import (
    SAFETY_WEIGHT_GRID,
    candidate_weights,
    choose_within,
    extract_reward,
    paper_values,
    repeated,
    value_policies,
    value_policies_fast,
)
from spi_diffusers.pipelines.values import LARGEST, as_number, as_plain, check_text

FORMAT_VERSION = 2


@dataclass
class SPIPolicyOutput(BaseOutput):
    """Output of [`SPIPolicyPipeline`], for B observations, N candidates each, actions of size A.

    Attributes:
        actions: The chosen actions in the environment's range, shape (B, A), or (A,) for one observation;
            NumPy or torch, as the observation was.
        candidates: All candidate actions in the environment's range, shape (B, N, A).
        safety_weights: The safety weight each candidate was made with, shape (B, N); NaN for a model
            that is not conditioned.
        chosen: Index of the chosen candidate, shape (B,).
        reward_values: With extraction "reward": Q^r of each candidate (the lower twin), in units of reward,
            shape (B, N).
        safety_values: With extraction "reward": Q^c' of each candidate (the lower twin), shape (B, N).
        expected_returns: With extraction "safe": expected return over the steps left, in units of reward, if
            the policy of the candidate's safety weight acts, shape (B, N).
        expected_costs: The same of the cost, shape (B, N); of K > 1 costs (B, N, K).
        cost_bounds: The same plus the margin for `risk`: predicted to be exceeded with half of it, by any of
            the costs; times the policy's `cost_margin`.
        feasible: Whether that, and the bound of every safer policy, fits into the budget, shape (B, N).
        by_student: With `fast`: whether the student has answered, and not its teacher, shape (B,).
    """

    actions: Tensor | np.ndarray
    candidates: Tensor
    safety_weights: Tensor
    chosen: Tensor
    reward_values: Tensor | None = None
    safety_values: Tensor | None = None
    expected_returns: Tensor | None = None
    expected_costs: Tensor | None = None
    cost_bounds: Tensor | None = None
    feasible: Tensor | None = None
    by_student: Tensor | None = None

    def __post_init__(self) -> None:
        """As diffusers' own, which would take as long as choosing among the candidates."""
        for name, value in vars(self).items():
            if value is not None:
                OrderedDict.__setitem__(self, name, value)


class SPIPolicyPipeline(ControlledPolicy, DiffusersMethods, DiffusionPipeline):
    r"""A safe policy: maps observations to actions that keep a cost limit chosen at run time.

    Candidate actions are drawn from the noise model by denoising (Eq. 8), valued, and one is extracted. With
    `extraction="reward"` that is the paper's Eq. 12, by the reward critic. With `extraction="safe"`, the
    default whenever a limit or budget is given, there is one candidate for each safety weight of a grid,
    denoised without noise: each weight stands for a policy of its own, which acts by its most typical action.
    The evaluation critic tells what return and cost each of them expects over the steps left, and what margin
    the cost needs for a `risk`. A policy fits if its cost with the margin, and that of all safer ones, fits
    into the budget. Of those the one with the highest return acts; where none fits, or the budget is spent,
    the safest one.

    Args:
        noise_model ([`MLPNoiseModel`]): Predicts the noise in an action, given the observation.
        reward_critic ([`TwinCritic`]): Q^r.
        safety_critic ([`TwinCritic`]): Q^c'.
        scheduler ([`~diffusers.DDPMScheduler`]): A diffusers scheduler that takes predicted noise.
        normalizer ([`ObservationNormalizer`]): Observation statistics.
        evaluation_critic ([`EvaluationCritic`], *optional*): What return and cost are to come. Without it the
            policy cannot keep a limit.
        student ([`Student`], *optional*): Answers `fast=True` in one pass; `spi distill` trains it.
        task: Name of the task it was trained for, for example "OfflineBallCircle-v0".
        max_episode_steps: Steps of an episode, over which a `cost_limit` is spread.
        gamma: Discount factor of the critics.
        reward_unit: What a 1 of Q^r is worth in the rewards of the data, > 0.
        cost_margin: What the cost of a policy, with the margin for the risk, is multiplied by before it must
            fit into the budget, > 0. `spi certify --tune` finds it in the simulator.
        format_version: Version of this folder format.
    """

    _optional_components = ["evaluation_critic", "student"]  # noqa: RUF012 - diffusers' own convention

    def __init__(
        self,
        noise_model: Any,
        reward_critic: Any,
        safety_critic: Any,
        scheduler: Any,
        normalizer: Any,
        evaluation_critic: Any | None = None,
        student: Any | None = None,
        task: str | None = None,
        max_episode_steps: int | None = None,
        gamma: float = 0.99,
        reward_unit: float = 1.0,
        cost_margin: float = 1.0,
        format_version: int = FORMAT_VERSION,
    ):
        super().__init__()
        settings = {
            "task": task,
            "max_episode_steps": max_episode_steps,
            "gamma": gamma,
            "reward_unit": reward_unit,
            "cost_margin": cost_margin,
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
        if evaluation_critic is not None:
            self._check_evaluation_critic(noise_model, evaluation_critic, max_episode_steps)
        if student is not None:
            self._check_student(noise_model, evaluation_critic, student)
        self.register_modules(
            **networks,
            scheduler=scheduler,
            normalizer=normalizer,
            evaluation_critic=evaluation_critic,
            student=student,
        )
        self.register_to_config(**settings)
        make_settings_plain(self, *self.components.values())
        for component in (*networks.values(), normalizer, evaluation_critic, student):
            if component is not None:
                component.eval()

    def _check_fast(self, allowance: Any, safety_weight: Any, denoising_steps: Any) -> None:
        if self.student is None:
            raise ValueError(
                "This policy has no student, so it cannot act with fast=True: `spi distill` trains one."
            )
        if allowance is None:
            raise ValueError("fast=True is for a policy under a limit: pass a cost_limit, or a cost_budget.")
        for name, value in (("safety_weight", safety_weight), ("num_inference_steps", denoising_steps)):
            if value is not None:
                raise ValueError(f"{name} has no effect with fast=True: the student answers in one pass.")

    def _check_origin(self, component: Any) -> None:
        check_origin(component)

    @staticmethod
    def _check_evaluation_critic(noise_model: Any, critic: Any, max_episode_steps: int | None) -> None:
        check_finite(evaluation_critic=critic)
        for key in ("observation_dim", "action_dim"):
            check_same(key, noise_model=noise_model, evaluation_critic=critic)
        if not noise_model.config.use_safety_weight:
            raise ValueError("An evaluation critic needs a noise model with a safety weight.")
        if critic.config.max_episode_steps != max_episode_steps:
            raise ValueError(
                f"max_episode_steps is {max_episode_steps}, but the evaluation critic's is "
                f"{critic.config.max_episode_steps}: these do not belong together."
            )

    @staticmethod
    def _check_student(noise_model: Any, critic: Any | None, student: Any) -> None:
        check_finite(student=student)
        if critic is None:
            raise ValueError("A student needs the evaluation critic, whose expectations it has learned.")
        for key in ("observation_dim", "action_dim"):
            check_same(key, noise_model=noise_model, student=student)
        sizes = (student.config.num_weights, student.config.num_costs)
        if sizes != (len(SAFETY_WEIGHT_GRID), len(critic.cost_names)):
            raise ValueError(
                f"The student answers for {sizes[0]} safety weights and {sizes[1]} cost(s), but the policy "
                f"has {len(SAFETY_WEIGHT_GRID)} and {len(critic.cost_names)}: these do not belong together."
            )

    @classmethod
    def check_settings(
        cls,
        task: Any,
        max_episode_steps: Any,
        gamma: Any,
        reward_unit: Any,
        format_version: Any,
        cost_margin: Any = 1.0,
    ) -> None:
        """Raise ValueError if a setting of the pipeline makes no sense."""
        cls.check_format_version(format_version)
        check_text("task", task)
        if max_episode_steps is not None:
            as_number("max_episode_steps", max_episode_steps, 1, whole=True)
        as_number("gamma", gamma, 0, 1, below=True)
        as_number("reward_unit", reward_unit, 1 / LARGEST)
        as_number("cost_margin", cost_margin, 1 / LARGEST)

    @staticmethod
    def check_format_version(format_version: Any) -> None:
        """Raise ValueError if this code cannot read a policy of that format."""
        version = as_number("format_version", format_version, 1, whole=True)
        if version != FORMAT_VERSION:
            advice = (
                "upgrade with `pip install -U spi-diffusers`"
                if version > FORMAT_VERSION
                else "train the policy anew"
            )
            raise ValueError(
                f"This policy has format version {version}, but this code reads version {FORMAT_VERSION}: "
                f"{advice}."
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
        cost_limit: float | Sequence[float] | dict[str, Any] | Tensor | np.ndarray | None = None,
        cost_budget: float | Sequence[float] | dict[str, Any] | Tensor | np.ndarray | None = None,
        steps_left: int | Tensor | np.ndarray | None = None,
        risk: float = DEFAULT_RISK,
        safety_weight: float | None = None,
        num_candidates: int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | int | None = None,
        fast: bool = False,
        return_dict: bool = True,
    ) -> SPIPolicyOutput | tuple[Tensor | np.ndarray]:
        """Choose actions.

        Args:
            observation: One observation (O,) or a batch (B, O), not normalized.
            extraction: "reward" (Eq. 12) or "safe"; by default "safe" if a limit or budget is given.
            cost_limit: Cost an episode may have, in units of cost, >= 0; one number or one per observation.
                Of K > 1 costs (K,), (B, K), or a dict by `cost_names`. For where the cost so far is not
                known: every step is taken for the first of an episode.
            cost_budget: What is left of the limit: limit - cost so far (may be negative once overspent), in
                the same forms. Needs `steps_left`. Keeps the limit most reliably.
            steps_left: Steps left in the episode, >= 1; one number or one per observation.
            risk: Share of the episodes that may exceed the limit, in (0, 1).
            safety_weight: Safety weight in [0, 1] of all candidates instead of the grid (safe) or 0.5
                (reward); only for a conditioned model.
            num_candidates: Candidates per observation with extraction "reward"; 50 by default.
            num_inference_steps: Denoising steps; by default all of the scheduler's training timesteps.
            generator: Source of the noise, or a seed; the same seed gives the same actions. Safe extraction
                uses none, except with a scheduler of another kind that draws noise in its steps.
            fast: With safe extraction, let the student answer: one pass instead of denoising and valuing each
                candidate. Observations outside the range of the data, and more steps left than an episode
                has, are left to the policy itself, as `by_student` says.
            return_dict: Whether to return a [`SPIPolicyOutput`] instead of a tuple.

        Returns:
            [`SPIPolicyOutput`], or a tuple holding the actions only.

        Raises:
            ValueError: For an observation of the wrong size, with NaN or of something else than numbers, an
                unknown extraction, a negative limit, a budget without steps left, a risk outside (0, 1), a
                safety weight or a number of candidates that does not apply, or an argument of the wrong
                type; for a limit, if the policy has no evaluation critic; for `fast`, if it has no student.

        Example:
            ```python
            pipe = SPIPolicyPipeline.from_pretrained("outputs/ballcircle-seed0")
            env = make_env("ballcircle", seed=0)
            observation, info = env.reset()
            limit, cost, steps = 20.0, 0.0, pipe.config.max_episode_steps
            for step in range(steps):
                action = pipe(observation, cost_budget=limit - cost, steps_left=steps - step).actions
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
            self.config.max_episode_steps,
            extraction,
            cost_limit,
            cost_budget,
            steps_left,
            risk,
            lambda name, value: per_observation(name, value, batch),
            lambda name, value: per_cost(name, value, self.cost_names, batch),
        )
        if allowance is not None and self.evaluation_critic is None:
            raise ValueError(
                "This policy has no evaluation critic, so it cannot keep a limit: only extraction='reward' "
                "is left. SPI trains one with spi.conditioned=true."
            )
        if allowance is not None:
            budget = torch.as_tensor(allowance.budget, device=device).expand(batch, -1)
            steps = torch.as_tensor(allowance.steps, device=device).expand(batch)
            allowance = CostAllowance(budget, steps, allowance.risk)
        conditioned = self.noise_model.config.use_safety_weight
        weights, count = candidate_weights(conditioned, extraction, safety_weight, num_candidates, device)

        states, denoising_steps = self.normalizer(observations), as_plain(num_inference_steps)
        if fast:
            self._check_fast(allowance, safety_weight, denoising_steps)
        values: dict[str, Tensor]
        if allowance is None:
            states = repeated(states, count)
            tiled = None if weights is None else weights.expand(batch, count).flatten()
            candidates = self.noise_model.sample(self.scheduler, states, tiled, denoising_steps, generator)
            values = paper_values(self, states, candidates, tiled)
            values = {name: value.view(batch, count) for name, value in values.items()}
            chosen = extract_reward(values["reward_values"])
        else:
            assert weights is not None  # an evaluation critic needs a conditioned policy
            known = None
            if fast:
                candidates, rates, known = value_policies_fast(self, states, weights, allowance)
            else:
                candidates, rates = value_policies(
                    self, states, weights, allowance, denoising_steps, generator
                )
            chosen, values = choose_within(self, weights, rates, allowance)
            values |= {} if known is None else {"by_student": known}

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
            chosen=chosen,
            **values,
        )
