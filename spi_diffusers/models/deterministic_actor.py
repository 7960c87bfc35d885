"""A policy that maps an observation to one action."""

import itertools
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class DeterministicActor(ModelMixin, ConfigMixin):
    """An MLP with ReLU, whose output is squashed by tanh.

    Args:
        observation_dim: Size O of a (normalised) observation.
        action_dim: Size A of an action.
        hidden_dims: Width of each hidden layer.

    Raises:
        ValueError: For sizes below one.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, observation_dim: int, action_dim: int, hidden_dims: Sequence[int] = (256, 256)):
        super().__init__()
        sizes = [observation_dim, *hidden_dims, action_dim]
        if min(sizes) < 1:
            raise ValueError(f"All sizes must be at least 1, got {sizes}.")
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(sizes):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1], nn.Tanh())

    def forward(self, observation: Tensor) -> Tensor:
        """Actions in [-1, 1], shape (B, A), float32, for normalised observations (B, O)."""
        dtype = next(self.net.parameters()).dtype  # bfloat16 in a compute replica
        return self.net(observation.to(dtype)).float()

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The same as `forward`; nothing is random."""
        return self(observation)
