"""Networks, normalizer, sampler and optimisation built from a configuration and a dataset."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spi_diffusers.algorithms.base import Algorithm, BaselineTraining, PolicySizes
from spi_diffusers.algorithms.registry import baseline_class
from spi_diffusers.algorithms.spi import SPI
from spi_diffusers.config.algorithms import ALGORITHMS
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.data.streaming import StreamedDataset
from spi_diffusers.data.transitions import DatasetError, TransitionDataset
from spi_diffusers.models import MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.training.baseline_sampler import BaselineSampler
from spi_diffusers.training.sampler import TransitionSampler, UpdateSampler
from spi_diffusers.training.streaming_sampler import StreamingSampler


def build_normalizer(dataset: TransitionDataset | StreamedDataset) -> ObservationNormalizer:
    """A normalizer fitted on a dataset's observations."""
    # By keyword: diffusers takes positional arguments for defaults, which `from_config` then leaves out.
    normalizer = ObservationNormalizer(observation_dim=dataset.observation_dim)
    if isinstance(dataset, StreamedDataset):
        normalizer.set_statistics(dataset.summary.observation_mean, dataset.summary.observation_std)
        return normalizer
    return normalizer.fit(dataset.transitions.observation)


def training_episodes(
    config: TrainConfig, dataset: TransitionDataset | StreamedDataset
) -> TransitionDataset | StreamedDataset:
    """The episodes that the algorithm learns from: all, or those within the cost limit.

    Raises:
        DatasetError: No episode is within the limit.
    """
    if not ALGORITHMS[config.algorithm].safe_only:
        return dataset
    if isinstance(dataset, StreamedDataset):
        raise ConfigError(f"{dataset.source} is streamed; {config.algorithm} trains on data in memory.")
    assert config.cost_limit is not None  # the configuration sees to it
    within = dataset.episodes.cost_return <= config.cost_limit
    if not bool(within.any()):
        least = float(dataset.episodes.cost_return.min())
        raise DatasetError(
            f"{dataset.source}: no episode is within cost_limit={config.cost_limit:g}, the least costly one "
            f"has {least:g}; {config.algorithm} has nothing to imitate."
        )
    return dataset.select_episodes(within)


def build_sampler(
    config: TrainConfig,
    dataset: TransitionDataset | StreamedDataset,
    normalizer: ObservationNormalizer,
    *,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> UpdateSampler | BaselineSampler:
    """The sampler that fits the algorithm and the dataset: from memory, or from its files.

    Args:
        config: Batch size, seed, action range and the algorithm's settings.
        dataset: The data.
        normalizer: Fitted on the data.
        device: Where the batches go.
        rank: Which slice of each batch this process trains on.
        world_size: Number of processes.

    Raises:
        DatasetError: The data does not fit the configuration.
        ValueError: The batch cannot be shared out equally.
    """
    options: dict[str, Any] = {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "action_low": config.action_low,
        "action_high": config.action_high,
        "clip_actions": config.clip_actions,
        "device": device,
        "rank": rank,
        "world_size": world_size,
    }
    if config.group != "spi":
        if isinstance(dataset, StreamedDataset):
            raise ConfigError(f"{dataset.source} is streamed; {config.algorithm} trains on data in memory.")
        shapes = baseline_class(config.algorithm).noise_shapes(
            config.settings, config.batch_size, dataset.action_dim
        )
        return BaselineSampler(dataset, normalizer, shapes, **options)
    if isinstance(dataset, StreamedDataset):
        size = config.shuffle_buffer
        return StreamingSampler(dataset, normalizer, config.spi, buffer_size=size, **options)
    return TransitionSampler(dataset, normalizer, config.spi, **options)


def build_algorithm(
    config: TrainConfig,
    dataset: TransitionDataset | StreamedDataset,
    *,
    device: torch.device | str = "cpu",
    overlap: bool = False,
    reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
) -> Algorithm:
    """The algorithm with freshly initialised networks.

    Args:
        config: Sizes, seed and the algorithm's settings.
        dataset: Gives the sizes of observations and actions.
        device: Where training runs.
        overlap: Train critics and policy in two threads.
        reduce_gradients: Averages gradients over processes; None for one process.

    Returns:
        The algorithm. Its initial weights depend on the seed alone; the caller's random state is untouched.
    """
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    if config.group != "spi":
        return _build_baseline(config, dataset, device, dtype, reduce_gradients)
    network, algorithm = config.network, config.spi
    shared = {
        "observation_dim": dataset.observation_dim,
        "action_dim": dataset.action_dim,
        "hidden_dims": list(network.hidden_dims),
        "activation": network.activation,
        "use_safety_weight": algorithm.conditioned,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        noise_model = MLPNoiseModel(
            **shared,
            time_embed_dim=network.time_embed_dim,
            action_low=config.action_low,
            action_high=config.action_high,
        )
        reward_critic = TwinCritic(**shared)
        safety_critic = TwinCritic(**shared, num_heads=2 if algorithm.predict_cost else 1)
        return SPI(
            algorithm,
            noise_model.to(device),
            reward_critic.to(device),
            safety_critic.to(device),
            learning_rate=config.learning_rate,
            max_grad_norm=config.max_grad_norm,
            dtype=dtype,
            overlap=overlap,
            reduce_gradients=reduce_gradients,
        )


def _build_baseline(
    config: TrainConfig,
    dataset: TransitionDataset | StreamedDataset,
    device: torch.device | str,
    dtype: torch.dtype,
    reduce_gradients: Callable[[Sequence[Tensor]], None] | None,
) -> BaselineTraining:
    assert config.cost_limit is not None  # the configuration sees to it
    sizes = PolicySizes(
        dataset.observation_dim,
        dataset.action_dim,
        dataset.task.max_episode_steps if dataset.task else int(dataset.episodes.length.max()),
        config.cost_limit,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return BaselineTraining(
            baseline_class(config.algorithm)(
                config.settings, sizes, dtype=dtype, reduce_gradients=reduce_gradients, device=device
            )
        )
