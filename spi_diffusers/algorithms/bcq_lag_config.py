"""Configuration of BCQ-Lag, as a plain dataclass that imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from spi_diffusers.algorithms.constrained_config import check_choice
from spi_diffusers.algorithms.lagrangian_config import LagrangianConfig


@dataclass
class BCQLagConfig(LagrangianConfig):
    """BCQ (Fujimoto et al. 2019) with a Lagrange multiplier on the cost.

    Attributes:
        max_perturbation: Phi, the largest change of a candidate action per dimension.
        selection: Which candidate acts. "reward": the best by Q^r, as in BCQ; "lagrangian": the best by
            Q^r - lambda Q^c, so that the constraint has a say in the choice as well; "sample": a random one,
            as the DSRL benchmark's code does.
    """

    max_perturbation: float = 0.05
    selection: Literal["reward", "lagrangian", "sample"] = "reward"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("max_perturbation")
        check_choice(self, "selection", ("reward", "lagrangian", "sample"))
