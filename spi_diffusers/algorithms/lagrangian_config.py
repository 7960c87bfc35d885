"""What BCQ-Lag and BEAR-Lag have in common to configure, as a plain dataclass that imports nothing heavy."""

from dataclasses import dataclass

from spi_diffusers.algorithms.constrained_config import ConstrainedConfig
from spi_diffusers.settings import check_range


@dataclass
class LagrangianConfig(ConstrainedConfig):
    """Settings of a batch-constrained method with a Lagrange multiplier.

    Defaults are the DSRL benchmark's, but for `benchmark_targets` and where a method's own settings say so.

    Attributes:
        latent_clip: Latents are drawn from N(0, I) and clipped to +- this, which keeps to likely actions.
        proportional: K_P of the multiplier's PID controller; the multiplier stands against scaled rewards.
        integral: K_I of the multiplier's PID controller.
        derivative: K_D of the multiplier's PID controller.
    """

    latent_clip: float = 0.5
    proportional: float = 0.1
    integral: float = 0.003
    derivative: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "proportional", "integral", "derivative")
        check_range(self, "latent_clip", above=True)
