"""The units that rewards and costs are trained in, taken from the data, so that its own do not matter."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from spi_diffusers.data.streaming import Dataset, StreamedDataset

#: Of a unit. Beyond, products of float32 numbers give out.
SMALLEST, LARGEST = 1e-17, 1e17


@dataclass(frozen=True)
class Units:
    """What rewards and costs are divided by in training, and values multiplied by in the policy.

    Attributes:
        reward: Root of the mean squared reward of a step.
        cost: Mean cost of a step, weighted by the cost itself, mean(c^2) / mean(c): what a costly step
            typically costs. For costs of 0 and 1 it is 1.
    """

    reward: float = 1.0
    cost: float = 1.0

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """The units of a dataset; 1 where all rewards or all costs are zero."""
        if isinstance(dataset, StreamedDataset):
            rewards, costs = dataset.summary.moments["reward"], dataset.summary.moments["cost"]
        else:
            batch = dataset.transitions
            rewards, costs = _moments(batch.reward), _moments(batch.cost)
        (reward_mean, reward_std), (cost_mean, cost_std) = (
            [float(value) for value in pair] for pair in (rewards, costs)
        )
        squared_cost = cost_mean**2 + cost_std**2
        return cls(
            reward=_unit(math.hypot(reward_mean, reward_std)),
            cost=_unit(squared_cost / cost_mean if cost_mean > 0 else 0.0),
        )


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    values = values.double()
    return values.mean(), values.std(correction=0)


def _unit(value: float) -> float:
    """A unit within what a policy's settings may be."""
    if value == 0:
        return 1.0
    # As float32 holds it, like the data: so it does not depend on how its statistics were rounded.
    return torch.tensor(min(max(value, SMALLEST), LARGEST), dtype=torch.float32).item()
