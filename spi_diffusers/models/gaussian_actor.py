"""A stochastic policy: a Gaussian squashed by tanh."""

import itertools
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

#: Bounds of the log standard deviation (Haarnoja et al. 2018).
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class GaussianActor(ModelMixin, ConfigMixin):
    """An MLP with ReLU that gives mean and log standard deviation of an action before the tanh.

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
        widths = [observation_dim, *hidden_dims]
        if min(*widths, action_dim) < 1:
            raise ValueError(f"All sizes must be at least 1, got {[*widths, action_dim]}.")
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(widths[-1], 2 * action_dim))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `distribution`."""
        return self.distribution(observation)

    def distribution(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the tanh, each (B, A) float32, from (B, O)."""
        dtype = next(self.net.parameters()).dtype  # bfloat16 in a compute replica
        mean, log_std = self.net(observation.to(dtype)).float().chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def draw_raw(self, observation: Tensor, noise: Tensor) -> Tensor:
        """N actions per observation before the tanh, (B, N, A), from standard normal noise of that shape."""
        mean, log_std = self.distribution(observation)
        return mean.unsqueeze(1) + log_std.exp().unsqueeze(1) * noise

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The squashed mean, in [-1, 1], shape (B, A): when it acts, the policy is not random."""
        mean, _ = self.distribution(observation)
        return mean.tanh()
