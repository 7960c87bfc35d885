"""Settings of a collection: defaults here, what a task needs differently in presets/<task>.yaml."""

import math
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

import yaml

from spi_diffusers.config.validation import check_range, check_types
from spi_diffusers.data.tasks import Task, get_task

_NOT_NEGATIVE = (
    *("initial_multiplier", "multiplier_rate", "max_multiplier"),
    *("learning_rate", "entropy_weight", "scripted_episodes", "speed_penalty"),
)


@dataclass(frozen=True)
class CollectConfig:
    """Settings of a collection.

    Attributes:
        steps: Environment steps of each behaviour-policy run, rounded up to full rounds: every environment
            plays the task's longest episode in a round.
        runs: Number of behaviour-policy runs with different seeds.
        cost_targets: Cost returns that the Lagrangian budgets aim at.
        penalties: Fixed multipliers, a budget each; 0 is the unconstrained one.
        speed_targets: Shares of the speed at which a step of a Velocity task begins to cost, a budget each.
            Such a policy learns not from the cost, which is 0 or 1, but from its speed beyond the target:
            that earns nothing and is penalised.
        speed_penalty: Fixed multiplier of these budgets.
        initial_multiplier: Multiplier of the Lagrangian budgets at the start.
        multiplier_rate: Step size of the multipliers, which move once a round.
        max_multiplier: Largest multiplier.
        num_envs: Environments stepped together.
        num_probes: How many of them play with little noise, for the dataset only.
        segment_steps: Steps of every environment between two PPO updates.
        epochs: Passes over a segment in an update.
        minibatch_size: Steps per gradient step.
        learning_rate: Adam's, falling to a tenth of it over the run.
        gamma: Discount factor.
        entropy_weight: Weight of the entropy bonus.
        initial_log_std: Logarithm of the policy's deviation at the start, actions being in [-1, 1].
        hidden_dims: Width of each hidden layer of policy and values.
        scripted_episodes: Episodes of the scripted driver (CarCircle only), rounded up to full rounds of 20.
        max_cost_return: Episodes that cost more are left out; None: the task's reference maximum.
    """

    steps: int = 1_000_000
    runs: int = 1
    cost_targets: tuple[float, ...] = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)
    penalties: tuple[float, ...] = (0.0, 0.3, 1.0)
    speed_targets: tuple[float, ...] = ()
    speed_penalty: float = 0.3
    initial_multiplier: float = 0.5
    multiplier_rate: float = 0.1
    max_multiplier: float = 5.0
    num_envs: int = 16
    num_probes: int = 2
    segment_steps: int = 100
    epochs: int = 8
    minibatch_size: int = 400
    learning_rate: float = 5.0e-4
    gamma: float = 0.99
    entropy_weight: float = 0.001
    initial_log_std: float = -0.5
    hidden_dims: tuple[int, ...] = (64, 64)
    scripted_episodes: int = 0
    max_cost_return: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        counts = ("steps", "runs", "num_envs", "segment_steps", "epochs", "minibatch_size")
        check_range(self, *counts, low=1)
        # Advantages are standardised, for which one step alone does not do.
        if not 0 <= self.num_probes <= self.num_envs - 2:
            raise ValueError(
                f"num_probes must leave at least two of num_envs={self.num_envs} to learn from, got "
                f"{self.num_probes}"
            )
        if not self.num_budgets:
            raise ValueError("cost_targets, penalties and speed_targets are all empty: name a budget")
        if not self.hidden_dims or not min(self.hidden_dims) >= 1:
            raise ValueError(f"hidden_dims must be at least one width of at least 1, got {self.hidden_dims}")
        not_negative: dict[str, tuple[float, ...]] = {
            "cost_targets": self.cost_targets,
            "penalties": self.penalties,
            "speed_targets": self.speed_targets,
            **{name: (getattr(self, name),) for name in _NOT_NEGATIVE},
            "max_cost_return": () if self.max_cost_return is None else (self.max_cost_return,),
        }
        for name, values in not_negative.items():
            for value in values:
                if not (math.isfinite(value) and value >= 0):
                    raise ValueError(f"{name} must be finite and not negative, got {value}")
        if not math.isfinite(self.initial_log_std):
            raise ValueError(f"initial_log_std must be finite, got {self.initial_log_std}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma must be between 0 and 1, got {self.gamma}")

    @property
    def num_budgets(self) -> int:
        """Number of budgets that the behaviour policy is conditioned on."""
        return len(self.cost_targets) + len(self.penalties) + len(self.speed_targets)

    @property
    def num_parts(self) -> int:
        """Number of parts that can be played side by side: the runs, and the scripted driver."""
        return self.runs + (self.scripted_episodes > 0)


def load_collect_config(task: str | Task, **overrides: Any) -> CollectConfig:
    """The preset of a task: the defaults, changed by `presets/<task>.yaml` where there is one.

    Args:
        task: a task or its name.
        overrides: values that replace the preset's; None leaves a value as it is.

    Returns:
        The settings.

    Raises:
        UnknownTaskError: no such task.
        ValueError: a setting does not exist or is out of range.
    """
    folder = resources.files("spi_diffusers.collection") / "presets"
    preset = folder / f"{get_task(task).short_name}.yaml"
    values = yaml.safe_load(preset.read_text(encoding="utf-8")) if preset.is_file() else {}
    values |= {name: value for name, value in overrides.items() if value is not None}
    known = {field.name for field in fields(CollectConfig)}
    if unknown := values.keys() - known:
        raise ValueError(
            f"unknown setting {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return CollectConfig(**settings)
