"""Training of the action VAE, which the batch-constrained algorithms share."""

from torch import Tensor
from torch.nn import functional

from spi_diffusers.algorithms.base import Batch
from spi_diffusers.algorithms.learner import Learner
from spi_diffusers.models.action_vae import ActionVAE


def latent_divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) = -1/2 (1 + log std^2 - mean^2 - std^2), of each element."""
    return -0.5 * (1.0 + 2.0 * log_std - mean.square() - (2.0 * log_std).exp())


def vae_loss(
    reconstruction: Tensor, action: Tensor, mean: Tensor, log_std: Tensor, kl_weight: float
) -> tuple[Tensor, Tensor]:
    """Negative evidence lower bound of the action VAE, in its two parts.

    The reconstruction part is the mean over batch and action dimensions of (a_hat - a)^2. The other is
    `kl_weight` times the mean over batch and latent dimensions of `latent_divergence`.

    Args:
        reconstruction: Shape (B, A).
        action: Shape (B, A).
        mean: Mean of the latent, shape (B, L).
        log_std: Log standard deviation of the latent, shape (B, L).
        kl_weight: 0.5 in BCQ.

    Returns:
        Reconstruction loss and weighted divergence, scalars; their sum is to be minimised.
    """
    divergence = latent_divergence(mean, log_std).mean()
    return functional.mse_loss(reconstruction, action), kl_weight * divergence


def update_vae(
    learner: Learner[ActionVAE], batch: Batch, noise: Tensor, kl_weight: float
) -> dict[str, Tensor]:
    """One step of the VAE on a batch.

    Args:
        learner: The VAE in training.
        batch: Its observations and actions are used.
        noise: Standard normal, shape (B, L), for the latents.
        kl_weight: As in `vae_loss`.

    Returns:
        Both parts of the loss, detached.
    """
    reconstruction, mean, log_std = learner.module(batch.observation, batch.action, noise)
    error, divergence = vae_loss(reconstruction, batch.action, mean, log_std, kl_weight)
    learner.step(error + divergence)
    return {"vae/reconstruction_loss": error.detach(), "vae/divergence": divergence.detach()}
