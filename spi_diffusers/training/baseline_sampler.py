"""Batches and noise for baselines, drawn so that they do not depend on the number of processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spi_diffusers.algorithms.base import BaselineInputs, Batch
from spi_diffusers.config.algorithms import SPIConfig
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.models import ObservationNormalizer
from spi_diffusers.training.sampler import TransitionSampler, take_slice


class BaselineSampler:
    """Draws transitions at random with replacement, start states of episodes, and standard normal noise.

    Args:
        dataset: The data, in memory.
        normalizer: Fitted observation normalizer.
        noise_shapes: From `Baseline.noise_shapes`.
        **options: Of `UpdateSampler`.

    Raises:
        DatasetError: Actions outside the range.
        ValueError: The batch cannot be shared out equally.
    """

    def __init__(
        self,
        dataset: TransitionDataset,
        normalizer: ObservationNormalizer,
        noise_shapes: Mapping[str, tuple[int, ...]],
        **options: Any,
    ):
        self._transitions = TransitionSampler(dataset, normalizer, SPIConfig(), **options)
        device = self._transitions.device
        self._truncated = dataset.transitions.truncated.to(device)
        starts = dataset.transitions.observation[dataset.episodes.start]
        self._starts = normalizer(starts).contiguous().to(device)
        self._noise_shapes = dict(noise_shapes)
        self._slice = (options.get("rank", 0), options.get("world_size", 1))

    def draw(self) -> BaselineInputs:
        """Draw the next update's inputs: this process's slice."""
        sampler, generator = self._transitions, self._transitions.generator
        index = torch.randint(sampler.num_rows, (sampler.batch_size,), generator=generator)
        start = torch.randint(len(self._starts), (sampler.batch_size,), generator=generator)
        noise = {name: torch.randn(shape, generator=generator) for name, shape in self._noise_shapes.items()}
        index, start = self._own("index", index), self._own("index", start)
        return BaselineInputs(
            Batch(
                **sampler.rows(index),
                truncated=self._truncated[index],
                initial_observation=self._starts[start],
            ),
            {name: self._own(name, value) for name, value in noise.items()},
        )

    def get_state(self) -> Tensor:
        """What the next draws depend on besides data and settings, uint8."""
        return self._transitions.get_state()

    def set_state(self, state: Tensor) -> None:
        """Continue from a state that `get_state` returned."""
        self._transitions.set_state(state)

    def _own(self, name: str, value: Tensor) -> Tensor:
        return take_slice(name, value, *self._slice).to(self._transitions.device)
