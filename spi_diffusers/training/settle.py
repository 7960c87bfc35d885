"""What a configuration leaves to the data and the device: episode steps, range of actions, precision."""

from dataclasses import replace
from typing import Any, Literal, cast

import torch

from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.data.streaming import Dataset, StreamedDataset
from spi_diffusers.data.survey import common_length, found_range, unclear_length
from spi_diffusers.messages import shown
from spi_diffusers.training.run_folder import decided_before

#: One number for all dimensions, or one for each.
Bound = float | list[float]


def settle(config: TrainConfig, dataset: Dataset, device: torch.device | str = "cpu") -> TrainConfig:
    """The configuration with what it left to data and device, as a resumed run must have it, too.

    Raises:
        ConfigError: The data does not tell it, or the configuration does not fit the data.
    """
    steps = None if dataset.task else episode_steps(config, dataset)
    low, high = action_range(config, dataset)
    streamed = isinstance(dataset, StreamedDataset)
    return replace(
        config,
        streaming=streamed,
        max_episode_steps=steps,
        action_low=low,
        action_high=high,
        mixed_precision=precision(config, torch.device(device)),
    )


def precision(config: TrainConfig, device: torch.device) -> Literal["bf16", "no"]:
    """The configuration's; for auto, that of the run that is resumed, or bfloat16 where that is faster.

    A CPU does with tiles for it (AMX). With vector instructions alone, these small networks lose more by
    converting than they gain.
    """
    if config.mixed_precision != "auto":
        return config.mixed_precision
    decided = decided_before(config, "mixed_precision")
    if decided in ("bf16", "no"):
        return cast(Literal["bf16", "no"], decided)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if device.type == "cpu" and _has_tiles() else "no"


def _has_tiles() -> bool:
    """Whether the CPU has tiles for bfloat16; torch tells it by a name that may change."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def episode_steps(config: TrainConfig, dataset: Dataset) -> int:
    """Steps over which a limit counts: the task's, those of the configuration, or those found in the data.

    Raises:
        ConfigError: The configuration does not say it, and episodes have different lengths.
    """
    if dataset.task is not None:
        return dataset.task.max_episode_steps
    steps = config.max_episode_steps or common_length(dataset.episodes)
    if steps is None:
        raise ConfigError(f"{dataset.source}: {unclear_length(dataset.episodes)}", "max_episode_steps")
    return steps


def action_range(config: TrainConfig, dataset: Dataset) -> tuple[Bound, Bound]:
    """Smallest and largest action: those of the configuration, or as `found_range` has them.

    Where actions outside are to be clipped, their own extremes tell nothing: it is [-1, 1] then, unless the
    source states it.

    Raises:
        ConfigError: The configuration has one number for each dimension of actions of another size.
    """
    low: Any = config.action_low
    high: Any = config.action_high
    if low is None:
        if config.clip_actions and dataset.action_range is None:
            return -1.0, 1.0
        low, high = map(list, found_range(dataset))
    for name, bound in (("action_low", low), ("action_high", high)):
        if isinstance(bound, list) and len(bound) != dataset.action_dim:
            raise ConfigError(
                f"{name} has {len(bound)} numbers, but the actions of {dataset.source} have "
                f"{dataset.action_dim}",
                name,
            )
    return _shorter(low), _shorter(high)


def say_range(low: Bound, high: Bound) -> str:
    """A range as a part of a message."""
    if isinstance(low, list) or isinstance(high, list):
        return f"{shown(low)} to {shown(high)}"
    return f"[{low:g}, {high:g}]"


def _shorter(bound: Bound) -> Bound:
    """One number where all are the same."""
    return bound[0] if isinstance(bound, list) and len(set(bound)) == 1 else bound
