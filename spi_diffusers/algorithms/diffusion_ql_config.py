"""Configuration of Diffusion-QL, as a plain dataclass that imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Literal

from spi_diffusers.algorithms.config import check_noise_schedule
from spi_diffusers.settings import check_range, check_types


@dataclass
class DiffusionQLConfig:
    """Diffusion-QL (Wang et al. 2023); defaults: its paper's for locomotion. It knows no cost.

    Attributes:
        q_weight: Weight eta of the value term; the noise loss has weight 1.
        gamma: Discount factor.
        target_update_rate: Polyak rate tau of the target critic.
        ema_decay: Decay of the noise model's moving average.
        ema_every: Updates between two steps of the moving average.
        ema_start: Updates before which the average is, every `ema_every` updates, the noise model itself.
        learning_rate: Adam's, of both networks.
        max_grad_norm: Clip of the gradient's norm; 0 switches it off.
        hidden_dims: Width of each hidden layer.
        activation: Of both networks; the paper's is "mish".
        time_embed_dim: Size of the diffusion time's embedding (even).
        num_train_timesteps: Number T of diffusion steps.
        beta_min: Start of the VP noise schedule.
        beta_max: End of the VP noise schedule.
        num_candidates: Actions to choose from when acting, by a softmax over their values.
    """

    q_weight: float = 1.0
    gamma: float = 0.99
    target_update_rate: float = 0.005
    ema_decay: float = 0.995
    ema_every: int = 5
    ema_start: int = 1000
    learning_rate: float = 3e-4
    max_grad_norm: float = 10.0
    hidden_dims: list[int] = field(default_factory=lambda: [256, 256, 256])
    activation: Literal["silu", "mish", "gelu", "relu"] = "mish"
    time_embed_dim: int = 16
    num_train_timesteps: int = 5
    beta_min: float = 0.1
    beta_max: float = 10.0
    num_candidates: int = 50

    def __post_init__(self) -> None:
        check_types(self)
        self.hidden_dims = list(self.hidden_dims)
        check_range(self, "target_update_rate", high=1.0, above=True)  # at 0, the target would stay random
        check_range(self, "gamma", high=1.0, below=True)
        check_range(self, "ema_decay", high=1.0)
        check_range(self, "ema_every", "num_candidates", low=1)
        check_range(self, "q_weight", "max_grad_norm", "ema_start")
        check_range(self, "learning_rate", above=True)
        check_noise_schedule(self)
        if self.time_embed_dim < 2 or self.time_embed_dim % 2:
            raise ValueError(f"time_embed_dim must be even and positive, got {self.time_embed_dim}.")
