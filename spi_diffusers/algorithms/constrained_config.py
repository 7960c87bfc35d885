"""What the constrained baselines with critics have in common to configure; imports nothing heavy."""

from dataclasses import dataclass, field

from spi_diffusers.settings import check_range, check_types


@dataclass
class ConstrainedConfig:
    """Settings of a method with critics of reward and cost and an action VAE.

    Defaults are the DSRL benchmark's, but for `benchmark_targets` and where a method's own settings say so.

    Attributes:
        gamma: Discount factor of both critics.
        target_update_rate: Polyak rate tau of all targets.
        learning_rate: Adam's, of every network that has none of its own.
        hidden_dims: Width of each hidden layer of actor and critics.
        critic_pairs: Pairs of twin critics, for the reward and for the cost each.
        vae_hidden_dim: Width of the action VAE's hidden layers.
        kl_weight: Weight of the divergence in the VAE's loss.
        num_candidates: Actions per state wherever several are drawn.
        soft_clip_weight: Weight of the worse twin in a value, the better one has the rest.
        reward_scale: Factor on rewards before they are learned.
        benchmark_targets: Learn values as the DSRL benchmark's code does, for comparison: a time limit ends
            the reward; nothing ends the cost, yet its threshold is that of a finite episode; the cost of a
            next state is that of its costliest candidate; and the lower cost of twins is preferred.
    """

    gamma: float = 0.99
    target_update_rate: float = 0.005
    learning_rate: float = 1e-3
    hidden_dims: list[int] = field(default_factory=lambda: [256, 256])
    critic_pairs: int = 2
    vae_hidden_dim: int = 400
    kl_weight: float = 0.5
    num_candidates: int = 10
    soft_clip_weight: float = 0.75
    reward_scale: float = 0.1
    benchmark_targets: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        self.hidden_dims = list(self.hidden_dims)
        check_range(self, "gamma", high=1.0, below=True)
        check_range(self, "target_update_rate", high=1.0, above=True)  # at 0, targets would stay random
        check_range(self, "soft_clip_weight", high=1.0)
        check_range(self, "kl_weight")
        check_range(self, "learning_rate", "reward_scale", above=True)
        check_range(self, "critic_pairs", "vae_hidden_dim", "num_candidates", low=1)
