"""How far a policy's actions lie from those that the data has in similar states."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.pipelines.extraction import policy_action
from spi_diffusers.training.residuals import recorded_actions

if TYPE_CHECKING:
    from spi_diffusers.pipelines import SPIPolicyPipeline

#: An action is compared with those of so many states that are the most similar.
NEIGHBORS = 10
#: Share of the recorded actions that lie within the distance that counts as supported.
SUPPORTED = 0.95
_CHUNK = 128


@dataclass(frozen=True)
class Support:
    """Q states with the actions that other episodes have in the states that are most similar to them.

    Attributes:
        state: Normalized observations, (Q, O).
        episode: Number of the episode that each is of, (Q,) int64.
        neighbors: Actions in the similar states, in units of the actions' deviation, (Q, K, A).
        unit: That deviation, (A,).
        largest: Distance to the nearest of them that 95% of the recorded actions keep.
    """

    state: Tensor
    episode: Tensor
    neighbors: Tensor
    unit: Tensor
    largest: float

    @classmethod
    def between(
        cls,
        pipeline: "SPIPolicyPipeline",
        others: TransitionDataset,
        used: TransitionDataset,
        most_states: int,
        rng: np.random.Generator,
    ) -> "Support":
        """Compare at most so many states of `used`, drawn at random, with those of `others`."""
        return cls._of(pipeline, others, used, np.arange(len(used)), most_states, rng)

    @classmethod
    def within(
        cls,
        pipeline: "SPIPolicyPipeline",
        used: TransitionDataset,
        most_states: int,
        rng: np.random.Generator,
    ) -> "Support | None":
        """Compare every second episode with the others; None where there is one episode only."""
        if used.num_episodes < 2:
            return None
        others = used.select_episodes(torch.arange(1, used.num_episodes, 2))
        rows = np.flatnonzero((used.episode_index % 2 == 0).cpu().numpy())
        return cls._of(pipeline, others, used, rows, most_states, rng)

    @classmethod
    def _of(
        cls,
        pipeline: "SPIPolicyPipeline",
        others: TransitionDataset,
        used: TransitionDataset,
        pool: np.ndarray,
        most_states: int,
        rng: np.random.Generator,
    ) -> "Support":
        rows = torch.from_numpy(np.sort(rng.permutation(pool)[:most_states]))
        known_states, known_actions = _seen(pipeline, others, torch.arange(len(others)))
        states, actions = _seen(pipeline, used, rows)
        unit = known_actions.std(0, correction=0)
        unit = torch.where(unit > 1e-6, unit, torch.ones_like(unit))
        spread = known_states.std(0, correction=0)
        spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
        count = min(NEIGHBORS, len(others))
        nearest = [
            torch.cdist(chunk / spread, known_states / spread).topk(count, largest=False).indices
            for chunk in states.split(_CHUNK)
        ]
        neighbors = (known_actions / unit)[torch.cat(nearest)]
        distances = _distance(actions / unit, neighbors)
        largest = float(np.quantile(distances.cpu().numpy(), SUPPORTED))
        return cls(states, used.episode_index[rows], neighbors, unit, largest)

    def share_outside(self, pipeline: "SPIPolicyPipeline", weight: Tensor) -> float:
        """Share of the policy's actions that lie further away, for a safety weight of each episode, (E,)."""
        weights = weight[self.episode].to(self.state.device)
        actions = policy_action(pipeline, self.state, weights)
        # What is as far away as the recorded ones but for rounding is not further.
        further = _distance(actions / self.unit, self.neighbors) > self.largest * (1 + 1e-6) + 1e-6
        return float(further.double().mean())


def _seen(pipeline: Any, data: TransitionDataset, rows: Tensor) -> tuple[Tensor, Tensor]:
    """States and actions as the networks see them."""
    device = pipeline.normalizer.mean.device
    batch = data.transitions.gather(rows)
    actions = recorded_actions(pipeline, batch.action.to(device))
    return pipeline.normalizer(batch.observation.to(device)), actions


def _distance(actions: Tensor, neighbors: Tensor) -> Tensor:
    """Distance of actions (Q, A) to the nearest of their neighbors (Q, K, A), (Q,)."""
    return (actions.unsqueeze(1) - neighbors).square().sum(2).amin(1).sqrt()
