"""Calibration between the cost that a safety critic allows and the cost that results.

This file is also shipped inside a policy's Hub repository, so it imports only torch and diffusers.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor


class CostCalibration(ModelMixin, ConfigMixin):
    """A monotone, piecewise linear map from a wanted cost rate to the rate to hold the critic to.

    Critics are biased, and extraction picks the candidates that they misjudge. Both are measured after
    training, offline, as a curve of knots: holding the critic's predictions to `allowed_rates[k]` is taken to
    cost `realised_rates[k]` per step. This component holds the curve and inverts it. It stays in float32
    where a policy is cast to half precision, in which knots side by side would be one.

    Args:
        num_knots: Number K of knots.
    """

    config_name = "config.json"
    allowed_rates: Tensor
    realised_rates: Tensor

    @register_to_config
    def __init__(self, num_knots: int):
        super().__init__()
        if num_knots < 1:
            raise ValueError(f"num_knots must be at least 1, got {num_knots}.")
        self.register_buffer("allowed_rates", torch.full((num_knots,), torch.nan, dtype=torch.float32))
        self.register_buffer("realised_rates", torch.full((num_knots,), torch.nan, dtype=torch.float32))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "CostCalibration":
        """As in diffusers, but `torch_dtype` does not change the curve."""
        return super().from_pretrained(
            *args, **{**kwargs, "torch_dtype": None, "dtype": None, "use_safetensors": True}
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CostCalibration":
        # `to`, `half` and their like all come here; only their change of device is taken.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def set_curve(self, allowed_rates: Tensor, realised_rates: Tensor) -> "CostCalibration":
        """Set the knots and return the calibration itself.

        Args:
            allowed_rates: Rates the critic was held to, positive and increasing, shape (K,).
            realised_rates: Cost per step that came of it, positive and increasing, shape (K,).

        Raises:
            ValueError: If the knots have another number or are not finite, positive and increasing.
        """
        for name, value in (("allowed_rates", allowed_rates), ("realised_rates", realised_rates)):
            if value.shape != (self.config.num_knots,):
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, expected ({self.config.num_knots},)."
                )
            _check_rates(name, value)
        self.allowed_rates.copy_(allowed_rates)
        self.realised_rates.copy_(realised_rates)
        return self

    def check(self) -> None:
        """Raise ValueError if the curve is missing or not monotone."""
        _check_rates("allowed_rates", self.allowed_rates)
        _check_rates("realised_rates", self.realised_rates)

    def forward(self, wanted_rate: Tensor) -> Tensor:
        """The rate to hold the critic to so that `wanted_rate` results; any shape is kept.

        Linear between the knots; through the origin below the first; proportional above the last.
        """
        origin = torch.zeros_like(self.allowed_rates[:1])
        realized = torch.cat([origin, self.realised_rates])
        allowed = torch.cat([origin, self.allowed_rates])
        upper = torch.bucketize(wanted_rate, realized).clamp(1, len(realized) - 1)
        lower = upper - 1
        share = (wanted_rate - realized[lower]) / (realized[upper] - realized[lower])
        inside = allowed[lower] + share * (allowed[upper] - allowed[lower])
        beyond = wanted_rate * (allowed[-1] / realized[-1])
        return torch.where(wanted_rate > realized[-1], beyond, inside)


def _check_rates(name: str, value: Tensor) -> None:
    rising = bool((value.diff() > 0).all()) and bool((value > 0).all())
    if not bool(torch.isfinite(value).all()) or not rising:
        raise ValueError(
            f"The cost calibration's {name} must be finite, positive and increasing, got {value.tolist()}."
        )
