"""Copies of a network kept beside it: low-precision compute replicas and moving averages."""

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def frozen_copy(module: ModuleT) -> ModuleT:
    """A copy whose parameters never receive gradients."""
    return copy.deepcopy(module).requires_grad_(False)


class ComputeReplica:
    """A copy of `master` in the compute dtype that runs forward and backward in its place.

    Weights are cast once per update instead of once per use. The optimiser keeps working on the float32
    master. With a float32 compute dtype a trainable replica is the master itself and nothing is copied.

    Args:
        master: Network whose float32 parameters are optimised and saved.
        dtype: Dtype of the computation, float32 or bfloat16.
        trainable: Whether gradients flow into the replica's parameters.

    Attributes:
        module: The replica, to call.
        masters: The master's parameters, in the order of `parameters()`.
    """

    def __init__(self, master: nn.Module, dtype: torch.dtype, trainable: bool):
        self.masters: list[Tensor] = list(master.parameters())
        self._is_master = dtype == torch.float32 and trainable
        # nn.Module.to, because ModelMixin.to warns about casts, even where no module asks for float32.
        self.module = master if self._is_master else nn.Module.to(copy.deepcopy(master), dtype)
        if not self._is_master:
            self.module.requires_grad_(trainable)
        self._parameters: list[Tensor] = list(self.module.parameters())

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the master's weights into the replica."""
        if not self._is_master:
            torch._foreach_copy_(self._parameters, self.masters)

    @torch.no_grad()
    def hand_over_gradients(self) -> None:
        """Move the replica's gradients to the master; a parameter without one gets none."""
        if self._is_master:
            return
        received, given = [], []
        for parameter, master in zip(self._parameters, self.masters, strict=True):
            if parameter.grad is None:
                master.grad = None
                continue
            if master.grad is None:
                master.grad = torch.empty_like(master)
            received.append(master.grad)
            given.append(parameter.grad)
            parameter.grad = None
        # Into the same memory at every update: fresh large tensors would cost page faults.
        torch._foreach_copy_(received, given)

    def clear_gradients(self) -> None:
        """Drop gradients that the next backward pass would add to."""
        if self._is_master:
            for parameter in self.masters:
                parameter.grad = None


@torch.no_grad()
def polyak_update(targets: Iterable[Tensor], sources: Iterable[Tensor], rate: float) -> None:
    """target <- (1 - rate) * target + rate * source, for every pair of tensors."""
    torch._foreach_lerp_(list(targets), list(sources), rate)
