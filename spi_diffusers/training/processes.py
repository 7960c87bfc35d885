"""What a run asks of the machine: its processes and what they tell each other, threads."""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list
from torch import Tensor

from spi_diffusers.algorithms.base import Draw, Inputs, algorithm_class
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.data.simulators import package_versions
from spi_diffusers.locks import FolderInUseError, held
from spi_diffusers.training.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from spi_diffusers.training.run_folder import saved_config
from spi_diffusers.training.sampler import take_slice

#: Which extra of this package installs a tracker.
_TRACKER_EXTRAS = {"tensorboard": "tracking", "trackio": "trackio", "wandb": "wandb"}


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Processes and device as the launcher and the configuration say.

    Mixed precision is the algorithm's own (weights are cast once per update), so accelerate's stays off.
    """
    check_trackers(config.trackers)
    output_dir = Path(str(config.output_dir))
    # Without `cpu`, accelerate ignores torchrun on a machine that has no GPU: each process trains alone.
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.accelerator.is_available())
    accelerator = Accelerator(
        cpu=on_cpu,
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(
            project_dir=str(output_dir), logging_dir=str(output_dir / "tensorboard")
        ),
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but accelerate set up {accelerator.num_processes}: each "
            "would train alone, in the same folder. Check the launcher, or set --device cpu."
        )
    return accelerator


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed before any work is done.

    Raises:
        ImportError: Naming the tracker and the extra that installs it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"tracker '{name}' is not installed: pip install 'spi-diffusers[{_TRACKER_EXTRAS[name]}]', "
                "or leave it out of trackers (metrics.jsonl is always written)."
            )


def start_trackers(accelerator: Accelerator, config: TrainConfig, step: int) -> None:
    """Start the trackers of a run that goes on after `step` updates."""
    if not config.trackers:
        return
    folder = Path(str(config.output_dir))
    accelerator.init_trackers(
        "spi-diffusers",
        config={name: str(value) for name, value in saved_config(config).items()},
        init_kwargs={
            "tensorboard": {"purge_step": step + 1},  # a resumed run repeats no points
            "trackio": {"name": folder.name, "resume": "allow"},
            "wandb": {"name": folder.name, "dir": str(folder), "resume": "allow"},
        },
    )


def training_versions() -> dict[str, str]:
    """Versions of what training's numbers depend on."""
    return package_versions("torch", "diffusers", "accelerate", "numpy", "safetensors")


@contextmanager
def held_by_all(accelerator: Accelerator, folder: Path, work: str) -> Iterator[None]:
    """Hold a folder for all processes of a run, as `held`: the main one locks it, all raise its error."""
    with ExitStack() as stack:
        error: list[Exception | None] = [None]
        if accelerator.is_main_process:
            try:
                stack.enter_context(held(folder, work))
            except (OSError, FolderInUseError) as refused:
                error = [refused]
        if accelerator.num_processes > 1:
            broadcast_object_list(error)
        if error[0] is not None:
            raise error[0]
        yield


def resolve_overlap(config: TrainConfig, num_processes: int, device: torch.device) -> bool:
    """Whether to train critics and policy side by side.

    Raises:
        ConfigError: It is asked for where it cannot be had.
    """
    if not algorithm_class(config.algorithm).overlaps:
        if config.overlap is True:
            raise ConfigError(f"overlap=true has no effect on {config.algorithm}. Leave it at auto.")
        return False  # nothing to run side by side
    possible = num_processes == 1 and device.type == "cpu"
    if config.overlap == "auto":
        return possible and (config.threads or torch.get_num_threads()) >= 2
    if config.overlap and not possible:
        raise ConfigError(
            f"overlap=true needs one process on the CPU; this run has {num_processes} on {device.type}. "
            "Leave it at auto."
        )
    return bool(config.overlap)


@contextmanager
def intra_op_threads(config: TrainConfig, overlap: bool) -> Iterator[None]:
    """Set torch's threads per operation, shared out over the two halves of an update; undone at the end."""
    before = torch.get_num_threads()
    threads = config.threads or before
    if overlap:
        threads = max(1, threads // 2)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- what processes tell each other: gradients, metrics, stop signals, and slices of a batch


def average_gradients(accelerator: Accelerator, gradients: Sequence[Tensor]) -> None:
    """Average gradients over processes, in place, in one message."""
    flat = accelerator.reduce(torch.cat([g.reshape(-1) for g in gradients]), reduction="mean")
    parts = flat.split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def any_process(accelerator: Accelerator, flag: int) -> int:
    """The highest flag that any process raises; all of them must ask."""
    if accelerator.num_processes == 1:
        return flag
    # Not reduce(reduction="max"), which accelerate before 1.14 takes for a sum.
    return int(accelerator.gather(torch.tensor([flag], device=accelerator.device)).max())


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


def gather_inputs(accelerator: Accelerator, inputs: Inputs, draws: Mapping[str, Draw]) -> Inputs:
    """The global batch's inputs from every process's slice."""
    if accelerator.num_processes == 1:
        return inputs
    whole = {}
    for name, value in inputs.tensors().items():
        dim = draws[name].batch_dim if name in draws else 0
        if dim is not None and value.numel():
            gathered = accelerator.gather(value.movedim(dim, 0).contiguous())
            value = gathered.movedim(0, dim).contiguous()
        elif dim is not None:  # nothing to send, but the shape is the whole batch's
            value = torch.cat([value] * accelerator.num_processes, dim)
        whole[name] = value
    return type(inputs).from_tensors(whole)


def scatter_inputs(accelerator: Accelerator, inputs: Inputs, draws: Mapping[str, Draw]) -> Inputs:
    """This process's slice of the global batch's inputs, on its device."""
    rank, world_size = accelerator.process_index, accelerator.num_processes
    parts = {}
    for name, value in inputs.tensors().items():
        dim = draws[name].batch_dim if name in draws else 0
        parts[name] = take_slice(value, dim, rank, world_size).to(accelerator.device)
    return type(inputs).from_tensors(parts)
