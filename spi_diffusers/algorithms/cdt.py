"""CDT, the constrained decision transformer: actions that lead to the return and cost that it is told.

Source: Liu et al., "Constrained Decision Transformer for Offline Safe Reinforcement Learning" (2023), with
the settings of the DSRL benchmark. It learns no values: a causal transformer imitates each action of the
data, given what the episode went on to earn and to cost, and the steps before. When it acts, it is told what
it shall earn and may cost: a target return and the cost limit.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.optim import Adam, Optimizer

from spi_diffusers.algorithms.base import Algorithm, Inputs, Metrics, PolicySizes
from spi_diffusers.algorithms.networks import Compute, Learner
from spi_diffusers.config.algorithm_settings import CDTConfig
from spi_diffusers.data.costs import as_unit
from spi_diffusers.data.episodes import EpisodeTable
from spi_diffusers.models.decision_transformer import DecisionTransformer


@dataclass(frozen=True)
class Windows(Inputs):
    """What one update consumes: B windows of W steps; see `Algorithm.window`.

    Attributes:
        observation: Normalized, (B, W, O).
        action: In [-1, 1], (B, W, A).
        cost: Of the step, (B, W).
        return_to_go: Return from the step on, (B, W).
        cost_to_go: Cost from the step on, (B, W).
        step: Number of the step in its episode, (B, W) int64.
        valid: Whether the step is there, (B, W) bool.
    """

    observation: Tensor
    action: Tensor
    cost: Tensor
    return_to_go: Tensor
    cost_to_go: Tensor
    step: Tensor
    valid: Tensor


def frontier(episodes: EpisodeTable) -> tuple[list[float], list[float]]:
    """Costs and returns of the episodes of which none that costs no more earns as much; both rise."""
    costs, returns = [], []
    best = -math.inf
    pairs = zip(episodes.cost_return.tolist(), (-episodes.return_).tolist(), strict=True)
    for cost, negative in sorted(pairs):  # of one cost, the highest return comes first
        if -negative > best:
            best = -negative
            costs.append(cost)
            returns.append(best)
    return costs, returns


def gaussian_terms(mean: Tensor, log_std: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """-log p(a) and the entropy of independent Gaussians, each a mean over action dimensions, (...).

    Args:
        mean: Of the Gaussians, (..., A).
        log_std: Logarithm of their standard deviation, (..., A).
        action: Recorded, (..., A).
    """
    gaussians = Normal(mean, log_std.exp(), validate_args=False)  # a check would wait for the device
    return -gaussians.log_prob(action).mean(-1), gaussians.entropy().mean(-1)


def mean_of_valid(values: Tensor, valid: Tensor) -> Tensor:
    """The mean of values (B, W) where they are valid, (B, W) bool; without a wait for how many are."""
    weight = valid.float()
    return (values * weight).sum() / weight.sum()


class Temperature(nn.Module):
    """The logarithm of the entropy's weight, as a module so that a checkpoint holds it."""

    def __init__(self, initial: float):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(initial)))


class CDT(Algorithm):
    """CDT in training.

    Args:
        config: Its settings.
        sizes: Sizes of the task, length of its episodes, and the episodes of the data.
        compute: Compute dtype, device and processes.
    """

    inputs_class = Windows

    def __init__(self, config: CDTConfig, sizes: PolicySizes, compute: Compute):
        assert sizes.episodes is not None
        self.config, self._seed = config, torch.initial_seed()
        costs, returns = frontier(sizes.episodes)
        self.actor = DecisionTransformer(
            observation_dim=sizes.observation_dim,
            action_dim=sizes.action_dim,
            max_episode_steps=sizes.max_episode_steps,
            context=config.context,
            embedding_dim=config.embedding_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout=config.dropout,
            stochastic=config.stochastic,
            return_scale=as_unit(float(sizes.episodes.return_.abs().max())),
            cost_scale=as_unit(float(sizes.episodes.cost_return.max())),
            frontier_costs=costs,
            frontier_returns=returns,
        ).to(compute.device)
        self._actor = Learner(self.actor, config.learning_rate, compute, max_grad_norm=config.max_grad_norm)
        self._actor.module.train()
        self.learners = {"actor": self._actor}
        #: Per action dimension, as the entropy is.
        self.target_entropy = -float(sizes.action_dim)
        self.temperature = Temperature(config.initial_temperature).to(compute.device)
        self._temperature_optimizer: Optimizer = Adam(
            self.temperature.parameters(), lr=config.temperature_learning_rate
        )
        if config.stochastic:
            self.state = {"temperature": self.temperature}
        self._reduce = compute.reduce_gradients

    @classmethod
    def columns(cls, config: CDTConfig) -> tuple[str, ...]:
        """Those of `Windows`."""
        return ("observation", "action", "cost", "return_to_go", "cost_to_go", "step", "valid")

    @classmethod
    def window(cls, config: CDTConfig) -> int:
        """The policy's context."""
        return config.context

    def losses(self, inputs: Windows) -> tuple[Tensor, Tensor | None, Metrics]:
        """The policy's loss, the mean entropy of its actions where they are random, and metrics."""
        config, valid = self.config, inputs.valid
        # By the update, as all randomness must be the same in a resumed run.
        with seeded(self._seed + self.updates, inputs.action.device):
            mean, log_std, costly = self._actor.module(
                inputs.observation, inputs.action, inputs.return_to_go, inputs.cost_to_go, inputs.step
            )
        entropy, metrics = None, {}
        if log_std is None:
            loss = mean_of_valid((mean - inputs.action).square().mean(-1), valid)
        else:
            surprise, spread = gaussian_terms(mean, log_std, inputs.action)
            temperature, spread = self.temperature.log.detach().exp(), mean_of_valid(spread, valid)
            loss, entropy = mean_of_valid(surprise, valid) - temperature * spread, spread.detach()
            metrics = {"policy/entropy": entropy, "policy/temperature": temperature}
        has_cost = (inputs.cost > 0).float()
        cost_losses = nn.functional.binary_cross_entropy_with_logits(costly, has_cost, reduction="none")
        cost_loss = mean_of_valid(cost_losses, valid)
        metrics |= {"policy/imitation_loss": loss.detach(), "policy/cost_loss": cost_loss.detach()}
        return loss + config.cost_weight * cost_loss, entropy, metrics

    def update(self, inputs: Windows, upcoming: Windows) -> tuple[Metrics, Windows]:
        """One training step; returns metrics, and `upcoming` as it is."""
        loss, entropy, metrics = self.losses(inputs)
        self._actor.step(loss)
        if entropy is not None:
            self._update_temperature(entropy)
        self.updates += 1
        return metrics, upcoming

    def _update_temperature(self, entropy: Tensor) -> None:
        """Weigh the entropy less where it is above the target, more below."""
        if self._reduce is not None:
            self._reduce([entropy])
        self._temperature_optimizer.zero_grad()
        (self.temperature.log.exp() * (entropy - self.target_entropy)).backward()
        self._temperature_optimizer.step()

    def optimizers(self) -> dict[str, Optimizer]:
        """The policy's, and the temperature's where actions are random."""
        own = {"temperature": self._temperature_optimizer} if self.config.stochastic else {}
        return {**super().optimizers(), **own}


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own randomness follows from a seed in here, and is as it was behind it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
