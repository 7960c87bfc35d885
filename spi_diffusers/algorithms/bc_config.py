"""Configuration of BC, as a plain dataclass that imports nothing heavy."""

from dataclasses import dataclass, field


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
        if not self.hidden_dims or min(self.hidden_dims) < 1:
            raise ValueError(f"hidden_dims must be one or more sizes of at least 1, got {self.hidden_dims}.")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}.")
