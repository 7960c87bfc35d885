"""Configuration of BEAR-Lag, as a plain dataclass that imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from spi_diffusers.algorithms.lagrangian_config import LagrangianConfig
from spi_diffusers.settings import check_range


@dataclass
class BEARLagConfig(LagrangianConfig):
    """BEAR (Kumar et al. 2019) with a Lagrange multiplier on the cost.

    Attributes:
        kernel: Kernel of the maximum mean discrepancy, "gaussian" or "laplacian".
        mmd_sigma: Width of the kernel (not squared in the exponent).
        mmd_threshold: Largest discrepancy from the data's actions that the policy may have.
        mmd_samples: Actions per state of policy and VAE each that the discrepancy is measured on.
        alpha_learning_rate: Of the discrepancy's multiplier alpha.
        alpha_optimizer: How log alpha climbs: "adam", as in BEAR's code; or "sgd", as in the DSRL
            benchmark's, which takes about ten times as many updates.
        support_updates: Updates at the start that only bring the policy to the data's support, before it
            also climbs the reward's value.
    """

    kernel: Literal["gaussian", "laplacian"] = "gaussian"
    mmd_sigma: float = 50.0
    mmd_threshold: float = 0.05
    mmd_samples: int = 10
    alpha_learning_rate: float = 1e-3
    alpha_optimizer: Literal["adam", "sgd"] = "adam"
    support_updates: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "mmd_sigma", "mmd_threshold", "alpha_learning_rate", above=True)
        check_range(self, "mmd_samples", low=1)
        check_range(self, "support_updates")
