"""Trains any algorithm on a small known world, by the package's own sampler and builders, and evaluates its
policy exactly: actions drawn in every state give a table of move probabilities, the table gives its values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from constrained_mdp import ConstrainedMDP, Values, evaluate
from diffusers.utils import logging as diffusers_logging

from spi_diffusers.algorithms.base import Algorithm, PolicySizes
from spi_diffusers.algorithms.constrained import cost_threshold
from spi_diffusers.config.layers import make_train_config
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.models import ObservationNormalizer
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.training.build import (
    build_algorithm,
    build_normalizer,
    build_sampler,
    build_units,
    training_episodes,
)
from spi_diffusers.training.evaluation_stage import fit_evaluation_critic

diffusers_logging.disable_progress_bar()

#: Actions per state that the table of a random policy is made from.
DRAWS = 200

#: Raw observations (N, O) to actions (N, A).
Act = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class World:
    """A decision process as an algorithm sees it.

    Attributes:
        mdp: The dynamics.
        observations: Of every state, (S, O) float32.
        moves: Probabilities (N, M) of the moves that actions (N, A) make.
        data: What is learned from.
    """

    mdp: ConstrainedMDP
    observations: np.ndarray
    moves: Callable[[np.ndarray], np.ndarray]
    data: TransitionDataset

    def states_of(self, observations: torch.Tensor) -> np.ndarray:
        """States of observations (N, O), (N,)."""
        distance = np.abs(observations.numpy()[:, None] - self.observations).sum(axis=2)
        return distance.argmin(axis=1)

    def started_as_the_data(self) -> ConstrainedMDP:
        """The process started in the data's states: what a mean over batches averages over."""
        counts = np.bincount(self.states_of(self.data.transitions.observation), minlength=self.mdp.shape[0])
        return replace(self.mdp, start=counts / counts.sum())

    def mean_actions(self, data: TransitionDataset) -> np.ndarray:
        """Mean of the actions that were recorded in each state, (S, A)."""
        rows, states = data.transitions, self.states_of(data.transitions.observation)
        member = np.eye(len(self.observations))[states]
        return member.T @ rows.action.numpy() / member.sum(axis=0)[:, None]

    def threshold(self, cost_limit: float) -> float:
        """Discounted cost that a cost limit per episode allows."""
        data, steps = self.data, int(self.data.episodes.length.max())
        sizes = PolicySizes(data.observation_dim, data.action_dim, steps, cost_limit)
        return cost_threshold(sizes, self.mdp.gamma)

    def play(self, act: Act, seed: int = 0) -> np.ndarray:
        """Probabilities (S, M) of the moves of a policy, from `DRAWS` actions in every state."""
        observation = torch.from_numpy(self.observations).repeat_interleave(DRAWS, dim=0)
        actions = act(observation, torch.Generator().manual_seed(seed))
        return self.moves(actions.numpy()).reshape(len(self.observations), DRAWS, -1).mean(axis=1)


@dataclass(frozen=True)
class Trained:
    """An algorithm after training.

    Attributes:
        algorithm: The algorithm.
        normalizer: Of its observations.
        units: Of its rewards and costs.
        learned_from: The episodes that it learned from.
        history: Exact values of its policy, every so many updates.
    """

    algorithm: Algorithm
    normalizer: ObservationNormalizer
    units: Units
    learned_from: TransitionDataset
    history: list[Values]

    def act(self, observation: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A baseline's actions (N, A) for raw observations (N, O)."""
        return self.algorithm.policy_components()["actor"].act(self.normalizer(observation), generator)

    def spi_pipeline(self, world: World) -> SPIPolicyPipeline:
        """SPI's policy as it is shipped."""
        pipeline = SPIPolicyPipeline(
            **self.algorithm.policy_components(),
            normalizer=self.normalizer,
            max_episode_steps=int(world.data.episodes.length.max()),
            gamma=world.mdp.gamma,
            reward_unit=self.units.reward,
        )
        critic = fit_evaluation_critic(pipeline, world.data, updates=3000, progress=False)
        pipeline.register_modules(evaluation_critic=critic)
        return pipeline


def train(
    world: World,
    name: str,
    settings: Mapping[str, Any],
    *,
    updates: int,
    cost_limit: float | None = None,
    evaluate_every: int | None = None,
    seed: int = 0,
) -> Trained:
    """Train one algorithm.

    Args:
        world: What it learns from.
        name: Its name.
        settings: Of the algorithm, and of the run, as `make_train_config` takes them.
        updates: Number of updates.
        cost_limit: Of a baseline.
        evaluate_every: Updates between two exact evaluations of a baseline's policy; None for none.
        seed: Of initial weights and batches.
    """
    run = {"dataset": "memory", "algorithm": name, "updates": updates, "seed": seed, "batch_size": 128}
    run["max_episode_steps"] = int(world.data.episodes.length.max())
    if cost_limit is not None:
        run["cost_limit"] = cost_limit
    config = make_train_config({**run, "mixed_precision": "no", "lr_schedule": "constant", **settings})
    data = training_episodes(config, world.data)
    normalizer = build_normalizer(data)
    units = build_units(config, data)
    sampler = build_sampler(config, data, normalizer, units)
    algorithm = build_algorithm(config, world.data)
    trained = Trained(algorithm, normalizer, units, data, [])
    rates = [(optimizer, optimizer.param_groups[0]["lr"]) for optimizer in algorithm.optimizers().values()]
    judged = world.started_as_the_data()
    inputs = algorithm.prepare(sampler.draw())
    for step in range(1, updates + 1):
        for optimizer, start in rates:
            optimizer.param_groups[0]["lr"] = config.learning_rate_at(step - 1, start)
        _, inputs = algorithm.update(inputs, sampler.draw())
        if evaluate_every is not None and step % evaluate_every == 0:
            trained.history.append(evaluate(judged, world.play(trained.act)))
    return trained
