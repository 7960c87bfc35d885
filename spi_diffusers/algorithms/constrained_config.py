"""What the constrained baselines with critics have in common to configure; imports nothing heavy."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class ConstrainedConfig:
    """Settings of a method with critics of reward and cost and an action VAE; defaults: DSRL's benchmark.

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
        self.hidden_dims = list(self.hidden_dims)
        if not self.hidden_dims or min(self.hidden_dims) < 1:
            raise ValueError(f"hidden_dims must be one or more sizes of at least 1, got {self.hidden_dims}.")
        if not 0.0 <= self.gamma < 1.0:
            raise ValueError(f"gamma must lie in [0, 1), got {self.gamma}.")
        self._check_range("target_update_rate", "soft_clip_weight", high=1.0)
        self._check_range("kl_weight")
        self._check_positive("learning_rate", "reward_scale")
        self._check_positive("critic_pairs", "vae_hidden_dim", "num_candidates")

    def _check_range(self, *names: str, low: float = 0.0, high: float = float("inf")) -> None:
        for name in names:
            value = getattr(self, name)
            if not low <= value <= high or value == float("inf"):
                bounds = f"lie in [{low:g}, {high:g}]" if high < float("inf") else f"be at least {low:g}"
                raise ValueError(f"{name} must {bounds} and be finite, got {value}.")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value}.")


def check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError if a field holds none of its choices."""
    assert name in {item.name for item in fields(config)}
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")
