"""BC, behavior cloning (Pomerleau 1989): a deterministic policy that imitates the data."""

from collections.abc import Mapping

from torch import Tensor

from spi_diffusers.algorithms.base import Algorithm, Batch, Metrics, PolicySizes
from spi_diffusers.algorithms.networks import Compute, Learner
from spi_diffusers.config.algorithm_settings import BCConfig
from spi_diffusers.models.actors import DeterministicActor


def imitation_loss(predicted: Tensor, action: Tensor) -> Tensor:
    """Mean squared error of the predicted actions, both of shape (B, A)."""
    return (predicted - action).square().mean()


class BC(Algorithm):
    """BC in training: it imitates all episodes.

    Args:
        config: Its settings.
        sizes: Sizes of the task.
        compute: Compute dtype, device and processes.
    """

    def __init__(self, config: BCConfig, sizes: PolicySizes, compute: Compute):
        self.config = config
        self.actor = DeterministicActor(
            observation_dim=sizes.observation_dim,
            action_dim=sizes.action_dim,
            hidden_dims=list(config.hidden_dims),
        ).to(compute.device)
        self.learners = {"actor": Learner(self.actor, config.learning_rate, compute)}

    def learn(self, batch: Batch, noise: Mapping[str, Tensor]) -> Metrics:
        """One training step; returns the loss."""
        learner = self.learners["actor"]
        loss = imitation_loss(learner.module(batch.observation), batch.action)
        learner.step(loss)
        return {"policy/imitation_loss": loss.detach()}


class BCSafe(BC):
    """BC-Safe: it imitates the episodes within the cost limit."""

    safe_episodes_only = True
