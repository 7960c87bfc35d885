"""Everything that training goes on from, as a flat mapping of named tensors, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from spi_diffusers.algorithms.base import Algorithm, Inputs
from spi_diffusers.training.checkpoint import CheckpointError


def training_tensors(algorithm: Algorithm, pending: Inputs, generator_state: Tensor) -> dict[str, Tensor]:
    """Collect the tensors of a checkpoint.

    Args:
        algorithm: Networks and optimisers.
        pending: The next update's inputs (of the global batch), with their next action.
        generator_state: State of the sampler's generator after it drew them.
    """
    tensors = {"generator": generator_state}
    for name, module in algorithm.modules().items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in _named_optimizers(algorithm).items():
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{slot}": value for slot, value in slots.items()}
    return tensors | {f"pending/{name}": value for name, value in pending.tensors().items()}


def load_training_tensors(algorithm: Algorithm, tensors: Mapping[str, Tensor]) -> tuple[Inputs, Tensor]:
    """Put a checkpoint's tensors back into freshly built networks and optimisers.

    Args:
        algorithm: Built from the same configuration.
        tensors: What `training_tensors` returned.

    Returns:
        The next update's inputs (of the global batch) and the generator's state.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another shape.
    """
    try:
        for name, module in algorithm.modules().items():
            module.load_state_dict(_part(tensors, f"{name}/"))
        for name, optimizer in _named_optimizers(algorithm).items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _part(tensors, f"{name}/").items():
                index, slot = key.split("/")
                state.setdefault(int(index), {})[slot] = value
            groups = optimizer.state_dict()["param_groups"]
            stateful = [g for g in groups if not isinstance(optimizer, torch.optim.SGD) or g["momentum"]]
            expected = [index for group in stateful for index in group["params"]]
            if sorted(state) != expected:
                raise CheckpointError(f"{name}: has states for parameters {sorted(state)}, needs {expected}.")
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        pending: Inputs = algorithm.inputs_class.from_tensors(_part(tensors, "pending/"))
        generator_state = tensors["generator"]
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"The checkpoint does not fit the networks: {error}") from error
    algorithm.refresh_replicas()
    return pending, generator_state


def _named_optimizers(algorithm: Algorithm) -> dict[str, torch.optim.Optimizer]:
    """By names that no module has: a checkpoint holds both side by side."""
    modules = algorithm.modules()
    named = algorithm.optimizers()
    return {f"{name}_optimizer" if name in modules else name: value for name, value in named.items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
