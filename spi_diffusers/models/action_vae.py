"""A variational auto-encoder of actions given the observation: draws actions like those in the data.

The batch-constrained baselines build on it (BCQ's candidate actions, BEAR's support, CPQ's test for actions
outside the data).
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

#: Bounds of the encoder's log standard deviation, for numerical stability (Fujimoto et al. 2019).
LOG_STD_MIN, LOG_STD_MAX = -4.0, 15.0


class ActionVAE(ModelMixin, ConfigMixin):
    """Conditional VAE: encoder q(z | s, a) = N(mean, std^2), prior N(0, I), decoder a = tanh(D(s, z)).

    Source: Fujimoto, Meger and Precup, "Off-Policy Deep Reinforcement Learning without Exploration" (2019).

    Args:
        observation_dim: Size O of a (normalised) observation.
        action_dim: Size A of an action.
        hidden_dim: Width of the two hidden layers of encoder and decoder.
        latent_dim: Size L of the latent; by default 2 A.

    Raises:
        ValueError: For sizes below one.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self, observation_dim: int, action_dim: int, hidden_dim: int = 400, latent_dim: int | None = None
    ):
        super().__init__()
        latent_dim = 2 * action_dim if latent_dim is None else latent_dim
        if min(observation_dim, action_dim, hidden_dim, latent_dim) < 1:
            raise ValueError(
                f"Sizes must be at least 1; got observation_dim={observation_dim}, action_dim={action_dim}, "
                f"hidden_dim={hidden_dim}, latent_dim={latent_dim}."
            )
        self.latent_dim = latent_dim
        self.encoder = _mlp(observation_dim + action_dim, hidden_dim, 2 * latent_dim)
        self.decoder = _mlp(observation_dim + latent_dim, hidden_dim, action_dim)

    def encode(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the latent, each (B, L) float32, from (B, O) and (B, A)."""
        encoded = self.encoder(self._joined(observation, action)).float()
        mean, log_std = encoded.chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def decode_raw(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Actions before the tanh.

        Args:
            observation: Shape (B, O).
            latent: Shape (B, L), or (B, N, L) for N actions per observation.

        Returns:
            Shape (B, A) or (B, N, A), float32.
        """
        if latent.dim() == 3:
            observation = observation.unsqueeze(1).expand(-1, latent.shape[1], -1)
        return self.decoder(self._joined(observation, latent)).float()

    def decode(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Actions in [-1, 1]; shapes as in `decode_raw`."""
        return self.decode_raw(observation, latent).tanh()

    def forward(self, observation: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct actions through a sampled latent.

        Args:
            observation: Shape (B, O).
            action: Shape (B, A).
            noise: Standard normal, shape (B, L).

        Returns:
            The reconstruction (B, A), and the latent's mean and log standard deviation (B, L).
        """
        mean, log_std = self.encode(observation, action)
        return self.decode(observation, mean + log_std.exp() * noise), mean, log_std

    def _joined(self, *parts: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        return torch.cat([part.to(dtype) for part in parts], dim=-1)


def _mlp(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    # In place, as fresh memory for activations takes longer than computing them.
    layers: list[nn.Module] = []
    for width in (width_in, hidden):
        layers += [nn.Linear(width, hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(hidden, width_out))
