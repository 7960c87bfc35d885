"""Observation normalization as a component with its statistics as buffers.

This file is also shipped inside a policy's Hub repository, so it imports only torch and diffusers.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

#: Standard deviation, as a share of the mean, up to which float32 data counts as constant.
ROUNDING = 5e-7


class ObservationNormalizer(ModelMixin, ConfigMixin):
    """Maps observations to zero mean and unit variance, clipped to +-`clip`.

    The statistics are buffers that start as NaN: a normalizer whose statistics were never set, or were
    lost, gives NaN instead of passing observations through, and `check` raises. They stay in float32 where a
    policy is cast to half precision: a small deviation about a large mean has no digits there.

    Args:
        observation_dim: Size O of an observation.
        clip: Largest absolute normalized value.

    Raises:
        ValueError: A setting is not positive, or not finite.
    """

    config_name = "config.json"
    mean: Tensor
    std: Tensor

    @register_to_config
    def __init__(self, observation_dim: int, clip: float = 10.0):
        super().__init__()
        for name, value in (("observation_dim", observation_dim), ("clip", clip)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value!r}.")
        self.register_buffer("mean", torch.full((observation_dim,), torch.nan, dtype=torch.float32))
        self.register_buffer("std", torch.full((observation_dim,), torch.nan, dtype=torch.float32))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "ObservationNormalizer":
        """As in diffusers, but `torch_dtype` does not change the statistics."""
        return super().from_pretrained(
            *args, **{**kwargs, "torch_dtype": None, "dtype": None, "use_safetensors": True}
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ObservationNormalizer":
        # `to`, `half` and their like all come here; only their change of device is taken.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def fit(self, observation: Tensor) -> "ObservationNormalizer":
        """Set the statistics from data of shape (N, O) and return the normalizer itself."""
        data = observation.double()
        self.set_statistics(data.mean(dim=0), data.std(dim=0, correction=0))
        return self

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and standard deviation, each of shape (O,).

        A column that varies by no more than rounding is divided by its size instead, and one that is always
        zero by 1: what it becomes when the policy acts is seen, but not blown up.

        Raises:
            ValueError: If a statistic has the wrong shape, is not finite, or a deviation is negative.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != (self.config.observation_dim,):
                raise ValueError(
                    f"Statistic '{name}' has shape {tuple(value.shape)}, expected "
                    f"({self.config.observation_dim},)."
                )
        _check_statistics(mean, std)
        constant = std <= ROUNDING * mean.abs()
        unit = torch.where(constant, mean.abs(), std)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(unit > 0, unit, 1.0).clamp_min(torch.finfo(self.std.dtype).tiny))

    def check(self) -> None:
        """Raise ValueError if statistics are missing or not usable."""
        _check_statistics(self.mean, self.std)
        if bool((self.std == 0).any()):
            raise ValueError(f"Statistic 'std' of the observation normalizer is zero: {self.std.tolist()}.")

    def forward(self, observation: Tensor) -> Tensor:
        """Normalize observations of shape (..., O); the result is float32.

        Raises:
            ValueError: For another size than O, which would be broadcast.
        """
        if observation.shape[-1] != len(self.mean):
            raise ValueError(
                f"observation has shape {tuple(observation.shape)}; this normalizer takes (..., "
                f"{len(self.mean)})."
            )
        normalized = (observation.to(self.mean.dtype) - self.mean) / self.std
        return normalized.clamp(-self.config.clip, self.config.clip)


def _check_statistics(mean: Tensor, std: Tensor) -> None:
    for name, value in (("mean", mean), ("std", std)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"Statistic '{name}' of the observation normalizer is missing or not finite: "
                f"{value.tolist()}. Fit it on data, or load it from a complete model folder."
            )
    if bool((std < 0).any()):
        raise ValueError(f"Statistic 'std' of the observation normalizer is negative: {std.tolist()}.")
