"""The action VAE that the batch-constrained baselines share: what actions are like in the data."""

from torch import Tensor, nn

from spi_diffusers.models.mlp import joined, mlp, repeated

#: Bounds of the encoder's log standard deviation, for numerical stability (Fujimoto et al. 2019).
LOG_STD_MIN, LOG_STD_MAX = -4.0, 15.0


class ActionVAE(nn.Module):
    """Conditional VAE of actions: encoder q(z | s, a) = N(mean, std^2), prior N(0, I), a = tanh(D(s, z)).

    It draws actions like those in the data: BCQ's candidates, BEAR's support, CPQ's test for actions outside
    the data. Source: Fujimoto, Meger and Precup, "Off-Policy Deep Reinforcement Learning without
    Exploration" (2019).

    Args:
        observation_dim: Size O of a (normalized) observation.
        action_dim: Size A of an action; latents have size L = 2 A.
        hidden_dim: Width of the two hidden layers of encoder and decoder.

    Raises:
        ValueError: For sizes below one.
    """

    def __init__(self, observation_dim: int, action_dim: int, hidden_dim: int = 400):
        super().__init__()
        self.latent_dim = 2 * action_dim
        self.encoder = mlp(observation_dim + action_dim, hidden_dim, hidden_dim, 2 * self.latent_dim)
        self.decoder = mlp(observation_dim + self.latent_dim, hidden_dim, hidden_dim, action_dim)

    def encode(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the latent, each (B, L) float32, from (B, O) and (B, A)."""
        mean, log_std = self.encoder(joined(self, observation, action)).float().chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def decode_raw(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Actions before the tanh.

        Args:
            observation: Shape (B, O).
            latent: Shape (B, L), or (B, N, L) for N actions per observation.

        Returns:
            Shape (B, A) or (B, N, A), float32.
        """
        return self.decoder(joined(self, repeated(observation, latent), latent)).float()

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
