"""Critics: twin Q functions of (observation, action, safety weight), computed in one batched pass.

This file is also shipped inside a policy's Hub repository, so it imports only torch and diffusers.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.activations import get_activation
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn


@dataclass
class TwinCriticOutput(BaseOutput):
    """Output of [`TwinCritic`].

    Attributes:
        values: Both twins' values, shape (2, B).
    """

    values: Tensor


class BatchedLinear(nn.Module):
    """Several linear layers of one shape as one batched matrix product.

    Args:
        num_networks: Number E of layers side by side.
        in_features: Input width.
        out_features: Output width.
    """

    def __init__(self, num_networks: int, in_features: int, out_features: int):
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)  # the initialization of nn.Linear
        self.weight = nn.Parameter(torch.empty(num_networks, in_features, out_features, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(num_networks, 1, out_features, dtype=torch.float32))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (E, B, in_features) to (E, B, out_features)."""
        return torch.baddbmm(self.bias, inputs, self.weight)


class TwinCritic(ModelMixin, ConfigMixin):
    """Two Q functions of (s, a, w) with separate weights: the reward critic Q^r, or the safety critic Q^c'.

    Args:
        observation_dim: Size O of a (normalized) observation.
        action_dim: Size A of an action.
        hidden_dims: Width of each hidden layer.
        activation: Name of a diffusers activation.
        use_safety_weight: Whether the values depend on the safety weight of the policy that follows.

    Raises:
        ValueError: For sizes below one.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (256, 256, 256),
        activation: str = "silu",
        use_safety_weight: bool = True,
    ):
        super().__init__()
        if min(observation_dim, action_dim, *hidden_dims) < 1:
            raise ValueError(
                f"Sizes must be at least 1; got observation_dim={observation_dim}, action_dim={action_dim}, "
                f"hidden_dims={list(hidden_dims)}."
            )
        widths = [observation_dim + action_dim + int(use_safety_weight), *hidden_dims]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [BatchedLinear(2, width_in, width_out), get_activation(activation)]
        self.net = nn.Sequential(*layers, BatchedLinear(2, widths[-1], 1))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "TwinCritic":
        """As in diffusers, but from safetensors only: it would fall back to a pickle."""
        return super().from_pretrained(*args, **{**kwargs, "use_safetensors": True})

    def forward(
        self,
        observation: Tensor,
        action: Tensor,
        safety_weight: Tensor | None = None,
        return_dict: bool = True,
    ) -> TwinCriticOutput | tuple[Tensor]:
        """Both twins' values.

        Args:
            observation: Normalized observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).
            safety_weight: Shape (B,); needed with `use_safety_weight`, and refused without it.
            return_dict: Whether to return a [`TwinCriticOutput`] instead of a tuple.

        Returns:
            Values of shape (2, B).
        """
        if (safety_weight is not None) != self.config.use_safety_weight:
            needs = "needs" if self.config.use_safety_weight else "does not take"
            raise ValueError(f"This critic {needs} a safety weight.")
        inputs = [observation, action]
        if safety_weight is not None:
            inputs.append(safety_weight.unsqueeze(-1))
        dtype = next(self.parameters()).dtype
        stacked = torch.cat([part.to(dtype) for part in inputs], dim=-1)
        values = self.net(stacked.expand(2, -1, -1)).squeeze(-1)
        return TwinCriticOutput(values=values) if return_dict else (values,)
