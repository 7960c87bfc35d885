"""Batches and all randomness of training, drawn so that they do not depend on the number of processes."""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from spi_diffusers.algorithms.step_inputs import StepInputs
from spi_diffusers.config.algorithms import SPIConfig
from spi_diffusers.data.columns import ACTION_TOLERANCE
from spi_diffusers.data.transitions import DatasetError, EpisodeTable, TransitionBatch, TransitionDataset
from spi_diffusers.models import ObservationNormalizer
from spi_diffusers.training.imitation import PreferredEpisodes

#: Fields of `StepInputs` whose batch dimension is not the first one, and the one that has none.
_BATCH_DIM = {"chain_noise": 1, "guidance_noise": 1}
_SHARED = ("twin",)
#: Column of a transition's episode's ranks, which becomes `StepInputs.imitated`.
_RANKS = "episode_ranks"


def batch_dim(name: str) -> int | None:
    """Which dimension of a field of `StepInputs` runs over the batch; None for a field without one."""
    return None if name in _SHARED else _BATCH_DIM.get(name, 0)


def take_slice(name: str, value: Tensor, rank: int, world_size: int) -> Tensor:
    """The part of a field of a global batch that one of `world_size` processes works on.

    Args:
        name: Field of `StepInputs`.
        value: Its value for the global batch.
        rank: Which of the equal, contiguous slices.
        world_size: How many there are.
    """
    dim = batch_dim(name)
    return value if dim is None else value.chunk(world_size, dim)[rank].contiguous()


def scale_actions(
    action: Tensor, low: float, high: float, clip: bool = False, *, source: str = "memory", first_row: int = 0
) -> Tensor:
    """Map actions from [low, high] to [-1, 1].

    Args:
        action: Recorded actions of shape (N, A).
        low: Smallest action of the environment.
        high: Largest action of the environment.
        clip: Clip actions outside the range instead of refusing them.
        source: What to call the data in messages.
        first_row: Number of the first row, for messages.

    Returns:
        Actions of shape (N, A) in [-1, 1].

    Raises:
        DatasetError: An action lies outside the range by more than rounding.
    """
    scaled = action if (low, high) == (-1.0, 1.0) else (action - low) * (2.0 / (high - low)) - 1.0
    outside = (scaled.abs() > 1.0 + ACTION_TOLERANCE).any(dim=1)
    if bool(outside.any()) and not clip:
        row = int(outside.nonzero()[0])
        raise DatasetError(
            f"{source}: column 'action' has {int(outside.sum())} rows outside [{low:g}, {high:g}], first in "
            f"row {first_row + row}: {action[row].tolist()}. Give the environment's range as action_low and "
            "action_high, or set clip_actions=true if the environment clipped them itself."
        )
    return scaled.clamp(-1.0, 1.0)


