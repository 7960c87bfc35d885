"""BCQ-Lag's policy: candidate actions like those in the data, perturbed a little, one of them chosen."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from spi_diffusers.models.action_vae import ActionVAE
from spi_diffusers.models.critics import TwinCritic
from spi_diffusers.models.perturbation_model import PerturbationModel

SELECTIONS = ("reward", "lagrangian", "sample")


class BatchConstrainedActor(ModelMixin, ConfigMixin):
    """Draws candidates from an action VAE, perturbs them, and acts with the best by its critics.

    Args:
        observation_dim: Size O of a (normalised) observation.
        action_dim: Size A of an action.
        hidden_dims: Width of each hidden layer of perturbation model and critics.
        vae_hidden_dim: Width of the VAE's hidden layers.
        max_perturbation: Largest perturbation Phi per action dimension.
        num_candidates: Number N of candidate actions.
        latent_clip: Latents are clipped to +- this.
        critic_pairs: Pairs of twin critics, for the reward and for the cost each.
        selection: Which candidate acts. "reward": the highest Q^r (lowest critic), as in BCQ; "lagrangian":
            the highest Q^r - lambda Q^c (highest cost critic); "sample": a random one, no critic is kept.

    Raises:
        ValueError: For sizes below one, an unknown selection, or a clip that is not positive.
    """

    config_name = "config.json"
    multiplier: Tensor

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (256, 256),
        vae_hidden_dim: int = 400,
        max_perturbation: float = 0.05,
        num_candidates: int = 10,
        latent_clip: float = 0.5,
        critic_pairs: int = 2,
        selection: str = "reward",
    ):
        super().__init__()
        if selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}; got {selection!r}.")
        if not 0 < latent_clip < float("inf"):
            raise ValueError(f"latent_clip must be positive and finite, got {latent_clip!r}.")
        if min(num_candidates, critic_pairs) < 1:
            raise ValueError(
                "num_candidates and critic_pairs must be at least 1, got "
                f"{num_candidates} and {critic_pairs}."
            )
        sizes = {"observation_dim": observation_dim, "action_dim": action_dim}
        self.vae = ActionVAE(**sizes, hidden_dim=vae_hidden_dim)
        self.perturbation = PerturbationModel(
            **sizes, hidden_dims=hidden_dims, max_perturbation=max_perturbation
        )
        kept = {"reward": (critic_pairs, 0), "lagrangian": (critic_pairs, critic_pairs), "sample": (0, 0)}
        reward, cost = (
            nn.ModuleList(
                TwinCritic(**sizes, hidden_dims=hidden_dims, activation="relu", use_safety_weight=False)
                for _ in range(number)
            )
            for number in kept[selection]
        )
        self.reward_critics, self.cost_critics = reward, cost
        #: The Lagrange multiplier lambda at the end of training.
        self.register_buffer("multiplier", torch.zeros(()))

    def forward(self, observation: Tensor, latent: Tensor) -> Tensor:
        """The action for given latents.

        Args:
            observation: Normalised, shape (B, O).
            latent: Standard normal, shape (B, N, L).

        Returns:
            Actions in [-1, 1], shape (B, A).
        """
        clip = self.config.latent_clip
        candidates = self.perturbation(observation, self.vae.decode(observation, latent.clamp(-clip, clip)))
        if self.config.selection == "sample" or candidates.shape[1] == 1:
            return candidates[:, 0]
        size, number, _ = candidates.shape
        repeated = observation.repeat_interleave(number, dim=0)
        pairs = candidates.flatten(0, 1)
        score = _all_values(self.reward_critics, repeated, pairs).amin(dim=0)
        if self.config.selection == "lagrangian":
            cost = _all_values(self.cost_critics, repeated, pairs).amax(dim=0)
            score = score - self.multiplier * cost
        chosen = score.view(size, number).argmax(dim=1)
        return candidates[torch.arange(size, device=chosen.device), chosen]

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions in [-1, 1], shape (B, A), for normalised observations (B, O)."""
        shape = (len(observation), self.config.num_candidates, self.vae.latent_dim)
        return self(observation, randn_tensor(shape, generator=generator, device=observation.device))


def _all_values(critics: nn.ModuleList, observation: Tensor, action: Tensor) -> Tensor:
    """Every twin's values, shape (2 P, B)."""
    return torch.cat([critic(observation, action).values[..., 0] for critic in critics])
