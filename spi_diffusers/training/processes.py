"""What the processes of a run tell each other: gradients, metrics, stop signals, and slices of a batch."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from spi_diffusers.algorithms.base import Inputs
from spi_diffusers.training.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from spi_diffusers.training.sampler import batch_dim, take_slice


def average_gradients(accelerator: Accelerator, gradients: Sequence[Tensor]) -> None:
    """Average gradients over processes, in place, in one message."""
    flat = accelerator.reduce(torch.cat([g.reshape(-1) for g in gradients]), reduction="mean")
    parts = flat.split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def agree(
    accelerator: Accelerator, metrics: Mapping[str, Tensor], stop_signal: int | None
) -> tuple[dict[str, float], int | None]:
    """Metrics averaged over processes, and the stop signal that any of them has received."""
    if accelerator.num_processes == 1:
        return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True)), stop_signal
    shared = torch.stack([*metrics.values(), torch.tensor(0.0, device=accelerator.device)])
    shared[-1] = stop_signal or 0
    *values, _ = accelerator.reduce(shared, reduction="mean").tolist()
    # Not reduce(reduction="max"), which accelerate before 1.14 takes for a sum.
    stop = int(accelerator.gather(shared[-1:]).max().item())
    return dict(zip(metrics, values, strict=True)), stop or None


def newest_checkpoint(accelerator: Accelerator, store: CheckpointStore) -> Checkpoint | None:
    """The newest complete checkpoint by the main process, which on all processes is the same step's.

    Raises:
        CheckpointError: The main process finds damaged ones only, or a process cannot read that step's: its
            node does not share the run's folder.
    """
    if accelerator.num_processes == 1:
        return store.load_newest()
    found: Checkpoint | None = None
    shared: list[int | str | None] = [None]
    if accelerator.is_main_process:
        try:
            found = store.load_newest()
            shared = [None if found is None else found.step]
        except CheckpointError as error:
            shared = [str(error)]
    broadcast_object_list(shared)
    (step,) = shared
    if isinstance(step, str):
        raise CheckpointError(step)
    if accelerator.is_main_process or step is None:
        return found
    return store.load(step)


def gather_inputs(accelerator: Accelerator, inputs: Inputs) -> Inputs:
    """The global batch's inputs from every process's slice."""
    if accelerator.num_processes == 1:
        return inputs
    whole = {}
    for name, value in inputs.tensors().items():
        dim = batch_dim(name)
        if dim is not None and value.numel():
            gathered = accelerator.gather(value.movedim(dim, 0).contiguous())
            value = gathered.movedim(0, dim).contiguous()
        elif dim is not None:  # nothing to send, but the shape is the whole batch's
            value = torch.cat([value] * accelerator.num_processes, dim)
        whole[name] = value
    return type(inputs).from_tensors(whole)


def scatter_inputs(accelerator: Accelerator, inputs: Inputs) -> Inputs:
    """This process's slice of the global batch's inputs, on its device."""
    rank, world_size = accelerator.process_index, accelerator.num_processes
    parts = {}
    for name, value in inputs.tensors().items():
        part = take_slice(name, value, rank, world_size)
        parts[name] = part if batch_dim(name) is None else part.to(accelerator.device)
    return type(inputs).from_tensors(parts)
