"""Configuration of Diffusion-QL, as a plain dataclass that imports nothing heavy."""

from dataclasses import dataclass, field


@dataclass
class DiffusionQLConfig:
    """Diffusion-QL (Wang et al. 2023); defaults: its paper's for locomotion. It knows no cost.

    Attributes:
        q_weight: Weight eta of the value term; the noise loss has weight 1.
        gamma: Discount factor.
        target_update_rate: Polyak rate tau of the target critic.
        ema_decay: Decay of the noise model's moving average.
        ema_every: Updates between two steps of the moving average.
        ema_start: Updates before which the average is the noise model itself.
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
    activation: str = "mish"
    time_embed_dim: int = 16
    num_train_timesteps: int = 5
    beta_min: float = 0.1
    beta_max: float = 10.0
    num_candidates: int = 50

    def __post_init__(self) -> None:
        for name in ("target_update_rate", "ema_decay", "gamma"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        if self.gamma == 1.0:
            raise ValueError("gamma must be below 1: the critic's values would not be bounded.")
        for name in ("ema_every", "num_train_timesteps", "num_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("q_weight", "max_grad_norm", "ema_start"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}.")
        if not 0 < self.beta_min < self.beta_max < float("inf"):
            raise ValueError(f"needs 0 < beta_min < beta_max, got {self.beta_min} and {self.beta_max}.")
        if self.activation not in ("silu", "mish", "gelu", "relu"):
            raise ValueError(f"activation must be silu, mish, gelu or relu, got {self.activation!r}.")
        if not self.hidden_dims or min(self.hidden_dims) < 1 or self.time_embed_dim % 2:
            raise ValueError(
                "hidden_dims must be one or more sizes of at least 1 and time_embed_dim even, got "
                f"{self.hidden_dims} and {self.time_embed_dim}."
            )
