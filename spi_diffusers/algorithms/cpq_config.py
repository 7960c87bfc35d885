"""Configuration of CPQ, as a plain dataclass that imports nothing heavy."""

from dataclasses import dataclass

from spi_diffusers.algorithms.constrained_config import ConstrainedConfig
from spi_diffusers.settings import check_range


@dataclass
class CPQConfig(ConstrainedConfig):
    """CPQ (Xu, Zhan and Zhu 2022); `num_candidates` is the number of policy actions tested per state.

    Attributes:
        actor_learning_rate: Adam's, of the policy.
        ood_penalty: Learn that actions outside the data are costly, as in the paper. The settings below, the
            VAE's and `num_candidates` are for that alone. Off, as in effect in the benchmark's code; see
            `cpq.py` for what it does.
        alpha_learning_rate: Step of log alpha, the weight on the cost of actions outside the data.
        ood_quantile: Policy actions count as outside the data where their latent diverges from the prior by
            more than this quantile of the recorded actions' does: the paper's bound d; 0.75 in the benchmark.
        ood_cost_scale: What actions outside the data are to cost, in units of the largest discounted cost.
    """

    critic_pairs: int = 1
    soft_clip_weight: float = 1.0
    actor_learning_rate: float = 1e-4
    ood_penalty: bool = False
    alpha_learning_rate: float = 1e-4
    ood_quantile: float = 0.95
    ood_cost_scale: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "actor_learning_rate", "alpha_learning_rate", "ood_cost_scale", above=True)
        check_range(self, "ood_quantile", high=1.0)
