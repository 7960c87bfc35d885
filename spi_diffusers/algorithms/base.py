"""The one contract of all algorithms: what an algorithm reads and draws, how it trains, and what it saves.

Training asks the class for all that it must know before there are networks, and knows no algorithm by name.
A new algorithm is a subclass of `Algorithm`, its settings and a line in `config/algorithms.py`.
"""

import importlib
import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spi_diffusers.algorithms.networks import Compute, Learner
from spi_diffusers.config.algorithms import ALGORITHMS
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.data.episodes import EpisodeTable
from spi_diffusers.data.units import Units

#: Scalars that are logged, detached, by name.
Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class PolicySizes:
    """What an algorithm must know about the task.

    Attributes:
        observation_dim: Size O of an observation.
        action_dim: Size A of an action.
        max_episode_steps: Steps of the longest episode.
        cost_limit: Cost of an episode that the policy is trained for; infinite where there is none.
        episodes: The episodes of the data.
    """

    observation_dim: int
    action_dim: int
    max_episode_steps: int
    cost_limit: float = math.inf
    episodes: EpisodeTable | None = None


@dataclass(frozen=True)
class Draw:
    """A random tensor that an update needs, drawn for the whole batch of all processes.

    Attributes:
        shape: Of the tensor.
        kind: "normal": standard normal; "uniform": from 0 to 1; "integer": from 0 to `count` - 1.
        count: Number of the integers.
        batch_dim: Dimension that runs over the batch, of which each process takes its slice; None: all take
            the whole.
    """

    shape: tuple[int, ...]
    kind: Literal["normal", "uniform", "integer"] = "normal"
    count: int = 0
    batch_dim: int | None = 0

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw the tensor, on the CPU."""
        if self.kind == "integer":
            return torch.randint(self.count, self.shape, generator=generator)
        return (torch.rand if self.kind == "uniform" else torch.randn)(self.shape, generator=generator)


@dataclass(frozen=True)
class Inputs:
    """Everything one update consumes: tensors, of which those that are None are left out."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """What `tensors` came from; TypeError where a name is missing or unknown."""
        return cls(**tensors)


@dataclass(frozen=True)
class Batch:
    """Transitions.

    Attributes:
        observation: Normalized, (B, O).
        next_observation: Normalized, (B, O).
        action: In [-1, 1], (B, A).
        reward: (B,), as logged, or in the data's unit (`Algorithm.in_units`).
        cost: (B,), likewise.
        terminated: The task itself ended, (B,) bool.
        truncated: The time limit ended it, (B,) bool.
        initial_observation: Normalized first observations of episodes drawn at random, (B, O).
    """

    observation: Tensor
    next_observation: Tensor
    action: Tensor
    reward: Tensor
    cost: Tensor
    terminated: Tensor
    truncated: Tensor
    initial_observation: Tensor


COLUMNS = tuple(field.name for field in fields(Batch))


@dataclass(frozen=True)
class BatchAndNoise(Inputs):
    """What one update of most algorithms consumes.

    Attributes:
        batch: The transitions.
        noise: Random tensors by name, as `Algorithm.draws` asks for.
    """

    batch: Batch
    noise: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Columns and noise by name."""
        return {name: getattr(self.batch, name) for name in COLUMNS} | self.noise

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """What `tensors` came from; TypeError where a column is missing."""
        columns = {name: value for name, value in tensors.items() if name in COLUMNS}
        return cls(Batch(**columns), {name: tensors[name] for name in tensors if name not in columns})


