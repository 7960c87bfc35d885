"""Gradient clipping and Adam with little overhead a step, for networks whose steps take milliseconds.

Both do, bit for bit, what their counterparts in torch do. Those look up, check and group all tensors anew at
every step, in Python; with critics and policy in two threads, that holds up the other thread as well.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def clip_gradients(parameters: Sequence[Tensor], max_norm: float) -> None:
    """Scale gradients in place so that their norm is at most `max_norm`: `torch.nn.utils.clip_grad_norm_`.

    Args:
        parameters: Parameters on one device; those without a gradient are left alone.
        max_norm: Largest norm of all gradients together.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))


class FusedAdam(torch.optim.Adam):
    """`torch.optim.Adam(..., fused=True)` with a step that remembers which tensors it is about.

    Args:
        parameters: Parameters of one dtype on one device.
        lr: Learning rate; it may be changed in `param_groups` between two steps.
    """

    #: Averages, squares and numbers of steps; a default of the class, as copies of an optimizer lack it.
    _tensors: tuple[list[Tensor], ...] | None = None

    def __init__(self, parameters: Any, lr: float):
        super().__init__(parameters, lr=lr, fused=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load another state, whose tensors replace those that are remembered."""
        super().load_state_dict(state_dict)
        self._tensors = None

    @torch.no_grad()
    def fused_step(self) -> None:
        """What `step` does, without its hooks; `step` itself at first and where a gradient is missing."""
        parameters = self.param_groups[0]["params"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self._tensors is None or len(gradients) < len(parameters):
            self.step()
            self._remember(parameters)
            return
        group = self.param_groups[0]
        averages, squares, steps = self._tensors
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            parameters,
            gradients,
            averages,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _remember(self, parameters: Sequence[Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        if all(states):
            slots = ("exp_avg", "exp_avg_sq", "step")
            self._tensors = tuple([state[slot] for state in states] for slot in slots)
