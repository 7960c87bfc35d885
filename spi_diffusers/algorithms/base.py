"""What an algorithm is to the trainer, and what a baseline has to bring along.

The trainer draws inputs one update ahead, because SPI samples a_{i+1} for the next batch while it trains on
this one. A baseline sees none of that: it gets a batch and standard normal noise, and makes one step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, Self

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.optim import Optimizer

_NOISE = "noise."


class Inputs(Protocol):
    """Everything one update consumes, as named tensors."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """What `tensors` came from; TypeError where a name is missing or unknown."""


class Algorithm(Protocol):
    """What the trainer asks of an algorithm.

    Attributes:
        updates: Updates done.
        inputs_class: The inputs it takes.
    """

    updates: int
    inputs_class: type[Any]

    def prepare(self, inputs: Any) -> Any:
        """Complete the very first update's inputs."""

    def update(self, inputs: Any, upcoming: Any) -> tuple[dict[str, Tensor], Any]:
        """One training step on `inputs`; returns metrics as detached scalars, and `upcoming`, completed."""

    def modules(self) -> dict[str, nn.Module]:
        """Everything that is checkpointed and has weights, by name."""

    def optimizers(self) -> dict[str, Optimizer]:
        """Every optimiser, by name."""

    def policy_components(self) -> dict[str, Any]:
        """The components of the saved policy, by name, without its normalizer."""

    def refresh_replicas(self) -> None:
        """Bring copies of the weights up to date; called after weights were loaded."""


@dataclass(frozen=True)
class PolicySizes:
    """What a baseline must know about the task.

    Attributes:
        observation_dim: Size O of an observation.
        action_dim: Size A of an action.
        max_episode_steps: Steps of the longest episode.
        cost_limit: Cost of an episode that the policy is trained for.
    """

    observation_dim: int
    action_dim: int
    max_episode_steps: int
    cost_limit: float


@dataclass(frozen=True)
class Batch:
    """Transitions.

    Attributes:
        observation: Normalised, (B, O).
        next_observation: Normalised, (B, O).
        action: In [-1, 1], (B, A).
        reward: (B,).
        cost: (B,).
        terminated: The task itself ended, (B,) bool.
        truncated: The time limit ended it, (B,) bool.
        initial_observation: Normalised first observations of episodes drawn at random, (B, O).
    """

    observation: Tensor
    next_observation: Tensor
    action: Tensor
    reward: Tensor
    cost: Tensor
    terminated: Tensor
    truncated: Tensor
    initial_observation: Tensor


class Baseline(ABC):
    """An algorithm that trains a policy for one cost limit.

    A subclass makes its networks in `__init__(config, sizes, *, dtype, reduce_gradients, device)`, from the
    global random generator, which the caller has seeded.
    """

    name: ClassVar[str]

    @abstractmethod
    def __init__(
        self,
        config: Any,
        sizes: PolicySizes,
        *,
        dtype: torch.dtype = torch.float32,
        reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
        device: torch.device | str = "cpu",
    ): ...

    @classmethod
    def noise_shapes(cls, config: Any, batch_size: int, action_dim: int) -> dict[str, tuple[int, ...]]:
        """Standard normal tensors that an update needs, by name; the batch is their first dimension."""
        return {}

    @abstractmethod
    def update(self, batch: Batch, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One training step; returns metrics as detached scalars."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Everything to checkpoint: networks, targets, multipliers; by name."""

    @abstractmethod
    def optimizers(self) -> dict[str, Optimizer]:
        """Every optimiser, by name."""

    @abstractmethod
    def policy_components(self) -> dict[str, ModelMixin]:
        """What acts: `actor`, with `act(observation, generator) -> action`."""

    def refresh_replicas(self) -> None:  # noqa: B027 - most have none
        """Bring copies of the weights up to date; called after weights were loaded."""


@dataclass(frozen=True)
class BaselineInputs:
    """What one update of a baseline consumes.

    Attributes:
        batch: The transitions.
        noise: As `Baseline.noise_shapes` asks for.
    """

    batch: Batch
    noise: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        named = {field.name: getattr(self.batch, field.name) for field in fields(Batch)}
        return named | {f"{_NOISE}{name}": value for name, value in self.noise.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "BaselineInputs":
        """What `tensors` came from."""
        batch = {name: value for name, value in tensors.items() if not name.startswith(_NOISE)}
        noise = {name.removeprefix(_NOISE): tensors[name] for name in tensors if name not in batch}
        return cls(Batch(**batch), noise)


class BaselineTraining:
    """A baseline as the trainer sees any algorithm.

    Args:
        baseline: The baseline.
    """

    inputs_class = BaselineInputs

    def __init__(self, baseline: Baseline):
        self.baseline = baseline
        self.updates = 0

    def prepare(self, inputs: BaselineInputs) -> BaselineInputs:
        """The inputs, complete as they are."""
        return inputs

    def update(
        self, inputs: BaselineInputs, upcoming: BaselineInputs
    ) -> tuple[dict[str, Tensor], BaselineInputs]:
        """One training step; `upcoming` is returned as it is."""
        metrics = self.baseline.update(inputs.batch, inputs.noise)
        self.updates += 1
        return metrics, upcoming

    def modules(self) -> dict[str, nn.Module]:
        """The baseline's."""
        return self.baseline.modules()

    def optimizers(self) -> dict[str, Optimizer]:
        """The baseline's."""
        return self.baseline.optimizers()

    def policy_components(self) -> dict[str, Any]:
        """The baseline's."""
        return self.baseline.policy_components()

    def refresh_replicas(self) -> None:
        """The baseline's."""
        self.baseline.refresh_replicas()