class UpdateSampler(ABC):
    """Draws the inputs of one update after the other.

    One CPU generator draws everything that is random in an update for the whole (global) batch: safety
    weights, diffusion timesteps, noises and the guiding twin. Each process then takes its slice, so the same
    seed gives the same batches and noises on any number of processes; what an algorithm scales by statistics
    of a process's share still differs. Which transitions they go with is for the subclasses to say.

    Args:
        normalizer: Fitted observation normalizer.
        config: The algorithm's configuration.
        episodes: All episodes of the dataset, of which each safety weight may prefer some.
        batch_size: Size G of the global batch; a multiple of `world_size`.
        seed: Seed of the generator.
        action_dim: Size A of an action.
        action_low: Smallest action of the environment.
        action_high: Largest action of the environment.
        clip_actions: Clip recorded actions outside the range instead of refusing them.
        device: Where the batches go.
        rank: Which slice of the global batch to return.
        world_size: Number of slices.

    Raises:
        ValueError: `batch_size` cannot be shared out equally.
    """

    def __init__(
        self,
        normalizer: ObservationNormalizer,
        config: SPIConfig,
        *,
        episodes: EpisodeTable,
        batch_size: int,
        seed: int,
        action_dim: int,
        action_low: float = -1.0,
        action_high: float = 1.0,
        clip_actions: bool = False,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size % world_size:
            raise ValueError(
                f"batch_size must be a multiple of the number of processes ({world_size}), got {batch_size}."
            )
        self.config = config
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.device = torch.device(device)
        self._normalizer = normalizer
        self._action_dim = action_dim
        self._action_range = (action_low, action_high, clip_actions)
        self._slice = (rank, world_size)
        share = config.imitation_share
        self._preferred = PreferredEpisodes(episodes, share) if share < 1.0 else None

    @abstractmethod
    def _transitions(self) -> dict[str, Tensor]:
        """This process's slice of the next batch of transitions, on the device, by field of `StepInputs`."""

    def draw(self) -> StepInputs:
        """Draw the next update's inputs: this process's slice; `next_action` only where it is recorded."""
        transitions = self._transitions()
        size, generator = self.batch_size, self.generator
        steps = self.config.num_train_timesteps
        chain_steps = 0 if self.config.next_action == "dataset" else steps
        guidance_steps = steps if self.config.guidance == "chain" else 0
        random = {
            "safety_weight": torch.rand(size, generator=generator),
            "timestep": torch.randint(steps, (size,), generator=generator),
            "noise": torch.randn(size, self._action_dim, generator=generator),
            "chain_noise": torch.randn(chain_steps, size, self._action_dim, generator=generator),
            "guidance_noise": torch.randn(guidance_steps, size, self._action_dim, generator=generator),
            "twin": torch.randint(2, (), generator=generator),
        }
        rank, world_size = self._slice
        for name, value in random.items():
            part = take_slice(name, value, rank, world_size)
            random[name] = part if name in _SHARED else part.to(self.device)
        if self._preferred is not None:
            ranks = transitions.pop(_RANKS)
            random["imitated"] = self._preferred.picks(ranks, random["safety_weight"])
        return StepInputs(**transitions, **random)

    def get_state(self) -> Tensor:
        """What the next draws depend on besides data and settings, uint8."""
        return self.generator.get_state()

    def set_state(self, state: Tensor) -> None:
        """Continue from a state that `get_state` returned."""
        self.generator.set_state(state)

    def _training_columns(self, batch: TransitionBatch, source: str, first_row: int = 0) -> dict[str, Tensor]:
        """Fields of `StepInputs` from raw transitions: observations normalised, actions scaled.

        Where safety weights prefer episodes, also the ranks of each transition's episode.

        Args:
            batch: Transitions that follow each other in the dataset.
            source: What to call the data in messages.
            first_row: Row of the dataset that the batch starts with.
        """
        low, high, clip = self._action_range
        ranks = {}
        if self._preferred is not None:
            rows = torch.arange(first_row, first_row + len(batch))
            ranks[_RANKS] = self._preferred.ranks(rows)
        return {
            **ranks,
            "observation": self._normalizer(batch.observation),
            "next_observation": self._normalizer(batch.next_observation),
            "action": scale_actions(batch.action, low, high, clip, source=source, first_row=first_row),
            "reward": batch.reward,
            "cost": batch.cost,
            "terminated": batch.terminated,
        }


class TransitionSampler(UpdateSampler):
    """Draws transitions of a dataset in memory, at random and with replacement.

    Args:
        dataset: The data; normalised once and kept as contiguous tensors on the device.
        normalizer: As for `UpdateSampler`.
        config: As for `UpdateSampler`.
        **options: Of `UpdateSampler`.

    Raises:
        DatasetError: Actions outside the range, or no row that `next_action="dataset"` can use.
        ValueError: As `UpdateSampler`.
    """

    def __init__(
        self, dataset: TransitionDataset, normalizer: ObservationNormalizer, config: SPIConfig, **options: Any
    ):
        super().__init__(
            normalizer, config, episodes=dataset.episodes, action_dim=dataset.action_dim, **options
        )
        columns = self._training_columns(dataset.transitions, dataset.source)
        self._rows: Tensor | None = None
        if config.next_action == "dataset":
            columns["next_action"], self._rows = self._recorded_next_actions(dataset, columns["action"])
        self._columns = {name: value.contiguous().to(self.device) for name, value in columns.items()}
        self.num_rows = len(dataset) if self._rows is None else len(self._rows)

    @staticmethod
    def _recorded_next_actions(dataset: TransitionDataset, action: Tensor) -> tuple[Tensor, Tensor]:
        """a_{i+1} of each row (N, A), and the rows that may be drawn: those that have one or need none."""
        batch = dataset.transitions
        has_next = ~(batch.terminated | batch.truncated)
        following = torch.cat([action[1:], action[-1:]])
        next_action = torch.where(has_next.unsqueeze(-1), following, torch.zeros_like(action))
        rows = (has_next | batch.terminated).nonzero().flatten()
        if len(rows) == 0:
            raise DatasetError(
                f"{dataset.source}: no transition has a recorded next action (all episodes are one step "
                "long and truncated), so spi.next_action=dataset cannot be used."
            )
        return next_action, rows

    def _transitions(self) -> dict[str, Tensor]:
        index = torch.randint(self.num_rows, (self.batch_size,), generator=self.generator)
        rank, world_size = self._slice
        index = index.chunk(world_size)[rank]
        if self._rows is not None:
            index = self._rows[index]
        return self.rows(index.to(self.device))

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """Transitions by their row in the dataset, (B,) on the device, by field of `StepInputs`."""
        return {name: column.index_select(0, index) for name, column in self._columns.items()}


assert {field.name for field in fields(StepInputs)} >= {*_BATCH_DIM, *_SHARED}