class Algorithm(ABC):
    """An algorithm in training; the defaults are those of an algorithm that is trained for one cost limit.

    A subclass makes its networks in `__init__(config, sizes, compute)`, from the global random generator,
    which the caller has seeded, and implements `learn`.

    Attributes:
        inputs_class: What one update consumes; has `tensors()`, all of them by name, and `from_tensors`.
        overlaps: Its updates have two halves that can run side by side.
        safe_episodes_only: It learns from the episodes within the cost limit only.
        in_units: It learns from rewards and costs in the data's units instead of those they are logged in.
        pipeline: Class in `spi_diffusers.pipelines` that holds its policy.
        config: Its settings.
        learners: Its networks in training, by name.
        state: What else a checkpoint must hold, by name.
        updates: Updates done.
    """

    inputs_class: ClassVar[type[Inputs]] = BatchAndNoise
    overlaps: ClassVar[bool] = False
    safe_episodes_only: ClassVar[bool] = False
    in_units: ClassVar[bool] = False
    pipeline: ClassVar[str] = "BaselinePolicyPipeline"

    config: Any
    actor: Any
    learners: dict[str, Learner[Any]]
    state: Mapping[str, nn.Module] = {}
    updates: int = 0

    def __init__(self, config: Any, sizes: PolicySizes, compute: Compute):
        raise NotImplementedError

    # ---- asked of the class

    @classmethod
    def build(cls, config: TrainConfig, sizes: PolicySizes, compute: Compute) -> "Algorithm":
        """The algorithm with fresh networks, as the configuration says."""
        return cls(config.settings, sizes, compute)

    @classmethod
    def columns(cls, config: Any) -> tuple[str, ...]:
        """Columns of the data that an update needs.

        Those of the data; "initial_observation", of an episode drawn at random; "next_action", the recorded
        one of the next step; and "imitated", whether its episode is one of those that this safety weight
        imitates. Where a row holds several steps, also "step", "return_to_go", "cost_to_go" and "valid"
        (`window`).
        """
        return COLUMNS

    @classmethod
    def window(cls, config: Any) -> int:
        """Number W of steps of an episode that a row of a batch holds, from one drawn at random on.

        0: a row is one transition. Else every column is (B, W, ...), and there are columns of the number of
        the step in its episode, from 0; of return and cost from it to the end of the episode, undiscounted;
        and of whether it is there: beyond the end of the episode its last step is repeated.
        """
        return 0

    @classmethod
    def draws(cls, config: Any, batch_size: int, action_dim: int) -> dict[str, Draw]:
        """Random tensors that an update needs, by name, in the order in which they are drawn."""
        return {}

    @classmethod
    def is_evaluated(cls, config: TrainConfig) -> bool:
        """Whether an evaluation critic learns after training what its policy earns and costs."""
        return False

    @classmethod
    def pipeline_settings(cls, config: TrainConfig, units: Units) -> dict[str, Any]:
        """What its pipeline is told besides components, task and the length of an episode."""
        return {
            "algorithm": config.algorithm,
            "cost_limit": config.cost_limit,
            "action_low": config.action_low,
            "action_high": config.action_high,
        }

    # ---- training

    def prepare(self, inputs: Any) -> Any:
        """Complete the very first update's inputs."""
        return inputs

    def update(self, inputs: Any, upcoming: Any) -> tuple[Metrics, Any]:
        """One training step.

        Args:
            inputs: What it consumes, completed by `prepare` or by the update before.
            upcoming: What the next update consumes: SPI samples its next actions while it trains.

        Returns:
            Metrics, and `upcoming`, completed.
        """
        metrics = self.learn(inputs.batch, inputs.noise)
        self.updates += 1
        return metrics, upcoming

    def learn(self, batch: Batch, noise: Mapping[str, Tensor]) -> Metrics:
        """One training step on a batch; returns metrics."""
        raise NotImplementedError

    # ---- what is saved

    def modules(self) -> dict[str, nn.Module]:
        """Everything with weights that a checkpoint holds: networks, targets, multipliers; by name."""
        named = dict(self.state)
        for name, learner in self.learners.items():
            named[name] = learner.master
            if learner.target is not None:
                named[f"target_{name}"] = learner.target
        return named

    def optimizers(self) -> dict[str, Optimizer]:
        """Every optimizer, by name; the first one's learning rate is logged."""
        return {name: learner.optimizer for name, learner in self.learners.items()}

    def policy_components(self) -> dict[str, Any]:
        """The components of the saved policy, by name, without its normalizer.

        By default the `actor`, with `act(observation, generator) -> action`.
        """
        return {"actor": self.actor}

    def refresh(self) -> None:
        """Bring copies of the weights up to date; called after weights were loaded."""
        for learner in self.learners.values():
            learner.refresh()


def algorithm_class(name: str) -> type[Algorithm]:
    """The class of an algorithm, imported when it is asked for."""
    entry = ALGORITHMS[name]
    return getattr(importlib.import_module(f"spi_diffusers.algorithms.{entry.group}"), entry.class_name)
