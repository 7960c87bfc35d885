"""The noise model: predicts the noise in an action, given the observation (and a safety weight).

This file is also shipped inside a policy's Hub repository, so it imports only torch and diffusers.
"""

import copy
import inspect
import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.activations import get_activation
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class MLPNoiseModelOutput(BaseOutput):
    """Output of [`MLPNoiseModel`].

    Attributes:
        sample: Predicted noise, shape (B, A).
    """

    sample: Tensor


#: Schedulers that take the noise in an action and give back the action, within the steps that it was trained
#: with. Of diffusers' others some fail, and some end at other actions without a word (PNDM, DEIS, SASolver).
SCHEDULERS = (
    *("DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler"),
    *("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LMSDiscreteScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"),
)


def _own_copy(scheduler: Any) -> Any:
    """A scheduler for one call, as `step` counts and solvers remember: threads share the original.

    Its tensors and config are not copied, which would take longer than a denoising step: schedulers put
    others in their place, but do not change them.
    """
    own = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if not isinstance(value, Tensor | FrozenDict):
            setattr(own, name, copy.deepcopy(value))
    return own


#: Fewer rows than this are multiplied as columns.
FEW = 16


@lru_cache(maxsize=16)
def _time_features(timesteps: tuple[float, ...], size: int, device: torch.device) -> Tensor:
    """Sinusoidal embeddings of timesteps, (steps, size), computed on the CPU; the same few at every call."""
    with torch.inference_mode(False):  # what is kept must serve calls with gradients, too
        features = get_timestep_embedding(torch.tensor(timesteps, dtype=torch.float32, device="cpu"), size)
        return features.to(device)


