"""Everything that training goes on from, as a flat mapping of named tensors, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from spi_diffusers.algorithms.spi import SPI, StepInputs
from spi_diffusers.training.checkpoint import CheckpointError

_MODULES = ("noise_model", "ema_noise_model", "critics", "target_critics")
_OPTIMIZERS = ("critic_optimizer", "policy_optimizer")


def training_tensors(algorithm: SPI, pending: StepInputs, generator_state: Tensor) -> dict[str, Tensor]:
    """Collect the tensors of a checkpoint.

    Args:
        algorithm: Networks and optimisers. The critics are saved as the stack that owns their parameters.
        pending: The next update's inputs (of the global batch), with their next action.
        generator_state: State of the sampler's generator after it drew them.
    """
    tensors = {"generator": generator_state}
    for name in _MODULES:
        module: torch.nn.Module = getattr(algorithm, name)
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for name in _OPTIMIZERS:
        state = getattr(algorithm, name).state_dict()["state"]
        for index, slots in state.items():
            tensors |= {f"{name}/{index}/{slot}": value for slot, value in slots.items()}
    return tensors | {f"pending/{name}": value for name, value in pending.tensors().items()}


def load_training_tensors(algorithm: SPI, tensors: Mapping[str, Tensor]) -> tuple[StepInputs, Tensor]:
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
        for name in _MODULES:
            getattr(algorithm, name).load_state_dict(_part(tensors, f"{name}/"))
        for name in _OPTIMIZERS:
            optimizer: torch.optim.Optimizer = getattr(algorithm, name)
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _part(tensors, f"{name}/").items():
                index, slot = key.split("/")
                state.setdefault(int(index), {})[slot] = value
            groups = optimizer.state_dict()["param_groups"]
            expected = [index for group in groups for index in group["params"]]
            if sorted(state) != expected:
                raise CheckpointError(f"{name}: has states for parameters {sorted(state)}, needs {expected}.")
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        pending = StepInputs(**_part(tensors, "pending/"))
        generator_state = tensors["generator"]
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"The checkpoint does not fit the networks: {error}") from error
    algorithm.refresh_replicas()
    return pending, generator_state


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
