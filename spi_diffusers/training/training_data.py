"""The data of a run: loaded into memory, or streamed, as the configuration says or as memory allows."""

import json
import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from spi_diffusers.config.train import TrainConfig
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.streaming import StreamedDataset, exceeds_memory, open_stream
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.files import CONFIG_FILE

logger = logging.getLogger(__name__)


def open_training_data(
    config: TrainConfig, accelerator: Accelerator, *, progress: bool = True
) -> TransitionDataset | StreamedDataset:
    """Load or open the data that a configuration names.

    Args:
        config: The run's configuration.
        accelerator: The processes; all of them must call this.
        progress: Whether to show progress bars.

    Returns:
        The data. With `streaming="auto"`, memory decides; a resumed run keeps to what was decided, because
        the order of its batches depends on it.

    Raises:
        DatasetError: The data cannot be used, or not be streamed.
        OSError: A file cannot be read.
    """
    with accelerator.main_process_first():
        # One decision for all processes: each sees another amount of free memory.
        decision = [_should_stream(config, accelerator) if accelerator.is_main_process else False]
    broadcast_object_list(decision)
    dataset, task, options = config.dataset, config.task, _options(config)
    with accelerator.main_process_first():  # one download, which the other processes find in the cache
        if decision[0]:
            return open_stream(dataset, task, **options, progress=progress and accelerator.is_main_process)
        return load_transitions(dataset, task, **options)


def _options(config: TrainConfig) -> dict[str, Any]:
    return {"revision": config.revision, "clip_actions": config.clip_actions}


def _should_stream(config: TrainConfig, accelerator: Accelerator) -> bool:
    if config.streaming != "auto":
        return config.streaming
    if config.resume:
        decided = _decided_before(Path(str(config.output_dir)))
        if decided is not None:
            return decided
    copies = accelerator.num_processes
    too_large = exceeds_memory(config.dataset, config.task, revision=config.revision, copies=copies)
    if too_large and config.group != "spi":
        logger.warning(
            "The data would take more than half of the available memory; it is loaded all the same, as %s "
            "cannot stream it.",
            config.algorithm,
        )
        return False
    if too_large:
        logger.info(
            "The data would take more than half of the available memory: it is streamed, %d transitions at a "
            "time (shuffle_buffer).",
            config.shuffle_buffer,
        )
    return too_large


def _decided_before(output_dir: Path) -> bool | None:
    """What the run that is resumed does; None if that cannot be found out (or is nobody's decision yet)."""
    try:
        value = json.loads((output_dir / CONFIG_FILE).read_text(encoding="utf-8"))["streaming"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, bool) else None
