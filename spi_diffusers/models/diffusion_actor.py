"""Diffusion-QL's policy: candidate actions from a noise model, one of them drawn by its value."""

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from spi_diffusers.models.critics import TwinCritic
from spi_diffusers.models.noise_model import MLPNoiseModel


class DiffusionActor(ModelMixin, ConfigMixin):
    """Draws candidates by denoising, and acts with one, drawn by a softmax over its Q^r (the lower twin).

    Args:
        observation_dim: Size O of a (normalised) observation.
        action_dim: Size A of an action.
        betas: Noise schedule, one number per diffusion step.
        hidden_dims: Width of each hidden layer, of noise model and critic.
        activation: Name of a diffusers activation.
        time_embed_dim: Size of the diffusion time's embedding.
        num_candidates: Number N of candidate actions.
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
        normal = randn_tensor((len(values), 1), generator=generator, device=values.device)
        below = values.softmax(dim=1).cumsum(dim=1) < torch.special.ndtr(normal)
        return below.sum(dim=1).clamp_max(values.shape[1] - 1)

    def forward(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Candidate actions (B, N, A) and their Q^r (B, N) for normalised observations (B, O).

        Args:
            observation: Shape (B, O).
            noise: Standard normal noise, shape (steps, B * N, A).
        """
        size, number = len(observation), self.config.num_candidates
        repeated = observation.repeat_interleave(number, dim=0)
        candidates = self.noise_model.denoise(repeated, None, self.coefficients, noise)
        (values,) = self.critic(repeated, candidates, return_dict=False)
        return candidates.view(size, number, -1), values[..., 0].amin(dim=0).view(size, number)

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions in [-1, 1], shape (B, A), for normalised observations (B, O)."""
        size, number = len(observation), self.config.num_candidates
        shape = (len(self.coefficients), size * number, self.config.action_dim)
        noise = randn_tensor(shape, generator=generator, device=observation.device)
        candidates, values = self(observation, noise)
        chosen = self.choose(values, generator)
        return candidates[torch.arange(size, device=chosen.device), chosen]