class MLPNoiseModel(ModelMixin, ConfigMixin):
    r"""The noise model epsilon_omega(a_t, t | s, w) of Eq. 9: an MLP over action, time and observation.

    Noise is put on the action only; the observation conditions the model and carries none. With
    `use_safety_weight` the model takes one more input, the safety weight w in [0, 1], so that one model
    holds the whole trade-off between reward (w = 0) and safety (w = 1).

    Actions inside the model lie in [-1, 1]; `action_low` and `action_high` say which range of the
    environment that stands for.

    Args:
        observation_dim: Size O of a (normalized) observation.
        action_dim: Size A of an action.
        hidden_dims: Width of each hidden layer.
        time_embed_dim: Size of the sinusoidal time embedding (even).
        activation: Name of a diffusers activation: "silu" (fast on CPU), "mish", "gelu" or "relu".
        use_safety_weight: Whether the model is conditioned on a safety weight.
        action_low: Smallest action of the environment, one number or A of them.
        action_high: Largest action of the environment, one number or A of them.

    Raises:
        ValueError: For sizes below one, or action bounds that are not finite and ordered.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (256, 256, 256),
        time_embed_dim: int = 16,
        activation: str = "silu",
        use_safety_weight: bool = True,
        action_low: float | Sequence[float] = -1.0,
        action_high: float | Sequence[float] = 1.0,
    ):
        super().__init__()
        if min(observation_dim, action_dim, time_embed_dim, *hidden_dims) < 1 or time_embed_dim % 2:
            raise ValueError(
                f"Sizes must be at least 1 and time_embed_dim even; got observation_dim={observation_dim}, "
                f"action_dim={action_dim}, hidden_dims={list(hidden_dims)}, time_embed_dim={time_embed_dim}."
            )
        self._check_action_range(action_dim, action_low, action_high)
        self.time_mlp = nn.Sequential(
            nn.Linear(time_embed_dim, 2 * time_embed_dim, dtype=torch.float32),
            get_activation(activation),
            nn.Linear(2 * time_embed_dim, time_embed_dim, dtype=torch.float32),
        )
        widths = [action_dim + time_embed_dim + observation_dim + int(use_safety_weight), *hidden_dims]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out, dtype=torch.float32), get_activation(activation)]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], action_dim, dtype=torch.float32))

        self._coefficient_cache: tuple[Any, int, Tensor | None] | None = None

    @staticmethod
    def _check_action_range(
        action_dim: int, low: float | Sequence[float], high: float | Sequence[float]
    ) -> None:
        lows, highs = (
            [float(bound)] * action_dim if isinstance(bound, int | float) else [float(b) for b in bound]
            for bound in (low, high)
        )
        if len(lows) != action_dim or len(highs) != action_dim:
            raise ValueError(
                f"action_low and action_high need 1 or {action_dim} numbers, got {len(lows)} and "
                f"{len(highs)}."
            )
        if not all(math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(lows, highs, strict=True)):
            raise ValueError(f"action_low must lie below action_high and both be finite: {lows}, {highs}.")

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "MLPNoiseModel":
        """As in diffusers, but from safetensors only: it would fall back to a pickle."""
        return super().from_pretrained(*args, **{**kwargs, "use_safetensors": True})

    def forward(
        self,
        noisy_action: Tensor,
        timestep: Tensor | int,
        observation: Tensor,
        safety_weight: Tensor | None = None,
        return_dict: bool = True,
    ) -> MLPNoiseModelOutput | tuple[Tensor]:
        """Predict the noise in `noisy_action`.

        Args:
            noisy_action: Shape (B, A).
            timestep: Diffusion timestep, one for the batch or one per row (B,).
            observation: Normalized observation, shape (B, O).
            safety_weight: Safety weight w in [0, 1], shape (B,); needed with `use_safety_weight`, and
                refused without it.
            return_dict: Whether to return a [`MLPNoiseModelOutput`] instead of a tuple.

        Returns:
            The predicted noise, shape (B, A).
        """
        timestep = torch.as_tensor(timestep, device=noisy_action.device).reshape(-1)
        time = self.embed_time(timestep).expand(len(noisy_action), -1)
        sample = self._predict(noisy_action, time, self._condition(observation, safety_weight))
        return MLPNoiseModelOutput(sample=sample) if return_dict else (sample,)

    def embed_time(self, timestep: Tensor) -> Tensor:
        """Embed diffusion timesteps of shape (B,) as (B, time_embed_dim)."""
        return self._embed(get_timestep_embedding(timestep, self.config.time_embed_dim))

    def _embed(self, features: Tensor) -> Tensor:
        weight: Any = self.time_mlp[0].weight
        return self.time_mlp(features.to(weight.device, weight.dtype))

    def _condition(self, observation: Tensor, safety_weight: Tensor | None) -> Tensor:
        if (safety_weight is not None) != self.config.use_safety_weight:
            needs = "needs" if self.config.use_safety_weight else "does not take"
            raise ValueError(f"This noise model {needs} a safety weight.")
        if safety_weight is None:
            return observation
        return torch.cat([observation, safety_weight.unsqueeze(-1).to(observation.dtype)], dim=-1)

    def _predict(self, noisy_action: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        return self.net(torch.cat([noisy_action.to(time.dtype), time, condition.to(time.dtype)], dim=-1))

    def _predict_without_gradient(self, batch: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """What predicts as `_predict` for B rows, without module calls and with SiLU in place.

        Made anew for each chain, as nothing tells whether weights have changed since: fused optimizers and
        EMA copies leave no trace. A policy that acts multiplies few rows as columns: a product of so few rows
        takes longer, and differs in its last bits from that of many, by which the committed results are.
        """
        layers: list[Any] = list(self.net)[::2]
        activation: Any = self.net[1]
        if type(activation) is nn.SiLU:
            activation = partial(functional.silu, inplace=True)
        in_columns = batch < FEW and not self.training
        *before, last = [
            (layer.weight, layer.bias.unsqueeze(1) if in_columns else layer.bias) for layer in layers
        ]

        def product(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            if in_columns:
                return torch.addmm(bias, weight, hidden)
            return functional.linear(hidden, weight, bias)

        def predict(noisy_action: Tensor, time: Tensor, condition: Tensor) -> Tensor:
            hidden = torch.cat([noisy_action.to(time.dtype), time, condition], dim=-1)
            hidden = hidden.t() if in_columns else hidden
            for weight, bias in before:
                hidden = activation(product(hidden, weight, bias))
            hidden = product(hidden, *last)
            return hidden.t() if in_columns else hidden

        return predict

    @staticmethod
    def ddpm_coefficients(scheduler: DDPMScheduler, num_inference_steps: int | None = None) -> Tensor:
        """Coefficients of every DDPM denoising step, so that the hot path need not call the scheduler.

        The reference is `DDPMScheduler.step` (epsilon prediction); a test holds the two together.

        Args:
            scheduler: A `DDPMScheduler` with `prediction_type="epsilon"`.
            num_inference_steps: Number of denoising steps, by default all T training timesteps.

        Returns:
            Tensor of shape (steps, 6), float32, first step first. A row holds: timestep; 1/sqrt(alpha-bar)
            and sqrt(1/alpha-bar - 1), which give x0 from x_t and the noise; the weights of x0 and of x_t in
            the posterior mean; the posterior standard deviation.
        """
        scheduler = copy.deepcopy(scheduler)  # other threads may draw with it
        scheduler.set_timesteps(num_inference_steps or scheduler.config.num_train_timesteps)
        timesteps = scheduler.timesteps.tolist()
        alpha_bars = scheduler.alphas_cumprod.double()
        rows = []
        for timestep, previous in itertools.pairwise([*timesteps, -1]):
            alpha_bar = float(alpha_bars[timestep])
            alpha_bar_previous = float(alpha_bars[previous]) if previous >= 0 else 1.0
            alpha = alpha_bar / alpha_bar_previous
            beta = 1.0 - alpha
            variance = max(beta * (1.0 - alpha_bar_previous) / (1.0 - alpha_bar), 1e-20)
            rows.append(
                [
                    timestep,
                    alpha_bar**-0.5,
                    (1.0 / alpha_bar - 1.0) ** 0.5,
                    alpha_bar_previous**0.5 * beta / (1.0 - alpha_bar),
                    alpha**0.5 * (1.0 - alpha_bar_previous) / (1.0 - alpha_bar),
                    variance**0.5 if timestep > 0 else 0.0,
                ]
            )
        return torch.tensor(rows, dtype=torch.float32)

    def denoise(
        self,
        observation: Tensor,
        safety_weight: Tensor | None,
        coefficients: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Sample actions by the whole DDPM chain (Eq. 8), with x0 clipped to [-1, 1] at every step.

        Args:
            observation: Normalized observation, shape (B, O).
            safety_weight: Shape (B,), or None for an unconditioned model.
            coefficients: Shape (steps, 6), on the CPU, from [`ddpm_coefficients`].
            noise: Standard normal noise, shape (steps, B, A): the start, then one per step but the last; or
                (1, B, A): the start, and no noise in the steps.

        Returns:
            Actions in [-1, 1], shape (B, A), float32.
        """
        rows = coefficients.tolist()
        size, timesteps = self.config.time_embed_dim, tuple(row[0] for row in rows)
        times = self._embed(_time_features(timesteps, size, observation.device))
        condition = self._condition(observation, safety_weight).to(times.dtype)
        time_rows = times.unsqueeze(1).expand(-1, condition.shape[0], -1).unbind()
        predict = self._predict if torch.is_grad_enabled() else self._predict_without_gradient(len(condition))
        action = noise[0]
        # Few, fused operations: called hundreds of times a second, each costs more to start than to compute.
        for step, (_, scale_noisy, scale_noise, mean_clean, mean_noisy, deviation) in enumerate(rows):
            predicted = predict(action, time_rows[step], condition)
            clean = torch.sub(action * scale_noisy, predicted, alpha=scale_noise).clamp(-1.0, 1.0)
            action = torch.add(action * mean_noisy, clean, alpha=mean_clean)
            if step + 1 < len(noise):
                action = torch.add(action, noise[step + 1], alpha=deviation)
        return action.float()

    def sample(
        self,
        scheduler: Any,
        observation: Tensor,
        safety_weight: Tensor | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Sample one action per observation by denoising with a scheduler.

        Args:
            scheduler: One of diffusers' `SCHEDULERS`, or of a class made from it. It is not changed. The one
                SPI trains with runs on precomputed coefficients, all others through their own `step`.
            observation: Normalized observation, shape (B, O).
            safety_weight: Shape (B,), or None for an unconditioned model.
            num_inference_steps: Number of denoising steps, by default all T training timesteps.
            generator: Source of the noise.
            temperature: Multiplies all noise (low-temperature sampling, Ajay et al. 2023). At 0 there is one
                action for an observation, a typical one. A scheduler that goes through its own `step` draws
                its noise there as ever.

        Returns:
            Actions in [-1, 1], shape (B, A), float32.

        Raises:
            ValueError: If the scheduler cannot denoise actions, does not take predicted noise or gives
                actions that are not finite, or for a number of steps outside 1 to T.
        """
        largest = scheduler.config.num_train_timesteps
        steps = largest if num_inference_steps is None else num_inference_steps
        is_whole = isinstance(steps, numbers.Integral) and not isinstance(steps, bool)
        if not is_whole or not 1 <= steps <= largest:
            raise ValueError(f"num_inference_steps must be a whole number in [1, {largest}], got {steps!r}.")
        if not any(kind.__name__ in SCHEDULERS for kind in type(scheduler).__mro__):
            raise ValueError(
                f"A {type(scheduler).__name__} cannot denoise actions; use one of {', '.join(SCHEDULERS)}."
            )
        if scheduler.config.get("prediction_type", "epsilon") != "epsilon":
            raise ValueError(
                f"The noise model predicts noise, but the scheduler's prediction_type is "
                f"{scheduler.config.prediction_type!r}: use 'epsilon'."
            )
        shape = (observation.shape[0], self.config.action_dim)
        coefficients = self.coefficients_of(scheduler, steps)
        if coefficients is None:
            return self._sample_by_steps(scheduler, observation, safety_weight, steps, generator, temperature)
        if temperature == 0:
            noise = torch.zeros((1, *shape), dtype=torch.float32, device=observation.device)
        else:
            noise = temperature * randn_tensor((steps, *shape), generator, observation.device, torch.float32)
        return self.denoise(observation, safety_weight, coefficients, noise)

    def coefficients_of(self, scheduler: Any, steps: int) -> Tensor | None:
        """Coefficients (steps, 6) of a scheduler that `denoise` reproduces, kept; None for any other."""
        cached, config = self._coefficient_cache, scheduler.config
        if cached is None or cached[0] is not config or cached[1] != steps:  # a change makes a new config
            reproduced = type(scheduler) is DDPMScheduler and (
                config.prediction_type == "epsilon"
                and config.variance_type == "fixed_small"
                and config.clip_sample
                and config.clip_sample_range == 1.0
                and not config.thresholding
                and config.timestep_spacing in ("leading", "trailing")
                and config.steps_offset == 0
            )
            cached = (config, steps, self.ddpm_coefficients(scheduler, steps) if reproduced else None)
            self._coefficient_cache = cached
        return cached[2]

    def _sample_by_steps(
        self,
        scheduler: Any,
        observation: Tensor,
        safety_weight: Tensor | None,
        steps: int,
        generator: torch.Generator | None,
        temperature: float,
    ) -> Tensor:
        scheduler = _own_copy(scheduler)
        scheduler.set_timesteps(steps, device=observation.device)
        extra = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            extra["generator"] = generator
        # Schedulers that threshold need a channel axis: (B, 1, A).
        shape = (len(observation), 1, self.config.action_dim)
        sample = randn_tensor(shape, generator, observation.device, torch.float32)
        sample = sample * (temperature * scheduler.init_noise_sigma)
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(sample, timestep).squeeze(1)
            (predicted,) = self(scaled, timestep, observation, safety_weight, return_dict=False)
            sample = scheduler.step(predicted.unsqueeze(1), timestep, sample, **extra).prev_sample
        action = sample.squeeze(1).float()
        if not bool(torch.isfinite(action).all()):
            raise ValueError(
                f"{type(scheduler).__name__} gave actions that are not finite in {steps} steps; few-step "
                "solvers often need timestep_spacing='trailing' in their config."
            )
        return action.clamp(-1.0, 1.0)

    def to_environment_range(self, action: Tensor) -> Tensor:
        """Map actions from [-1, 1] to [action_low, action_high]; shape (..., A)."""
        if self.config.action_low == -1.0 and self.config.action_high == 1.0:
            return action
        low, high = self._action_range(action)
        # Clamped, as rounding can lead beyond a bound by one unit in the last place.
        return (low + (action + 1.0) * 0.5 * (high - low)).clamp(low, high)

    def from_environment_range(self, action: Tensor) -> Tensor:
        """Map actions from [action_low, action_high] to [-1, 1]; shape (..., A)."""
        low, high = self._action_range(action)
        return (action - low) / (high - low) * 2.0 - 1.0

    def _action_range(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.as_tensor(self.config.action_low, dtype=like.dtype, device=like.device)
        high = torch.as_tensor(self.config.action_high, dtype=like.dtype, device=like.device)
        return low, high
