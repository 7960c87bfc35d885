"""The SPI policy as a diffusers pipeline: draw candidate actions, value them, extract one.

This file is also shipped inside a policy's Hub repository, so it imports only torch, numpy and diffusers.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

FORMAT_VERSION = 1
SAFETY_WEIGHT_GRID = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
EXTRACTIONS = ("reward", "safe")


@dataclass
class SPIPolicyOutput(BaseOutput):
    """Output of [`SPIPolicyPipeline`], for B observations, N candidates each, actions of size A.

    Attributes:
        actions: The chosen actions in the environment's range, shape (B, A), or (A,) for one observation;
            NumPy or torch, as the observation was.
        candidates: All candidate actions in the environment's range, shape (B, N, A).
        safety_weights: The safety weight each candidate was drawn with, shape (B, N); NaN for a model
            that is not conditioned.
        reward_values: Reward critic Q^r of each candidate (the lower twin), shape (B, N).
        safety_values: Safety critic Q^c' of each candidate (the lower twin), shape (B, N).
        cost_rates: Predicted cost per step from each candidate on, shape (B, N).
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


def extract_reward(reward_values: Tensor) -> Tensor:
    """Eq. 12: the candidate with the highest Q^r. (B, N) -> (B,)."""
    return reward_values.argmax(dim=1)


def extract_safe(reward_values: Tensor, cost_rates: Tensor, allowed_rate: Tensor) -> tuple[Tensor, Tensor]:
    """The highest Q^r among candidates whose predicted cost rate is allowed, else the lowest cost rate.

    Args:
        reward_values: Shape (B, N).
        cost_rates: Predicted cost per step, shape (B, N).
        allowed_rate: Allowed cost per step, shape (B,).

    Returns:
        Index of the chosen candidate (B,), and which candidates are feasible (B, N).
    """
    feasible = cost_rates <= allowed_rate.unsqueeze(1)
    best = torch.where(feasible, reward_values, -torch.inf).argmax(dim=1)
    return torch.where(feasible.any(dim=1), best, cost_rates.argmin(dim=1)), feasible


