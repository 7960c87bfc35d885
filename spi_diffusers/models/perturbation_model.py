"""BCQ's perturbation model: moves an action a little, towards a higher value."""

import itertools
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class PerturbationModel(ModelMixin, ConfigMixin):
    """clip(a + Phi * tanh(xi(s, a)), -1, 1): an action moved by at most Phi per dimension.

    Source: Fujimoto, Meger and Precup (2019), section 4.1.

    Args:
        observation_dim: Size O of a (normalised) observation.
        action_dim: Size A of an action.
        hidden_dims: Width of each hidden layer.
        max_perturbation: Phi, in units of the action range's half width.

    Raises:
        ValueError: For sizes below one, or a negative Phi.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (256, 256),
        max_perturbation: float = 0.05,
    ):
        super().__init__()
        if min(observation_dim, action_dim, *hidden_dims) < 1 or not max_perturbation >= 0:
            raise ValueError(
                "Sizes must be at least 1 and max_perturbation not negative; got "
                f"observation_dim={observation_dim}, action_dim={action_dim}, "
                f"hidden_dims={list(hidden_dims)}, max_perturbation={max_perturbation}."
            )
        widths = [observation_dim + action_dim, *hidden_dims]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], action_dim))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Perturbed actions in [-1, 1].

        Args:
            observation: Shape (B, O).
            action: In [-1, 1], shape (B, A), or (B, N, A) for N actions per observation.

        Returns:
            Of the actions' shape, float32.
        """
        if action.dim() == 3:
            observation = observation.unsqueeze(1).expand(-1, action.shape[1], -1)
        dtype = next(self.parameters()).dtype
        inputs = torch.cat([observation.to(dtype), action.to(dtype)], dim=-1)
        shift = self.config.max_perturbation * self.net(inputs).float().tanh()
        return (action + shift).clamp(-1.0, 1.0)
