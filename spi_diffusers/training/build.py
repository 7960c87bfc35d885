"""Networks, normalizer, sampler and optimisation built from a configuration and a dataset."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spi_diffusers.algorithms.spi import SPI
from spi_diffusers.data.streaming import StreamedDataset
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.models import MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.training.config import TrainConfig
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


def build_sampler(
    config: TrainConfig,
    dataset: TransitionDataset | StreamedDataset,
    normalizer: ObservationNormalizer,
    *,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> UpdateSampler:
    """The sampler that fits the dataset: from memory, or from its files.

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
    if isinstance(dataset, StreamedDataset):
        size = config.shuffle_buffer
        return StreamingSampler(dataset, normalizer, config.algorithm, buffer_size=size, **options)
    return TransitionSampler(dataset, normalizer, config.algorithm, **options)


def build_algorithm(
    config: TrainConfig,
    dataset: TransitionDataset | StreamedDataset,
    *,
    device: torch.device | str = "cpu",
    overlap: bool = False,
    reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
) -> SPI:
    """SPI with freshly initialised networks.

    Args:
        config: Sizes, seed and the algorithm's settings.
        dataset: Gives the sizes of observations and actions.
        device: Where training runs.
        overlap: Train critics and policy in two threads.
        reduce_gradients: Averages gradients over processes; None for one process.

    Returns:
        The algorithm. Its initial weights depend on the seed alone; the caller's random state is untouched.
    """
    network, algorithm = config.network, config.algorithm
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
            dtype=torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32,
            overlap=overlap,
            reduce_gradients=reduce_gradients,
        )
