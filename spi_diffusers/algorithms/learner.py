"""One network in training: compute replica, optimiser and, where wanted, a slowly following target."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from spi_diffusers.algorithms.optimization import FusedAdam
from spi_diffusers.algorithms.replicas import ComputeReplica, frozen_copy, polyak_update

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Learner(Generic[ModuleT]):
    """A network, computed in a compute dtype and optimised in float32 by Adam.

    Args:
        master: Network to train in place; its weights stay float32.
        learning_rate: Of Adam.
        dtype: Compute dtype, float32 or bfloat16.
        target_update_rate: Polyak rate of the target network; None for a network without one.
        reduce_gradients: Averages a list of gradients over processes, in place; None for one process.

    Attributes:
        master: The trained network.
        target: Its target network in float32, None without one.
        module: What computes with the trained weights.
        target_module: What computes with the target's weights.
        optimizer: Adam.
    """

    module: ModuleT
    target_module: ModuleT

    def __init__(
        self,
        master: ModuleT,
        learning_rate: float,
        dtype: torch.dtype,
        *,
        target_update_rate: float | None = None,
        reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
    ):
        self.master = master
        self.optimizer = FusedAdam(master.parameters(), lr=learning_rate)
        self._replica = ComputeReplica(master, dtype, trainable=True)
        self.module = cast(ModuleT, self._replica.module)
        self._parameters = list(self.module.parameters())
        self._rate = target_update_rate
        self._reduce_gradients = reduce_gradients
        self.target: ModuleT | None = None
        if target_update_rate is not None:
            self.target = frozen_copy(master)
            self._target_replica = ComputeReplica(self.target, dtype, trainable=False)
            self.target_module = cast(ModuleT, self._target_replica.module)

    def step(self, loss: Tensor) -> None:
        """Minimise a loss by one step. Of all networks that the loss went through, only this one changes."""
        loss.backward(inputs=self._parameters)
        self._replica.hand_over_gradients()
        if self._reduce_gradients is not None:
            self._reduce_gradients([p.grad for p in self._replica.masters if p.grad is not None])
        self.optimizer.fused_step()
        self._replica.clear_gradients()
        self._replica.refresh()

    def update_target(self) -> None:
        """Let the target follow the trained weights."""
        assert self.target is not None
        assert self._rate is not None
        polyak_update(self._target_replica.masters, self._replica.masters, self._rate)
        self._target_replica.refresh()

    def refresh(self) -> None:
        """Copy the weights into the compute replicas; call it after loading weights."""
        self._replica.refresh()
        if self.target is not None:
            self._target_replica.refresh()
