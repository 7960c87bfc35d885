"""What a run starts with, from its configuration: data, normalizer, units, sampler, and an algorithm."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from spi_diffusers.algorithms.base import Algorithm, PolicySizes, algorithm_class
from spi_diffusers.algorithms.networks import Compute
from spi_diffusers.config.algorithms import ALGORITHMS
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.data.holdout import held_out_episodes
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.streaming import Dataset, StreamedDataset, exceeds_memory, open_stream
from spi_diffusers.data.transitions import DatasetError
from spi_diffusers.data.units import Units
from spi_diffusers.models import ObservationNormalizer
from spi_diffusers.training.run_folder import decided_before
from spi_diffusers.training.sampler import MemorySampler, Sampler
from spi_diffusers.training.settle import episode_steps, settle
from spi_diffusers.training.streaming_sampler import StreamingSampler

logger = logging.getLogger(__name__)


def open_training_data(config: TrainConfig, accelerator: Accelerator, *, progress: bool = True) -> Dataset:
    """Load or open the data that a configuration names; all processes must call this.

    With `streaming="auto"`, memory decides; a resumed run keeps to what was decided, because the order of its
    batches depends on it.

    Raises:
        DatasetError: The data cannot be used, or not be streamed.
        OSError: A file cannot be read.
    """
    with accelerator.main_process_first():
        # One decision for all processes: each sees another amount of free memory.
        decision = [_should_stream(config, accelerator) if accelerator.is_main_process else False]
    broadcast_object_list(decision)
    dataset, task = config.dataset, config.task
    clip, revision = config.clip_actions, config.revision
    with accelerator.main_process_first():  # one download, which the other processes find in the cache
        if decision[0]:
            shows = progress and accelerator.is_main_process
            return open_stream(dataset, task, revision=revision, clip_actions=clip, progress=shows)
        return load_transitions(dataset, task, revision=revision, clip_actions=clip)


def _should_stream(config: TrainConfig, accelerator: Accelerator) -> bool:
    if config.streaming != "auto":
        return config.streaming
    decided = decided_before(config, "streaming")
    if isinstance(decided, bool):
        return decided
    copies = accelerator.num_processes
    if not exceeds_memory(config.dataset, config.task, revision=config.revision, copies=copies):
        return False
    if not ALGORITHMS[config.algorithm].streams:
        logger.warning(
            "The data would take more than half of the available memory; it is loaded all the same, as %s "
            "cannot stream it.",
            config.algorithm,
        )
        return False
    logger.info(
        "The data would take more than half of the available memory: it is streamed, %d transitions at a "
        "time (shuffle_buffer).",
        config.shuffle_buffer,
    )
    return True


def training_episodes(config: TrainConfig, dataset: Dataset) -> Dataset:
    """The episodes that the algorithm learns from: all, those that are not held out, or those within the cost
    limit.

    Raises:
        DatasetError: No episode is within the limit.
        ConfigError: The data is streamed, and the algorithm needs it in memory.
    """
    if isinstance(dataset, StreamedDataset) and not ALGORITHMS[config.algorithm].streams:
        raise ConfigError(f"{dataset.source} is streamed; {config.algorithm} trains on data in memory.")
    if algorithm_class(config.algorithm).is_evaluated(config):
        held_out = held_out_episodes(dataset.num_episodes, config.seed, config.holdout)
        return dataset.select_episodes(~held_out) if bool(held_out.any()) else dataset
    if isinstance(dataset, StreamedDataset) or not algorithm_class(config.algorithm).safe_episodes_only:
        return dataset
    assert config.cost_limit is not None  # the configuration sees to it
    within = dataset.episodes.cost_return <= config.cost_limit
    if not bool(within.any()):
        least = float(dataset.episodes.cost_return.min())
        raise DatasetError(
            f"{dataset.source}: no episode is within cost_limit={config.cost_limit:g}, the least costly one "
            f"has {least:g}; {config.algorithm} has nothing to imitate."
        )
    return dataset.select_episodes(within)


def check_fit(config: TrainConfig, dataset: Dataset, device: str) -> None:
    """Refuse (`ConfigError`) a configuration that does not fit the data, or this machine's device."""
    if config.device not in ("auto", device):
        raise ConfigError(f"device={config.device} is not available here; this machine offers {device}.")
    streamed = isinstance(dataset, StreamedDataset)
    if config.streaming not in ("auto", streamed):
        raise ConfigError(
            f"streaming={config.streaming}, but the data is {'streamed' if streamed else 'in memory'}."
        )
    if len(dataset.cost_names) > 1 and not algorithm_class(config.algorithm).is_evaluated(config):
        raise ConfigError(
            f"{dataset.source} has the costs {', '.join(dataset.cost_names)}, but {config.algorithm} keeps a "
            "limit of one cost at most; train spi, or convert the data with one --cost-column."
        )
    task = dataset.task
    if task is None:
        return
    if config.task not in (None, task.name):
        raise ConfigError(f"task={config.task}, but {dataset.source} holds data of {task.name}.")
    replace(config, task=task.name)  # refuses what the task does not allow, such as another action range


def build_normalizer(dataset: Dataset) -> ObservationNormalizer:
    """A normalizer fitted on a dataset's observations."""
    # By keyword: diffusers takes positional arguments for defaults, which `from_config` then leaves out.
    normalizer = ObservationNormalizer(observation_dim=dataset.observation_dim)
    if isinstance(dataset, StreamedDataset):
        normalizer.set_statistics(*dataset.summary.moments["observation"])
        return normalizer
    return normalizer.fit(dataset.transitions.observation)


def build_units(config: TrainConfig, dataset: Dataset) -> Units:
    """The units that the algorithm learns rewards and costs in: the data's, or those they are logged in."""
    return Units.of(dataset) if algorithm_class(config.algorithm).in_units else Units()


def build_sampler(
    config: TrainConfig,
    dataset: Dataset,
    normalizer: ObservationNormalizer,
    units: Units,
    *,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Sampler:
    """The sampler that fits the dataset: from memory, or from its files; arguments as for `Sampler`.

    Raises:
        DatasetError: The data does not fit the configuration.
        ValueError: The batch cannot be shared out equally.
    """
    place: dict[str, Any] = {"device": device, "rank": rank, "world_size": world_size}
    if isinstance(dataset, StreamedDataset):
        return StreamingSampler(config, dataset, normalizer, units, **place)
    return MemorySampler(config, dataset, normalizer, units, **place)


def build_algorithm(
    config: TrainConfig,
    dataset: Dataset,
    *,
    device: torch.device | str = "cpu",
    overlap: bool = False,
    reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
) -> Algorithm:
    """The algorithm with fresh networks, whose weights depend on the seed alone; options as for `Compute`.

    The caller's random state is untouched.
    """
    config = settle(config, dataset, device)
    limit = math.inf if config.cost_limit is None else config.cost_limit
    dims = (dataset.observation_dim, dataset.action_dim, episode_steps(config, dataset))
    sizes = PolicySizes(*dims, limit, dataset.episodes)
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    compute = Compute(dtype, device, reduce_gradients, overlap)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return algorithm_class(config.algorithm).build(config, sizes, compute)
