"""BC, behaviour cloning (Pomerleau 1989): a deterministic policy that imitates the data."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.optim import Optimizer

from spi_diffusers.algorithms.base import Baseline, Batch, PolicySizes
from spi_diffusers.algorithms.networks import ComputeReplica, FusedAdam
from spi_diffusers.config.algorithms import BCConfig
from spi_diffusers.models.deterministic_actor import DeterministicActor


def imitation_loss(predicted: Tensor, action: Tensor) -> Tensor:
    """Mean squared error of the predicted actions, both of shape (B, A)."""
    return (predicted - action).square().mean()


class BC(Baseline):
    """BC in training, and one update of it; which episodes it imitates is a matter of the data.

    Args:
        config: Its settings.
        sizes: Sizes of the task.
        dtype: Compute dtype, float32 or bfloat16; weights and optimiser stay float32.
        reduce_gradients: Averages gradients over processes, in place; None for one process.
        device: Where training runs.
    """

    name: ClassVar[str] = "bc"

    def __init__(
        self,
        config: BCConfig,
        sizes: PolicySizes,
        *,
        dtype: torch.dtype = torch.float32,
        reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
        device: torch.device | str = "cpu",
    ):
        self.actor = DeterministicActor(
            observation_dim=sizes.observation_dim,
            action_dim=sizes.action_dim,
            hidden_dims=list(config.hidden_dims),
        ).to(device)
        self._replica = ComputeReplica(self.actor, dtype, trainable=True)
        self._optimizer = FusedAdam(self.actor.parameters(), lr=config.learning_rate)
        self._reduce_gradients = reduce_gradients

    def update(self, batch: Batch, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One training step; returns the loss."""
        loss = imitation_loss(self._replica.module(batch.observation), batch.action)
        loss.backward()
        self._replica.hand_over_gradients()
        if self._reduce_gradients is not None:
            self._reduce_gradients([p.grad for p in self._replica.masters if p.grad is not None])
        self._optimizer.fused_step()
        self._replica.clear_gradients()
        self._replica.refresh()
        return {"policy/imitation_loss": loss.detach()}

    def modules(self) -> dict[str, nn.Module]:
        """Everything to checkpoint."""
        return {"actor": self.actor}

    def optimizers(self) -> dict[str, Optimizer]:
        """The actor's optimiser."""
        return {"actor": self._optimizer}

    def policy_components(self) -> dict[str, ModelMixin]:
        """What acts."""
        return {"actor": self.actor}

    def refresh_replicas(self) -> None:
        """Copy the weights into the compute replica; call it after loading weights."""
        self._replica.refresh()
