"""Configuration of BCQ-Lag, as a plain dataclass that imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from spi_diffusers.algorithms.lagrangian_config import LagrangianConfig
from spi_diffusers.settings import check_range


@dataclass
class BCQLagConfig(LagrangianConfig):
    """BCQ (Fujimoto et al. 2019) with a Lagrange multiplier on the cost.

    The multiplier follows the cost of the candidate that acts, in the next states of the batch, or in a start
    state where an episode has ended. With "sample" or `benchmark_targets` it follows that of a perturbed
    action in the batch's own states.

    Attributes:
        max_perturbation: Phi, the largest change of a candidate action per dimension.
        selection: Which candidate acts. "reward": the best by Q^r, as in BCQ; only the perturbation looks at
            the cost then, which often is too little to keep a limit. "lagrangian": the best by Q^r - lambda
            Q^c, so that the constraint has a say in the choice as well. "sample": a random one, as the DSRL
            benchmark's code does.
    """

    max_perturbation: float = 0.05
    selection: Literal["reward", "lagrangian", "sample"] = "reward"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "max_perturbation")
