"""The baselines' policies: each has `act(observation, generator)`, with actions in [-1, 1]."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from spi_diffusers.models.action_vae import ActionVAE
from spi_diffusers.models.critics import TwinCritic
from spi_diffusers.models.mlp import joined, mlp, repeated
from spi_diffusers.models.noise_model import MLPNoiseModel

SELECTIONS = ("reward", "lagrangian", "sample")
#: Bounds of a policy's log standard deviation (Haarnoja et al. 2018).
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class _Actor(ModelMixin, ConfigMixin):
    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, but from safetensors only: it would fall back to a pickle."""
        return super().from_pretrained(*args, **{**kwargs, "use_safetensors": True})


class DeterministicActor(_Actor):
    """BC's policy: an MLP that maps an observation to one action, squashed by tanh.

    Args:
        observation_dim: Size O of a (normalized) observation.
        action_dim: Size A of an action.
        hidden_dims: Width of each hidden layer.

    Raises:
        ValueError: For sizes below one.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, observation_dim: int, action_dim: int, hidden_dims: Sequence[int] = (256, 256)):
        super().__init__()
        self.net = mlp(observation_dim, *hidden_dims, action_dim)

    def forward(self, observation: Tensor) -> Tensor:
        """Actions in [-1, 1], shape (B, A), float32, for normalized observations (B, O)."""
        return self.net(joined(self.net, observation)).tanh().float()

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The same as `forward`; nothing is random."""
        return self(observation)


