"""Networks side by side, and training them fast.

A reader of an algorithm needs `Learner` only; the rest is machinery for speed. With networks whose steps take
milliseconds, looking up, casting and launching costs as much as the arithmetic, so twins and critics are
computed in one batched pass, weights are cast once per update, and Adam and clipping remember which tensors
they are about. Nothing here changes a result.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from spi_diffusers.models.critics import BatchedLinear, TwinCritic

ModuleT = TypeVar("ModuleT", bound=nn.Module)
FirstT = TypeVar("FirstT")
SecondT = TypeVar("SecondT")

# ---- networks side by side


class CriticStack(nn.Module):
    """All twins of several critics side by side in one batched pass, sharing memory with the critics.

    The stack owns the parameters; each critic's own parameters become views into them, so the critics that
    are saved are always up to date.

    Args:
        critics: C critics of one architecture.

    Raises:
        ValueError: If the architectures differ.
    """

    def __init__(self, critics: Sequence[TwinCritic]):
        super().__init__()
        for key, value in critics[0].config.items():
            for critic in critics[1:]:
                if not key.startswith("_") and critic.config[key] != value:
                    raise ValueError(
                        f"Critics in a stack must share their architecture, but {key} is {value} for one and "
                        f"{critic.config[key]} for another."
                    )
        self._num_critics = len(critics)
        layers: list[nn.Module] = []
        for parts in zip(*(critic.net for critic in critics), strict=True):
            if isinstance(parts[0], BatchedLinear):
                layers.append(self._stack(parts))
            else:
                layers.append(parts[0])
        self.net = nn.Sequential(*layers)

    @staticmethod
    def _stack(parts: Sequence[BatchedLinear]) -> BatchedLinear:
        _, width_in, width_out = parts[0].weight.shape
        stacked = BatchedLinear(2 * len(parts), width_in, width_out).to(parts[0].weight.device)
        with torch.no_grad():
            for name in ("weight", "bias"):
                target = getattr(stacked, name)
                for index, part in enumerate(parts):
                    own = getattr(part, name)
                    view = target[2 * index : 2 * index + 2]
                    view.copy_(own)
                    own.data = view.data
        return stacked

    def forward(self, inputs: Tensor) -> Tensor:
        """Values of every critic.

        Args:
            inputs: Observation, action and safety weight side by side, shape (B, D).

        Returns:
            Values of shape (C, 2, B).
        """
        inputs = inputs.to(next(self.parameters()).dtype)
        values = self.net(inputs.expand(2 * self._num_critics, -1, -1)).squeeze(-1)
        return values.float().unflatten(0, (self._num_critics, 2))


# ---- copies of a network: compute replicas in low precision, targets and moving averages


def frozen_copy(module: ModuleT) -> ModuleT:
    """A copy whose parameters never receive gradients."""
    return copy.deepcopy(module).requires_grad_(False)


class ComputeReplica:
    """A copy of `master` in the compute dtype that runs forward and backward in its place.

    Weights are cast once per update instead of once per use. The optimizer keeps working on the float32
    master. With a float32 compute dtype a trainable replica is the master itself and nothing is copied.

    Args:
        master: Network whose float32 parameters are optimized and saved.
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


# ---- Adam and clipping with little overhead a step


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


# ---- a network in training


@dataclass(frozen=True)
class Compute:
    """Where and how networks are trained.

    Attributes:
        dtype: Compute dtype, float32 or bfloat16; weights and optimizers stay float32.
        device: Where training runs.
        reduce_gradients: Averages a list of tensors over processes, in place; None for one process.
        overlap: Run the two halves of an update in two threads, where an algorithm has halves.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None
    overlap: bool = False


class Learner(Generic[ModuleT]):
    """A network, computed in a compute dtype and optimized in float32 by Adam.

    Args:
        master: Network to train in place; its weights stay float32.
        learning_rate: Of Adam.
        compute: Compute dtype and processes.
        follows: Whether a target network, or a moving average, follows the weights.
        max_grad_norm: Clip of the gradient's norm; 0 switches it off.

    Attributes:
        master: The trained network.
        target: What follows it, in float32; None without one.
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
        compute: Compute,
        *,
        follows: bool = False,
        max_grad_norm: float = 0.0,
    ):
        self.master = master
        self.optimizer = FusedAdam(master.parameters(), lr=learning_rate)
        self._replica = ComputeReplica(master, compute.dtype, trainable=True)
        self.module = cast(ModuleT, self._replica.module)
        self._parameters = list(self.module.parameters())
        self._max_grad_norm = max_grad_norm
        self._reduce_gradients = compute.reduce_gradients
        self.target: ModuleT | None = None
        if follows:
            self.target = frozen_copy(master)
            self._target_replica = ComputeReplica(self.target, compute.dtype, trainable=False)
            self.target_module = cast(ModuleT, self._target_replica.module)

    def step(self, loss: Tensor) -> None:
        """Minimize a loss by one step. Of all networks that the loss went through, only this one changes."""
        loss.backward(inputs=self._parameters)
        self._replica.hand_over_gradients()
        masters = self._replica.masters
        if self._reduce_gradients is not None:
            self._reduce_gradients([p.grad for p in masters if p.grad is not None])
        if self._max_grad_norm > 0:
            clip_gradients(masters, self._max_grad_norm)
        self.optimizer.fused_step()
        self._replica.clear_gradients()
        self._replica.refresh()

    def update_target(self, rate: float) -> None:
        """target <- (1 - rate) * target + rate * trained weights."""
        polyak_update(self._target_replica.masters, self._replica.masters, rate)
        self._target_replica.refresh()

    def refresh(self) -> None:
        """Copy the weights into the compute replicas; call it after loading weights."""
        self._replica.refresh()
        if self.target is not None:
            self._target_replica.refresh()


class Halves:
    """Runs the two halves of an update, one after the other or side by side, with the same result.

    Args:
        overlap: Run one half in a thread of its own.
    """

    def __init__(self, overlap: bool):
        self._pool = None
        if overlap:
            # A new thread learns torch's number of threads only when asked for it. Without, its first matrix
            # product would start OpenMP workers of its own, which slow everything down from then on.
            self._pool = ThreadPoolExecutor(1, "second-half", initializer=torch.get_num_threads)

    def run(self, first: Callable[[], FirstT], second: Callable[[], SecondT]) -> tuple[FirstT, SecondT]:
        """The results of both; neither may write what the other one reads."""
        if self._pool is None:
            return first(), second()
        aside = self._pool.submit(second)
        return first(), aside.result()
