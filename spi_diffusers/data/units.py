"""The units that rewards and costs are trained in, taken from the data, so that its own do not matter."""

import math
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from spi_diffusers.data.costs import as_unit, cost_unit
from spi_diffusers.data.streaming import Dataset, StreamedDataset


@dataclass(frozen=True)
class Units:
    """What rewards and costs are divided by in training, and values multiplied by in the policy.

    Attributes:
        reward: Root of the mean squared reward of a step.
        cost: Mean cost of a step, weighted by the cost itself, mean(c^2) / mean(c): what a costly step
            typically costs. For costs of 0 and 1 it is 1. Of several costs, that of their sum.
        costs: The unit of each cost.
    """

    reward: float = 1.0
    cost: float = 1.0
    costs: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """The units of a dataset; 1 where all rewards or all costs are zero."""
        if isinstance(dataset, StreamedDataset):
            moments = dataset.summary.moments
            reward, cost, costs = moments["reward"], moments["cost"], [moments["cost"]]
        else:
            batch = dataset.transitions
            reward, cost = _moments(batch.reward), _moments(batch.cost)
            costs = [_moments(column) for column in batch.costs.unbind(1)]
        return cls(
            reward=as_unit(math.hypot(*map(float, reward))),
            cost=cost_unit(*map(float, cost)),
            costs=tuple(cost_unit(*map(float, each)) for each in costs),
        )


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    values = values.double()
    return values.mean(), values.std(correction=0)
