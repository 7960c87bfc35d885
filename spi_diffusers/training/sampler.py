"""Batches and all randomness of training, drawn so that they do not depend on the number of processes."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from spi_diffusers.algorithms.base import algorithm_class
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.data.columns import ACTION_TOLERANCE
from spi_diffusers.data.streaming import Dataset
from spi_diffusers.data.transitions import DatasetError, TransitionBatch, TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.models import ObservationNormalizer
from spi_diffusers.training.imitation import PreferredEpisodes, groups_by_start
from spi_diffusers.training.settle import Bound, action_range, say_range

#: Column of the number of a transition's episode, which becomes `imitated`.
_EPISODE = "episode"


def take_slice(value: Tensor, dim: int | None, rank: int, world_size: int) -> Tensor:
    """One process's equal, contiguous slice of a global batch's tensor; the whole where `dim` is None."""
    return value if dim is None else value.chunk(world_size, dim)[rank].contiguous()


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU without waiting for what a GPU does: from pinned memory, as CUDA asks."""
    if device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def scale_actions(
    action: Tensor, low: Bound, high: Bound, clip: bool = False, *, source: str = "memory", first_row: int = 0
) -> Tensor:
    """Map actions (N, A) from [low, high] to [-1, 1]; `source` and `first_row` are for messages.

    `low` and `high` are one number, or one for each dimension.

    Raises:
        DatasetError: An action lies outside the range by more than rounding, and `clip` is off.
    """
    scaled = action
    if (low, high) != (-1.0, 1.0):
        least, most = (action.new_tensor(each) if isinstance(each, list) else each for each in (low, high))
        scaled = (action - least) * (2.0 / (most - least)) - 1.0
    outside = (scaled.abs() > 1.0 + ACTION_TOLERANCE).any(dim=1)
    if bool(outside.any()) and not clip:
        row = int(outside.nonzero()[0])
        raise DatasetError(
            f"{source}: column 'action' has {int(outside.sum())} rows outside {say_range(low, high)}, first "
            f"in row {first_row + row}: {action[row].tolist()}. Give the environment's range as action_low "
            "and action_high, or set clip_actions=true if the environment clipped them itself."
        )
    return scaled.clamp(-1.0, 1.0)


class Sampler(ABC):
    """Draws the inputs of one update after the other, as the algorithm asks for them.

    One CPU generator draws everything that is random in an update for the whole (global) batch. Each process
    then takes its slice, so the same seed gives the same batches and noises on any number of processes; what
    an algorithm scales by statistics of a process's share still differs. Which transitions they go with is
    for the subclasses to say.

    Args:
        config: The algorithm, its settings, batch size, seed and action range.
        dataset: The data.
        normalizer: Fitted observation normalizer.
        units: What rewards and costs are divided by.
        device: Where the batches go.
        rank: Which slice of the global batch to return.
        world_size: Number of slices.

    Raises:
        ValueError: The batch cannot be shared out equally.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        normalizer: ObservationNormalizer,
        units: Units,
        *,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        if config.batch_size % world_size:
            raise ValueError(
                f"batch_size must be a multiple of the number of processes ({world_size}), got "
                f"{config.batch_size}."
            )
        algorithm = algorithm_class(config.algorithm)
        self.batch_size = config.batch_size
        self.draws = algorithm.draws(config.settings, config.batch_size, dataset.action_dim)
        self.generator = torch.Generator().manual_seed(config.seed)
        self._columns_needed = algorithm.columns(config.settings)
        self._inputs_class = algorithm.inputs_class
        self._device = torch.device(device)
        self._normalizer, self._units = normalizer, units
        self._action_range = (*action_range(config, dataset), config.clip_actions)
        self._slice = (rank, world_size)
        self._preferred: PreferredEpisodes | None = None
        if "imitated" in self._columns_needed:
            groups = groups_by_start(dataset.first_observations(), dataset.episodes)
            self._preferred = PreferredEpisodes(dataset.episodes, config.settings.imitation_share, groups)

    @abstractmethod
    def _transitions(self) -> dict[str, Tensor]:
        """This process's slice of the next batch of transitions, on the device, by column."""

    def draw(self) -> Any:
        """Draw the next update's inputs: this process's slice, as the algorithm's `inputs_class`."""
        tensors = self._transitions()
        drawn = {name: draw.sample(self.generator) for name, draw in self.draws.items()}
        for name, value in drawn.items():
            part = take_slice(value, self.draws[name].batch_dim, *self._slice)
            tensors[name] = to_device(part, self._device)
        if self._preferred is not None:
            tensors["imitated"] = self._preferred.picks(tensors.pop(_EPISODE), tensors["safety_weight"])
        return self._inputs_class.from_tensors(tensors)

    def get_state(self) -> Tensor:
        """What the next draws depend on besides data and settings, uint8."""
        return self.generator.get_state()

    def set_state(self, state: Tensor) -> None:
        """Continue from a state that `get_state` returned."""
        self.generator.set_state(state)

    def _training_columns(self, batch: TransitionBatch, source: str, first_row: int = 0) -> dict[str, Tensor]:
        """Columns of raw transitions for training: observations normalized, actions scaled, rewards
        and costs in their units.

        Where safety weights prefer episodes, also the number of each transition's episode. The batch's
        transitions follow each other in the dataset, from `first_row` on.
        """
        low, high, clip = self._action_range
        columns = {
            "observation": self._normalizer(batch.observation),
            "next_observation": self._normalizer(batch.next_observation),
            "action": scale_actions(batch.action, low, high, clip, source=source, first_row=first_row),
            "reward": batch.reward / self._units.reward,
            "cost": batch.cost / self._units.cost,
            "terminated": batch.terminated,
        }
        if "truncated" in self._columns_needed:
            columns["truncated"] = batch.truncated
        if self._preferred is not None:
            columns[_EPISODE] = self._preferred.episode_of(torch.arange(first_row, first_row + len(batch)))
        return columns