class SPIPolicyPipeline(DiffusionPipeline):
    r"""A safe policy: maps observations to actions that keep a cost limit chosen at run time.

    Candidate actions are drawn from the noise model by denoising (Eq. 8); critics value them; one is
    extracted. With `extraction="reward"` that is the paper's Eq. 12. With `extraction="safe"`, the default
    whenever a limit or budget is given, candidates come from a grid of safety weights and those whose
    predicted cost exceeds the allowed rate are ruled out.

    Args:
        noise_model ([`MLPNoiseModel`]): Predicts the noise in an action, given the observation.
        reward_critic ([`TwinCritic`]): Q^r.
        safety_critic ([`TwinCritic`]): Q^c', and the predicted cost Q^c as its second head.
        scheduler ([`~diffusers.DDPMScheduler`]): Any diffusers scheduler with epsilon prediction.
        normalizer ([`ObservationNormalizer`]): Observation statistics.
        task: Name of the task it was trained for, for example "OfflineBallCircle-v0".
        max_episode_steps: Steps of an episode, over which a `cost_limit` is spread.
        gamma: Discount factor of the critics.
        cost_rate_scale: Calibration: predicted cost rates are multiplied by this.
        budget_reserve: Part of a fed-back cost budget, in units of cost, that is kept back.
        format_version: Version of this folder format.
    """

    model_cpu_offload_seq = "noise_model->reward_critic->safety_critic"

    def __init__(
        self,
        noise_model: Any,
        reward_critic: Any,
        safety_critic: Any,
        scheduler: Any,
        normalizer: Any,
        task: str | None = None,
        max_episode_steps: int | None = None,
        gamma: float = 0.99,
        cost_rate_scale: float = 1.0,
        budget_reserve: float = 0.0,
        format_version: int = FORMAT_VERSION,
    ):
        super().__init__()
        if format_version > FORMAT_VERSION:
            raise ValueError(
                f"This policy has format version {format_version}, but this code reads versions up to "
                f"{FORMAT_VERSION}: upgrade with `pip install -U spi-diffusers`."
            )
        if not 0.0 <= gamma < 1.0:
            raise ValueError(f"gamma must lie in [0, 1), got {gamma}.")
        self._check_components(noise_model, reward_critic, safety_critic, normalizer)
        self.register_modules(
            noise_model=noise_model,
            reward_critic=reward_critic,
            safety_critic=safety_critic,
            scheduler=scheduler,
            normalizer=normalizer,
        )
        self.register_to_config(
            task=task,
            max_episode_steps=max_episode_steps,
            gamma=gamma,
            cost_rate_scale=cost_rate_scale,
            budget_reserve=budget_reserve,
            format_version=format_version,
        )
        for component in (noise_model, reward_critic, safety_critic, normalizer):
            component.eval()

    @staticmethod
    def _check_components(noise_model: Any, reward_critic: Any, safety_critic: Any, normalizer: Any) -> None:
        normalizer.check()
        reference = noise_model.config
        for name, critic in (("reward_critic", reward_critic), ("safety_critic", safety_critic)):
            for key in ("observation_dim", "action_dim", "use_safety_weight"):
                if critic.config[key] != reference[key]:
                    raise ValueError(
                        f"The {name}'s {key} is {critic.config[key]}, but the noise_model's is "
                        f"{reference[key]}: these components do not belong together."
                    )
        if normalizer.config.observation_dim != reference.observation_dim:
            raise ValueError(
                f"The normalizer's observation_dim is {normalizer.config.observation_dim}, but the "
                f"noise_model's is {reference.observation_dim}: these components do not belong together."
            )

    @torch.no_grad()
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
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SPIPolicyOutput | tuple[Tensor | np.ndarray]:
        """Choose actions.

        Args:
            observation: One observation (O,) or a batch (B, O), not normalised.
            extraction: "reward" (Eq. 12) or "safe"; by default "safe" if a limit or budget is given.
            cost_limit: Cost an episode may have, in units of cost, >= 0; one number or one per observation.
                Spread evenly over `max_episode_steps`. Use this if the running cost is not observed.
            cost_budget: What is left of the limit: limit - cost so far (may be negative once overspent);
                one number or one per observation. Needs `steps_left`.
            steps_left: Steps left in the episode, >= 1; one number or one per observation.
            safety_weight: Safety weight in [0, 1] of all candidates instead of the grid (safe) or 0.5
                (reward); only for a conditioned model.
            num_candidates: Candidates per observation; 50 by default. With a grid of safety weights it is
                rounded down to a multiple of the grid's size (at least one each).
            num_inference_steps: Denoising steps; by default all of the scheduler's training timesteps.
            generator: Source of the noise; the same seed gives the same actions.
            return_dict: Whether to return a [`SPIPolicyOutput`] instead of a tuple.

        Returns:
            [`SPIPolicyOutput`], or a tuple holding the actions only.

        Raises:
            ValueError: For an observation of the wrong size or with NaN, an unknown extraction, a negative
                limit, a budget without steps left, or a safety weight that does not apply.
        """
        observations, single, as_numpy = self._check_observation(observation)
        batch = len(observations)
        extraction, allowed_rate = self._allowed_rate(extraction, cost_limit, cost_budget, steps_left, batch)
        weights, count = self._candidate_weights(extraction, safety_weight, num_candidates)

        states = self.normalizer(observations).repeat_interleave(count, dim=0)
        tiled = None if weights is None else weights.repeat(batch)
        candidates = self._sample(states, tiled, num_inference_steps, generator)
        reward_values = self.reward_critic(states, candidates, tiled, return_dict=False)[0][..., 0]
        safety_heads = self.safety_critic(states, candidates, tiled, return_dict=False)[0]
        reward_values = reward_values.amin(dim=0).view(batch, count)
        safety_values = safety_heads[..., 0].amin(dim=0).view(batch, count)
        cost_rates = self._cost_rates(safety_heads).view(batch, count)

        if allowed_rate is None:
            chosen = extract_reward(reward_values)
            feasible = torch.ones_like(reward_values, dtype=torch.bool)
        else:
            chosen, feasible = extract_safe(reward_values, cost_rates, allowed_rate)

        candidates = self._to_environment_range(candidates).view(batch, count, -1)
        picked = candidates[torch.arange(batch, device=candidates.device), chosen]
        picked = picked[0] if single else picked
        actions = picked.cpu().numpy() if as_numpy else picked
        if not return_dict:
            return (actions,)
        if weights is None:
            weights = torch.full((count,), torch.nan, device=candidates.device)
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

    def _check_observation(self, observation: Any) -> tuple[Tensor, bool, bool]:
        """The observation as float32 (B, O) on the device; whether it was one; whether to return NumPy."""
        as_numpy = not isinstance(observation, Tensor)
        tensor = torch.as_tensor(np.asarray(observation) if as_numpy else observation)
        tensor = tensor.to(device=self.device, dtype=self.normalizer.mean.dtype)
        size = self.noise_model.config.observation_dim
        if tensor.ndim not in (1, 2) or tensor.shape[-1] != size or tensor.numel() == 0:
            raise ValueError(
                f"observation has shape {tuple(tensor.shape)}; this policy takes ({size},) or (batch, {size})."
            )
        if not bool(torch.isfinite(tensor).all()):
            position = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            raise ValueError(f"observation is NaN or infinite at index {position}.")
        single = tensor.ndim == 1
        return (tensor.unsqueeze(0) if single else tensor), single, as_numpy

    def _allowed_rate(
        self, extraction: str | None, cost_limit: Any, cost_budget: Any, steps_left: Any, batch: int
    ) -> tuple[str, Tensor | None]:
        """Which extraction applies, and the allowed cost per step (B,) for the safe one."""
        if extraction is None:
            extraction = "reward" if cost_limit is None and cost_budget is None else "safe"
        if extraction not in EXTRACTIONS:
            raise ValueError(f"extraction must be one of {EXTRACTIONS}, got {extraction!r}.")
        if extraction == "reward":
            return extraction, None
        if (cost_limit is None) == (cost_budget is None):
            raise ValueError("extraction='safe' needs either cost_limit or cost_budget with steps_left.")
        if cost_limit is not None:
            if self.config.max_episode_steps is None:
                raise ValueError(
                    "This policy does not know its task's episode length: pass cost_budget and steps_left "
                    "instead of cost_limit."
                )
            limit = self._per_observation("cost_limit", cost_limit, batch)
            if bool((limit < 0).any()):
                raise ValueError(f"cost_limit must not be negative, got {cost_limit}.")
            return extraction, limit / self.config.max_episode_steps
        if steps_left is None:
            raise ValueError("cost_budget needs steps_left, the steps left in the episode.")
        budget = self._per_observation("cost_budget", cost_budget, batch)
        steps = self._per_observation("steps_left", steps_left, batch)
        if bool((steps < 1).any()):
            raise ValueError(f"steps_left must be at least 1, got {steps_left}.")
        return extraction, (budget - self.config.budget_reserve).clamp_min(0.0) / steps

    def _per_observation(self, name: str, value: Any, batch: int) -> Tensor:
        tensor = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) not in (1, batch)):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; pass one number or one per observation ({batch},)."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} is NaN or infinite: {value}.")
        return tensor.expand(batch)

    def _candidate_weights(
        self, extraction: str, safety_weight: float | None, num_candidates: int | None
    ) -> tuple[Tensor | None, int]:
        """The safety weight of each candidate (N,), None for an unconditioned model; and N."""
        count = 50 if num_candidates is None else num_candidates
        if count < 1:
            raise ValueError(f"num_candidates must be at least 1, got {num_candidates}.")
        if not self.noise_model.config.use_safety_weight:
            if safety_weight is not None:
                raise ValueError("This policy was trained without a safety weight; do not pass one.")
            return None, count
        if safety_weight is not None and not 0.0 <= safety_weight <= 1.0:
            raise ValueError(f"safety_weight must lie in [0, 1], got {safety_weight}.")
        if extraction == "safe" and safety_weight is None:
            per_weight = max(1, count // len(SAFETY_WEIGHT_GRID))
            grid = torch.tensor(SAFETY_WEIGHT_GRID, device=self.device)
            return grid.repeat_interleave(per_weight), per_weight * len(grid)
        # The paper weighs both critics; without further notice, equally.
        weight = 0.5 if safety_weight is None else safety_weight
        return torch.full((count,), float(weight), device=self.device), count

    def _sample(
        self,
        states: Tensor,
        weights: Tensor | None,
        num_inference_steps: int | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Denoise one action in [-1, 1] per row of `states`: (M, O) -> (M, A)."""
        steps = num_inference_steps or self.scheduler.config.num_train_timesteps
        shape = (len(states), self.noise_model.config.action_dim)
        if type(self.scheduler) is DDPMScheduler and self._plain_ddpm():
            coefficients = self._coefficients(steps)
            noise = randn_tensor((steps, *shape), generator=generator, device=self.device)
            return self.noise_model.denoise(states, weights, coefficients, noise)
        return self._sample_with_scheduler(states, weights, steps, shape, generator)

    def _plain_ddpm(self) -> bool:
        config = self.scheduler.config
        return (
            config.prediction_type == "epsilon"
            and config.variance_type == "fixed_small"
            and config.clip_sample
            and config.clip_sample_range == 1.0
            and not config.thresholding
            and config.timestep_spacing == "leading"
            and config.steps_offset == 0
        )

    def _coefficients(self, steps: int) -> Tensor:
        cached = getattr(self, "_coefficient_cache", None)
        if cached is None or cached[0] is not self.scheduler or cached[1] != steps:
            cached = (self.scheduler, steps, self.noise_model.ddpm_coefficients(self.scheduler, steps))
            object.__setattr__(self, "_coefficient_cache", cached)
        return cached[2]

    def _sample_with_scheduler(
        self,
        states: Tensor,
        weights: Tensor | None,
        steps: int,
        shape: tuple[int, int],
        generator: torch.Generator | None,
    ) -> Tensor:
        """The same chain through `scheduler.step`, for any scheduler that predicts the noise."""
        scheduler = self.scheduler
        scheduler.set_timesteps(steps, device=self.device)
        extra = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            extra["generator"] = generator
        # Schedulers that threshold need a channel axis: (M, 1, A).
        sample = randn_tensor((shape[0], 1, shape[1]), generator=generator, device=self.device)
        sample = sample * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(sample, timestep)
            predicted = self.noise_model(scaled.squeeze(1), timestep, states, weights, return_dict=False)[0]
            sample = scheduler.step(predicted.unsqueeze(1), timestep, sample, **extra).prev_sample
        action = sample.squeeze(1)
        if not bool(torch.isfinite(action).all()):
            raise ValueError(
                f"{type(scheduler).__name__} gave actions that are not finite in {steps} steps; few-step "
                "solvers often need timestep_spacing='trailing' in their config."
            )
        return action.clamp(-1.0, 1.0)

    def _cost_rates(self, safety_heads: Tensor) -> Tensor:
        """Predicted cost per step from the safety critic's heads (2, M, H), shape (M,)."""
        gamma = self.config.gamma
        if safety_heads.shape[-1] > 1:
            cost_value = safety_heads[..., 1].mean(dim=0)
        else:
            # Without termination Q^c = 1 / (1 - gamma) - Q^c' exactly.
            cost_value = 1.0 / (1.0 - gamma) - safety_heads[..., 0].amin(dim=0)
        return cost_value * (1.0 - gamma) * self.config.cost_rate_scale

    def _to_environment_range(self, action: Tensor) -> Tensor:
        config = self.noise_model.config
        low = torch.as_tensor(config.action_low, dtype=action.dtype, device=action.device)
        high = torch.as_tensor(config.action_high, dtype=action.dtype, device=action.device)
        return low + (action + 1.0) * 0.5 * (high - low)
