"""Everything one update of SPI consumes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class StepInputs:
    """Everything one update consumes: a batch and all of its randomness.

    Attributes:
        observation: Normalised, shape (B, O).
        next_observation: Normalised, shape (B, O).
        action: In [-1, 1], shape (B, A).
        reward: Shape (B,).
        cost: Shape (B,).
        terminated: Shape (B,), bool.
        safety_weight: w ~ U(0, 1), shape (B,).
        timestep: Diffusion timestep ~ U{0..T-1}, shape (B,), int64.
        noise: Standard normal, shape (B, A), for the noise loss.
        chain_noise: Standard normal, shape (T, B, A), for sampling the next action.
        guidance_noise: Standard normal, shape (T, B, A), for chain guidance; empty (0, B, A) otherwise.
        twin: Which twin guides, int64 scalar 0 or 1.
        next_action: a_{i+1}, in [-1, 1], shape (B, A).
        imitated: Whether the noise loss counts a transition, shape (B,), bool; None: it counts all.
    """

    observation: Tensor
    next_observation: Tensor
    action: Tensor
    reward: Tensor
    cost: Tensor
    terminated: Tensor
    safety_weight: Tensor
    timestep: Tensor
    noise: Tensor
    chain_noise: Tensor
    guidance_noise: Tensor
    twin: Tensor
    next_action: Tensor | None = None
    imitated: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "StepInputs":
        """What `tensors` came from."""
        return cls(**tensors)
