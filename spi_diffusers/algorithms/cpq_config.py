"""Configuration of CPQ, as a plain dataclass that imports nothing heavy."""

from dataclasses import dataclass

from spi_diffusers.algorithms.constrained_config import ConstrainedConfig


@dataclass
class CPQConfig(ConstrainedConfig):
    """CPQ (Xu, Zhan and Zhu 2022); `num_candidates` is the number of policy actions tested per state.

    Attributes:
        actor_learning_rate: Adam's, of the policy.
        alpha_learning_rate: Step of log alpha, the weight on the cost of actions outside the data.
        ood_quantile: Policy actions whose latent diverges from the prior by at least this quantile of the
            batch count as outside the data.
        ood_cost_scale: What actions outside the data are to cost, in units of the largest discounted cost.
    """

    critic_pairs: int = 1
    soft_clip_weight: float = 1.0
    actor_learning_rate: float = 1e-4
    alpha_learning_rate: float = 1e-4
    ood_quantile: float = 0.75
    ood_cost_scale: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("actor_learning_rate", "alpha_learning_rate", "ood_cost_scale")
        if not 0.0 <= self.ood_quantile < 1.0:
            raise ValueError(f"ood_quantile must lie in [0, 1), got {self.ood_quantile}.")