class GaussianActor(_Actor):
    """A Gaussian squashed by tanh: an MLP gives mean and log standard deviation before the tanh.

    Args:
        observation_dim: Size O of a (normalized) observation.
        action_dim: Size A of an action.
        hidden_dims: Width of each hidden layer.

    Raises:
        ValueError: For sizes below one.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(self, observation_dim: int, action_dim: int, hidden_dims: Sequence[int] = (256, 256)):
        super().__init__()
        self.net = mlp(observation_dim, *hidden_dims, 2 * action_dim)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the tanh, each (B, A) float32, from (B, O)."""
        mean, log_std = self.net(joined(self.net, observation)).float().chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def draw_raw(self, observation: Tensor, noise: Tensor) -> Tensor:
        """N actions per observation before the tanh, (B, N, A), from standard normal noise of that shape."""
        mean, log_std = self(observation)
        return mean.unsqueeze(1) + log_std.exp().unsqueeze(1) * noise

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The squashed mean, in [-1, 1], shape (B, A): when it acts, the policy is not random."""
        mean, _ = self(observation)
        return mean.tanh()


class PerturbationModel(nn.Module):
    """clip(a + Phi * tanh(xi(s, a)), -1, 1): an action moved by at most Phi per dimension, to a higher value.

    Source: Fujimoto, Meger and Precup (2019), section 4.1.

    Args:
        observation_dim: Size O of a (normalized) observation.
        action_dim: Size A of an action.
        hidden_dims: Width of each hidden layer.
        max_perturbation: Phi, in units of the action range's half width.

    Raises:
        ValueError: For sizes below one, or a negative Phi.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        hidden_dims: Sequence[int] = (256, 256),
        max_perturbation: float = 0.05,
    ):
        super().__init__()
        if not max_perturbation >= 0:
            raise ValueError(f"max_perturbation must not be negative, got {max_perturbation}.")
        self.max_perturbation = max_perturbation
        self.net = mlp(observation_dim + action_dim, *hidden_dims, action_dim)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Perturbed actions in [-1, 1].

        Args:
            observation: Shape (B, O).
            action: In [-1, 1], shape (B, A), or (B, N, A) for N actions per observation.

        Returns:
            Of the actions' shape, float32.
        """
        inputs = joined(self, repeated(observation, action), action)
        shift = self.max_perturbation * self.net(inputs).float().tanh()
        return (action + shift).clamp(-1.0, 1.0)


class BatchConstrainedActor(_Actor):
    """BCQ-Lag's policy: draws candidates from an action VAE, perturbs them, and acts with the best one.

    Args:
        observation_dim: Size O of a (normalized) observation.
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
        self.vae = ActionVAE(observation_dim, action_dim, vae_hidden_dim)
        self.perturbation = PerturbationModel(observation_dim, action_dim, hidden_dims, max_perturbation)
        kept = {"reward": (critic_pairs, 0), "lagrangian": (critic_pairs, critic_pairs), "sample": (0, 0)}
        reward, cost = (
            nn.ModuleList(
                TwinCritic(
                    observation_dim=observation_dim,
                    action_dim=action_dim,
                    hidden_dims=hidden_dims,
                    activation="relu",
                    use_safety_weight=False,
                )
                for _ in range(number)
            )
            for number in kept[selection]
        )
        self.reward_critics, self.cost_critics = reward, cost
        #: The Lagrange multiplier lambda at the end of training.
        self.register_buffer("multiplier", torch.zeros((), dtype=torch.float32))

    def forward(self, observation: Tensor, latent: Tensor) -> Tensor:
        """The action for given latents.

        Args:
            observation: Normalized, shape (B, O).
            latent: Standard normal, shape (B, N, L).

        Returns:
            Actions in [-1, 1], shape (B, A).
        """
        clip = self.config.latent_clip
        candidates = self.perturbation(observation, self.vae.decode(observation, latent.clamp(-clip, clip)))
        if self.config.selection == "sample" or candidates.shape[1] == 1:
            return candidates[:, 0]
        size, number, _ = candidates.shape
        states, pairs = observation.repeat_interleave(number, dim=0), candidates.flatten(0, 1)

        def values(critics: nn.ModuleList) -> Tensor:  # every twin's, (2 P, B N)
            return torch.cat([critic(states, pairs).values for critic in critics])

        score = values(self.reward_critics).amin(dim=0)
        if self.config.selection == "lagrangian":
            score = score - self.multiplier * values(self.cost_critics).amax(dim=0)
        chosen = score.view(size, number).argmax(dim=1)
        return candidates[torch.arange(size, device=chosen.device), chosen]

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions in [-1, 1], shape (B, A), for normalized observations (B, O)."""
        shape = (len(observation), self.config.num_candidates, self.vae.latent_dim)
        device = observation.device
        return self(observation, randn_tensor(shape, generator, device, torch.float32))


class DiffusionActor(_Actor):
    """Diffusion-QL's policy: denoises candidates, and draws one by a softmax over its Q^r (the lower twin).

    Args:
        observation_dim: Size O of a (normalized) observation.
        action_dim: Size A of an action.
        betas: Noise schedule, one number per diffusion step.
        hidden_dims: Width of each hidden layer, of noise model and critic.
        activation: Name of a diffusers activation.
        time_embed_dim: Size of the diffusion time's embedding.
        num_candidates: Number N of candidate actions.

    Raises:
        ValueError: For sizes below one, or betas outside (0, 1).
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        betas: Sequence[float],
        hidden_dims: Sequence[int] = (256, 256, 256),
        activation: str = "mish",
        time_embed_dim: int = 16,
        num_candidates: int = 50,
    ):
        super().__init__()
        if num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got {num_candidates}.")
        if not betas or not all(0 < beta < 1 for beta in betas):
            raise ValueError(f"betas must be a list of at least one number in (0, 1), got {list(betas)}.")
        shared = {
            "observation_dim": observation_dim,
            "action_dim": action_dim,
            "hidden_dims": list(hidden_dims),
            "activation": activation,
            "use_safety_weight": False,
        }
        self.noise_model = MLPNoiseModel(**shared, time_embed_dim=time_embed_dim)
        self.critic = TwinCritic(**shared)
        with torch.device("cpu"):  # a schedule has values even where the weights have none (device "meta")
            scheduler = DDPMScheduler(
                num_train_timesteps=len(betas),
                trained_betas=list(betas),
                variance_type="fixed_small",
                timestep_spacing="trailing",
            )
            coefficients = MLPNoiseModel.ddpm_coefficients(scheduler)
        #: What denoising multiplies with; follows from the schedule, so it is not saved.
        self.register_buffer("coefficients", coefficients, persistent=False)
        self.alpha_bars = scheduler.alphas_cumprod

    def choose(self, values: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Index of the candidate to act with, drawn with probability softmax(Q^r); (B, N) -> (B,)."""
        # By diffusers' source of randomness, whose generator may be of another device than the values.
        normal = randn_tensor((len(values), 1), generator, values.device, torch.float32)
        below = values.softmax(dim=1).cumsum(dim=1) < torch.special.ndtr(normal)
        return below.sum(dim=1).clamp_max(values.shape[1] - 1)

    def forward(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Candidate actions (B, N, A) and their Q^r (B, N) for normalized observations (B, O).

        Args:
            observation: Shape (B, O).
            noise: Standard normal noise, shape (steps, B * N, A).
        """
        size, number = len(observation), self.config.num_candidates
        states = observation.repeat_interleave(number, dim=0)
        candidates = self.noise_model.denoise(states, None, self.coefficients, noise)
        (values,) = self.critic(states, candidates, return_dict=False)
        return candidates.view(size, number, -1), values.amin(dim=0).view(size, number)

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions in [-1, 1], shape (B, A), for normalized observations (B, O)."""
        size, number = len(observation), self.config.num_candidates
        shape = (len(self.coefficients), size * number, self.config.action_dim)
        noise = randn_tensor(shape, generator, observation.device, torch.float32)
        candidates, values = self(observation, noise)
        chosen = self.choose(values, generator)
        return candidates[torch.arange(size, device=chosen.device), chosen]
