"""What decides a collection: how its behavior policies are trained, and the whole of it as one spec.

The defaults are here; `presets/<task>.yaml` holds what a task needs differently.
"""

import json
import os
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from spi_diffusers.config.validation import (
    Count,
    Flag,
    NotNegative,
    Number,
    Positive,
    ShareBetween,
    Whole,
    settings,
)
from spi_diffusers.data.tasks import Task, get_task
from spi_diffusers.documents import parse_yaml
from spi_diffusers.files import local_path

MAX_BYTES = 7_500_000
_WORK_FOLDER = ".collect"
_FORMAT_VERSION = 1


class CollectionError(ValueError):
    """A collection cannot start, go on or be written; the message says why and what to do."""


@settings(frozen=True)
class CollectConfig:
    """How behavior policies are trained and which of their episodes are kept.

    Attributes:
        steps: Environment steps of each behavior-policy run, rounded up to full rounds: every environment
            plays the task's longest episode in a round.
        runs: Number of behavior-policy runs with different seeds.
        cost_targets: Cost returns that the Lagrangian budgets aim at.
        penalties: Fixed multipliers, a budget each; 0 is the unconstrained one.
        speed_targets: Shares of the speed at which a step of a Velocity task begins to cost, a budget each.
            Such a policy learns not from the cost, which is 0 or 1, but from its speed beyond the target:
            that earns nothing and is penalized.
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

    Raises:
        ConfigError: A setting has another type or is out of range.
    """

    steps: Count = 1_000_000
    runs: Count = 1
    cost_targets: tuple[NotNegative, ...] = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)
    penalties: tuple[NotNegative, ...] = (0.0, 0.3, 1.0)
    speed_targets: tuple[NotNegative, ...] = ()
    speed_penalty: NotNegative = 0.3
    initial_multiplier: NotNegative = 0.5
    multiplier_rate: NotNegative = 0.1
    max_multiplier: NotNegative = 5.0
    num_envs: Count = 16
    num_probes: Whole = 2
    segment_steps: Count = 100
    epochs: Count = 8
    minibatch_size: Count = 400
    learning_rate: Positive = 5.0e-4
    gamma: ShareBetween = 0.99
    entropy_weight: NotNegative = 0.001
    initial_log_std: Number = -0.5
    hidden_dims: Annotated[tuple[Count, ...], Field(min_length=1)] = (64, 64)
    scripted_episodes: Whole = 0
    max_cost_return: NotNegative | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Advantages are standardized, which needs two steps at least.
        if self.num_probes > self.num_envs - 2:
            raise ValueError(
                f"num_probes must leave at least two of num_envs={self.num_envs} to learn from, got "
                f"{self.num_probes}"
            )
        if not self.num_budgets:
            raise ValueError("cost_targets, penalties and speed_targets are all empty: name a budget")
        return self

    @property
    def num_budgets(self) -> int:
        """Number of budgets that the behavior policy is conditioned on."""
        return len(self.cost_targets) + len(self.penalties) + len(self.speed_targets)

    @property
    def num_parts(self) -> int:
        """Number of parts that can be played side by side: the runs, and the scripted driver."""
        return self.runs + (self.scripted_episodes > 0)


def load_collect_config(task: str | Task, **overrides: Any) -> CollectConfig:
    """The preset of a task: the defaults, changed by `presets/<task>.yaml` where there is one.

    Args:
        task: A task or its name.
        overrides: Values that replace the preset's; None leaves a value as it is.

    Returns:
        The settings.

    Raises:
        UnknownTaskError: No such task.
        ConfigError: A setting does not exist or is out of range.
    """
    folder = resources.files("spi_diffusers.collection") / "presets"
    preset = folder / f"{get_task(task).short_name}.yaml"
    values = parse_yaml(preset.read_bytes()) if preset.is_file() else {}
    values |= {name: value for name, value in overrides.items() if value is not None}
    return CollectConfig(**values)


def _folder(path: str | os.PathLike[str]) -> Path:
    if not os.fspath(path):  # an unset variable of a shell; it would be the current folder
        raise ValueError("the folder for the dataset has an empty name; '.' is the current folder")
    return local_path(path)


@settings(frozen=True)
class CollectionSpec:
    """One dataset to collect: the task, how, and where it is written.

    Attributes:
        task: The task, or its name.
        folder: The dataset's folder; it gets one config, named after the task.
        config: How to collect.
        seed: Decides everything, at least 0.
        max_bytes: Largest size of the config's folder; episodes are thinned to fit.
        full_precision: Keep all bits of observations and actions, instead of 12 significant ones.
        overwrite: Replace the config if the folder has it.
        keep_work: Leave the collected episodes in the work folder, e.g. to thin them again.
        checkpoint_every: Steps of a part after which its episodes and state are saved, at the end of a
            round; the result does not depend on it.
        description: More words for the card (Markdown); they come before ours.

    Raises:
        UnknownTaskError: No such task.
        ConfigError: A value has another type or is out of range.
    """

    task: Annotated[Task, BeforeValidator(get_task)]
    folder: Annotated[Path, BeforeValidator(_folder)]
    config: CollectConfig
    seed: Whole = 0
    max_bytes: Count = MAX_BYTES
    full_precision: Flag = False
    overwrite: Flag = False
    keep_work: Flag = False
    checkpoint_every: Count = 100_000
    description: str = ""

    @property
    def work(self) -> Path:
        """Where episodes and states lie until the dataset is written."""
        return self.folder / _WORK_FOLDER / self.task.short_name

    def record(self) -> dict[str, Any]:
        """What decides the episodes that are collected, as it is read back from JSON."""
        record = {
            "format_version": _FORMAT_VERSION,
            "task": self.task.name,
            "seed": self.seed,
            "full_precision": self.full_precision,
            **asdict(self.config),
        }
        return json.loads(json.dumps(record))
