"""What a shipped pipeline checks: arguments, settings, components and files.

Saving puts this file into `pipeline.py` with `spi_policy.py`, so it needs only torch and NumPy.
"""

import functools
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spi_diffusers.pipelines.values import (
    as_floats,
    as_number,
    as_plain,
    check_batch,
    check_per_observation,
    shown,
    to_numpy,
)

INDEX_FILE = "model_index.json"
#: The entry of the index that holds the SHA-256 of every file of the policy, and of the rest of the index.
#: diffusers ignores it, but downloads it with the index.
CHECKSUMS = "_sha256"

logger = logging.getLogger(__name__)


def make_settings_plain(*parts: Any) -> None:
    """Turn numbers of other libraries in the settings of components into those that a config file holds."""
    for part in parts:
        settings = {} if part is None else {name: (old, as_plain(old)) for name, old in part.config.items()}
        changed = {name: new for name, (old, new) in settings.items() if new is not old}
        if changed:
            part.register_to_config(**changed)


def without_autocast(call: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a pipeline's call: inside the caller's `torch.autocast`, too, it acts as it always does."""

    @functools.wraps(call)
    def own(self: Any, *args: Any, **kwargs: Any) -> Any:
        device = self.normalizer.mean.device.type
        if not torch.is_autocast_enabled(device):
            return call(self, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return call(self, *args, **kwargs)

    return own


def as_numbers(name: str, value: Any, kinds: str = "iuf") -> Any:
    """Numbers of any library as float32, in an array that is checked sooner than a tensor.

    Args:
        name: What messages call them.
        value: A number, a torch tensor, or what NumPy makes an array of.
        kinds: NumPy's letters of the data types that are taken; "b" for true and false.

    Returns:
        An array of its own, of the same shape; of a tensor a tensor, where it was.

    Raises:
        ValueError: As `as_floats`.
    """
    if isinstance(value, Tensor):
        no_bool = value.dtype == torch.bool and "b" not in kinds
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or no_bool:
            kind = f"{value.dtype}, {value.layout}"
            raise ValueError(f"{name} must be a number or a dense array of numbers, got a tensor of {kind}.")
        if value.is_meta or value.is_nested:
            raise ValueError(f"{name} must be a tensor with one block of numbers in memory.")
        return value.detach().to(torch.float32)
    return as_floats(name, value, kinds)


def as_batch(observation: Any, size: int, device: torch.device) -> tuple[Tensor, bool, bool]:
    """Check an observation.

    Args:
        observation: Shape (size,) or (B, size), of any kind that NumPy takes.
        size: Numbers in an observation.
        device: Where to put it.

    Returns:
        The observation as (B, size), float32; whether it was a single one; whether it was no torch tensor.

    Raises:
        ValueError: It has another shape, holds something else than numbers, or NaN or infinity.
    """
    numbers = as_numbers("observation", observation, kinds="biuf")
    check_batch(numbers, size)
    tensor, single = torch.as_tensor(numbers, device=device), numbers.ndim == 1
    return (tensor.unsqueeze(0) if single else tensor), single, not isinstance(observation, Tensor)


def per_observation(name: str, value: Any, batch: int) -> Any:
    """A number, or one per observation, as `as_numbers`: (), (1,) or (B,)."""
    numbers = as_numbers(name, value)
    check_per_observation(name, numbers, batch)
    return numbers


def per_cost(name: str, value: Any, names: Sequence[str], batch: int) -> Any:
    """A number for each of K costs, for all observations or for each of B, as `as_numbers`: (K,) to (B, K).

    Args:
        name: What messages call it.
        value: For one cost a number or (B,); for several (K,), (B, K), or by name one of the former of each.
        names: Of the costs.
        batch: Number B of observations.

    Raises:
        ValueError: It has another shape, names other costs, or is not finite.
    """
    if isinstance(value, Mapping):
        if value.keys() != set(names):
            raise ValueError(f"{name} must name the costs {', '.join(names)}, got {shown(list(value))}.")
        each = [to_numpy(per_observation(f"{name}[{cost!r}]", value[cost], batch)) for cost in names]
        return np.stack(np.broadcast_arrays(*each), axis=-1)
    if len(names) == 1:
        return per_observation(name, value, batch)[..., None]
    count = len(names)
    numbers = as_numbers(name, value)
    if tuple(numbers.shape) not in ((count,), (1, count), (batch, count)):
        raise ValueError(
            f"{name} has shape {tuple(numbers.shape)}; pass {count} numbers, of the costs "
            f"{', '.join(names)}, or ({batch}, {count})."
        )
    if not bool((abs(numbers) < math.inf).all()):
        raise ValueError(f"{name} is NaN or infinite: {shown(value)}.")
    return numbers


def as_generator(generator: Any) -> torch.Generator | None:
    """A source of randomness from itself, or from a seed; ValueError for anything else."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    try:
        return torch.Generator().manual_seed(as_number("generator", generator, 0, whole=True))
    except ValueError:
        raise ValueError(
            "generator must be one torch.Generator for the whole batch, or a seed (a whole number of 0 or "
            f"more), got {shown(generator)}."
        ) from None


def check_given(**components: Any) -> None:
    """Raise ValueError if a component is None."""
    for name, component in components.items():
        if component is None:
            raise ValueError(f"The {name} is missing: a policy cannot act without it.")


def check_finite(**networks: Any) -> None:
    """Raise ValueError if a weight of a network is NaN or infinite."""
    for name, network in networks.items():
        bad = [key for key, value in network.state_dict().items() if not bool(value.isfinite().all())]
        if bad:
            raise ValueError(f"The {name}'s weights are not finite: {bad[0]} ({len(bad)} in all).")


def check_same(key: str, **components: Any) -> None:
    """Raise ValueError if components differ in a setting that they must share."""
    (first, expected), *others = ((name, component.config[key]) for name, component in components.items())
    for name, value in others:
        if value != expected:
            raise ValueError(
                f"The {name}'s {key} is {value}, but the {first}'s is {expected}: these components do not "
                "belong together."
            )


def index_sha256(index: Mapping[str, Any]) -> str:
    """SHA-256 of a `model_index.json`, with the checksums of all other files, but for this very number."""
    others = {name: value for name, value in index[CHECKSUMS].items() if name != INDEX_FILE}
    rest = {**index, CHECKSUMS: others}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def damaged_files(folder: str, index: Mapping[str, Any]) -> list[str]:
    """Files of a policy folder that are not those that were saved, by the checksums in its index.

    Files that are not there are left out: a part of a repository may have been downloaded.
    """
    if CHECKSUMS not in index:
        logger.warning("%s: has no checksums, so damage would not be seen; save it again.", folder)
        return []
    sums = index[CHECKSUMS]
    if not isinstance(sums, dict) or sums.get(INDEX_FILE) != index_sha256(index):
        return [INDEX_FILE]
    damaged = []
    for name in sorted(sums.keys() - {INDEX_FILE}):
        path = os.path.join(folder, name)
        if os.path.isabs(name) or ".." in name.split("/"):
            return [INDEX_FILE]
        if os.path.isfile(path) and _sha256(path) != sums[name]:
            damaged.append(name)
    return damaged


def _sha256(path: str) -> str | None:
    """None where the disk does not give the file back."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def check_origin(component: Any) -> None:
    """Raise ValueError if the policy folder that a component was just loaded from is damaged."""
    folder = os.path.dirname(str(component.config.get("_name_or_path", "")))
    path = os.path.join(folder, INDEX_FILE)
    if folder and os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            damaged = damaged_files(folder, json.load(file))
        if damaged:
            place = os.path.join(folder, damaged[0])
            raise ValueError(
                f"{place} is damaged: its checksum is not the one in {INDEX_FILE}. Get it anew; from the Hub "
                "with force_download=True."
            )
