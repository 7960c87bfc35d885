"""Training runs that diverged: they have no figures, and must not vanish from what is averaged."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from spi_diffusers.data.tasks import TASKS
from spi_diffusers.evaluation.metrics import EvaluationEntry, check_cost_limit

DivergedKey = tuple[str, str, float, int]


@dataclass(frozen=True)
class DivergedRun:
    """A training run whose loss or weights were no longer finite.

    Attributes:
        task: DSRL's task name.
        algorithm: Name of the algorithm.
        cost_limit: Cost limit that it was trained for; None if it was for none.
        train_seed: Seed of the run.
        message: What training said.
    """

    task: str
    algorithm: str
    cost_limit: float | None
    train_seed: int
    message: str

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"field 'task' must be the full name of a DSRL task, got {self.task!r}")
        for name in ("algorithm", "message"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"field {name!r} must be a non-empty string, got {getattr(self, name)!r}")
        if self.cost_limit is not None:
            object.__setattr__(self, "cost_limit", check_cost_limit(self.cost_limit))
        if not isinstance(self.train_seed, int) or isinstance(self.train_seed, bool) or self.train_seed < 0:
            raise ValueError(f"field 'train_seed' must be an integer of at least 0, got {self.train_seed!r}")

    @classmethod
    def from_dict(cls, values: Any) -> "DivergedRun":
        """Make one from what `to_dict` gave.

        Raises:
            ValueError: Not a mapping with exactly these fields, or a value is of the wrong kind.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != known:
            names = ", ".join(sorted(known))
            raise ValueError(f"a diverged run must have the fields {names}, got {values!r}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def key(self) -> DivergedKey:
        """What identifies it; sorting by it gives the order of results files."""
        limit = -1.0 if self.cost_limit is None else self.cost_limit
        return (self.task, self.algorithm, limit, self.train_seed)

    def concerns(self, entry: EvaluationEntry) -> bool:
        """Whether an entry is of this very run, which then did not diverge after all."""
        same = (entry.task, entry.algorithm, entry.train_seed) == (self.task, self.algorithm, self.train_seed)
        return same and self.cost_limit in (None, entry.cost_limit)
