"""Configuration of BC, as a plain dataclass that imports nothing heavy."""

from dataclasses import dataclass, field

from spi_diffusers.settings import check_range, check_types


@dataclass
class BCConfig:
    """Behaviour cloning; defaults: the DSRL benchmark's.

    Attributes:
        hidden_dims: Width of each hidden layer.
        learning_rate: Adam's at the start.
    """

    hidden_dims: list[int] = field(default_factory=lambda: [256, 256])
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        check_types(self)
        self.hidden_dims = list(self.hidden_dims)
        check_range(self, "learning_rate", above=True)