class MemorySampler(Sampler):
    """Draws transitions of a dataset in memory, at random and with replacement.

    The data is normalized once and kept as contiguous tensors on the device.

    Raises:
        DatasetError: Actions outside the range, or no row that `next_action="dataset"` can use.
        ValueError: As `Sampler`.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: TransitionDataset,
        normalizer: ObservationNormalizer,
        units: Units,
        **options: Any,
    ):
        super().__init__(config, dataset, normalizer, units, **options)
        columns = self._training_columns(dataset.transitions, dataset.source)
        self._rows: Tensor | None = None  # that may be drawn; None: all
        if "next_action" in self._columns_needed:
            columns["next_action"], self._rows = self._recorded_next_actions(dataset, columns["action"])
        self._starts: Tensor | None = None
        if "initial_observation" in self._columns_needed:
            self._starts = normalizer(dataset.first_observations()).contiguous().to(self._device)
        self._left: Tensor | None = None  # steps left in a row's episode, this one included; None: no windows
        self._window = algorithm_class(config.algorithm).window(config.settings)
        if self._window > 0:
            columns |= self._columns_to_go(dataset)
            columns = {name: columns[name] for name in self._columns_needed if name in columns}
            episodes = dataset.episodes
            end = (episodes.start + episodes.length).repeat_interleave(episodes.length)
            self._left = (end - torch.arange(len(dataset))).to(self._device)
        self._columns = {name: value.contiguous().to(self._device) for name, value in columns.items()}
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
            raise no_next_action(dataset.source)
        return next_action, rows

    @staticmethod
    def _columns_to_go(dataset: TransitionDataset) -> dict[str, Tensor]:
        """Number of each row's step in its episode, and return and cost from it to the episode's end."""
        episodes, length = dataset.episodes, dataset.episodes.length
        columns = {"step": torch.arange(len(dataset)) - episodes.start.repeat_interleave(length)}
        for name, signal in (("return", dataset.transitions.reward), ("cost", dataset.transitions.cost)):
            up_to = signal.double().cumsum(0)
            at_end = up_to[episodes.start + length - 1].repeat_interleave(length)
            columns[f"{name}_to_go"] = (at_end - up_to + signal).float()
        return columns

    def _transitions(self) -> dict[str, Tensor]:
        index = self._own_index(self.num_rows)
        if self._rows is not None:
            index = self._rows[index]
        index = to_device(index, self._device)
        if self._left is not None:
            step = torch.arange(self._window, device=self._device)
            left = self._left[index].unsqueeze(1)
            rows = index.unsqueeze(1) + torch.minimum(step, left - 1)
            batch = {name: column[rows] for name, column in self._columns.items()}
            return batch | {"valid": step < left}
        batch = {name: column.index_select(0, index) for name, column in self._columns.items()}
        if self._starts is not None:
            start = to_device(self._own_index(len(self._starts)), self._device)
            batch["initial_observation"] = self._starts.index_select(0, start)
        return batch

    def _own_index(self, size: int) -> Tensor:
        """This process's slice of indices below `size`, one for each transition of the batch."""
        index = torch.randint(size, (self.batch_size,), generator=self.generator)
        return take_slice(index, 0, *self._slice)


def no_next_action(source: str) -> DatasetError:
    """The error about data that `next_action="dataset"` cannot use."""
    return DatasetError(
        f"{source}: no transition has a recorded next action (all episodes are one step long and "
        "truncated), so spi.next_action=dataset cannot be used."
    )
