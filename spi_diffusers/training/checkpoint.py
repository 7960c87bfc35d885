"""Training checkpoints: complete or not there, checked when read, and never a pickle.

`output_dir/checkpoints/step-00010000/` holds `training_state.safetensors` (every tensor that training goes
on from) and `training_state.json` (counters, and size and SHA-256 of the tensor file). Both are written to a
hidden folder beside, flushed to disk, and renamed, so a kill at any moment leaves complete checkpoints only.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from spi_diffusers.algorithms.base import Algorithm, Inputs
from spi_diffusers.files import (
    folder_aside,
    read_json,
    remove_folder,
    sync_folder,
    to_json,
    write_durably,
)

logger = logging.getLogger(__name__)

TENSORS_FILE = "training_state.safetensors"
STATE_FILE = "training_state.json"
FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d+)")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; earlier ones are intact."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        step: Number of updates done.
        tensors: All tensors, on the CPU.
        state: Everything else, as JSON data.
        folder: Where it was read from.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    folder: Path


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: The run's `checkpoints` folder; made on the first save.
        keep: Number of newest checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = Path(folder)
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, oldest first."""
        if not self.folder.is_dir():
            return []
        matches = ((_NAME.fullmatch(entry.name), entry) for entry in self.folder.iterdir())
        return sorted(int(match.group(1)) for match, entry in matches if match and entry.is_dir())

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove those of later steps, and those beyond the newest `keep`.

        Raises:
            CheckpointWriteError: The disk is full or cannot be written. Earlier checkpoints are intact and
                nothing is left behind.
        """
        target = self.path(step)
        try:
            # Parameters may be views into one shared buffer; safetensors wants tensors of their own.
            payload = save_tensors(
                {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
            )
            files = {TENSORS_FILE: {"size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}}
            content = {"format_version": FORMAT_VERSION, "step": step, **state, "files": files}
            with folder_aside(target, replace=True) as aside:
                write_durably(aside / TENSORS_FILE, payload)
                write_durably(aside / STATE_FILE, to_json({**content, "sha256": _digest(content)}))
                sync_folder(aside)
        except OSError as error:
            older = self.steps()
            intact = (
                f"The checkpoint of step {older[-1]} is intact: free some space and go on with --resume."
                if older
                else "No earlier checkpoint was made."
            )
            raise CheckpointWriteError(
                error.errno,
                f"{target}: the checkpoint cannot be written: {error.strerror or error}. {intact}",
            ) from error
        # Those of later steps are damaged, and resuming has passed them over; by their numbers they would
        # count as the newest, and push this one out.
        for overtaken in [later for later in self.steps() if later > step]:
            remove_folder(self.path(overtaken))
        for old in self.steps()[: -self.keep]:
            remove_folder(self.path(old))
        return target

    def load(self, step: int) -> Checkpoint:
        """Read one checkpoint and verify it.

        Raises:
            CheckpointError: A file is missing, truncated or changed, or of another format.
        """
        folder = self.path(step)
        content = self._read_state(folder / STATE_FILE)
        path = folder / TENSORS_FILE
        expected = content["files"][TENSORS_FILE]
        try:
            payload = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
        if len(payload) != expected["size"]:
            raise CheckpointError(f"{path}: has {len(payload)} bytes instead of {expected['size']}.")
        if hashlib.sha256(payload).hexdigest() != expected["sha256"]:
            raise CheckpointError(f"{path}: its content has changed (the SHA-256 does not match).")
        try:
            tensors = load_tensors(payload)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: is not a safetensors file: {error}.") from error
        return Checkpoint(content["step"], tensors, content, folder)

    @staticmethod
    def _read_state(path: Path) -> dict[str, Any]:
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(str(error)) from error
        if content.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(f"{path}: is not a checkpoint of format version {FORMAT_VERSION}.")
        if content.pop("sha256", None) != _digest(content):
            raise CheckpointError(f"{path}: its content has changed (the SHA-256 does not match).")
        return content

    def load_newest(self) -> Checkpoint | None:
        """Read the newest complete checkpoint, going back past damaged ones; None if there is none at all.

        Raises:
            CheckpointError: There are checkpoints, and every one is damaged.
        """
        steps = self.steps()
        problems = []
        for step in reversed(steps):
            try:
                return self.load(step)
            except CheckpointError as error:
                logger.warning("Damaged checkpoint, going back to the one before: %s", error)
                problems.append(str(error))
        if problems:
            raise CheckpointError(f"No complete checkpoint is left in {self.folder}: {' '.join(problems)}")
        return None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


# ---- everything that training goes on from, as named tensors, and back


def training_tensors(algorithm: Algorithm, pending: Inputs, generator_state: Tensor) -> dict[str, Tensor]:
    """Collect the tensors of a checkpoint.

    Pending are the inputs of the next update (of the global batch), with their next action; the state is that
    of the sampler's generator after it drew them.
    """
    tensors = {"generator": generator_state}
    for name, module in algorithm.modules().items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in algorithm.optimizers().items():
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}_optimizer/{index}/{slot}": value for slot, value in slots.items()}
    return tensors | {f"pending/{name}": value for name, value in pending.tensors().items()}


def load_training_tensors(algorithm: Algorithm, tensors: Mapping[str, Tensor]) -> tuple[Inputs, Tensor]:
    """Put what `training_tensors` returned back; gives the pending inputs and the generator's state.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another shape.
    """
    try:
        for name, module in algorithm.modules().items():
            module.load_state_dict(_part(tensors, f"{name}/"))
        for name, optimizer in algorithm.optimizers().items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _part(tensors, f"{name}_optimizer/").items():
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
    algorithm.refresh()
    return pending, generator_state


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with NaN or infinite values, or None."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return name
    return None
