"""What is looked at before a cell is trained: its settings, its data and its simulator."""

from collections.abc import Mapping, Sequence
from typing import Any

from spi_diffusers.benchmark.suites import Cell
from spi_diffusers.data.simulators import simulator_status
from spi_diffusers.data.tasks import get_task

#: Each makes a checkpoint of its own, which must not push out one that the learning curve needs.
_INTERRUPTIONS = 100


class BenchmarkError(ValueError):
    """A benchmark cannot be run; the message says why, before anything is trained."""


def resolve_configs(cells: Sequence[Cell], config_file: str | None = None) -> dict[Cell, dict[str, Any]]:
    """The complete training configuration of every cell; each trains on one thread.

    Args:
        cells: The cells.
        config_file: Settings over the presets, as `spi train --config`.

    Raises:
        ConfigError: A setting cannot be used.
        BenchmarkError: A task has no data.
    """
    from spi_diffusers.config.layers import make_train_config
    from spi_diffusers.data.loading import embedded_tasks

    embedded = {get_task(name).short_name for name in embedded_tasks()}
    configs = {}
    for cell in cells:
        settings = cell.settings | {"threads": 1, "overlap": False}
        config = make_train_config(settings, config_file)
        if cell.curve_points > 1:
            every = max(1, config.updates // cell.curve_points)
            keep = config.updates // every + _INTERRUPTIONS
            settings |= {"checkpoint_every": every, "keep_checkpoints": keep}
            config = make_train_config(settings, config_file)
        if config.dataset in (None, "embedded") and cell.task not in embedded:
            raise BenchmarkError(
                f"{cell.task}: its data is not in the package; name it with --dataset, for example "
                "--dataset datasets, or for this task alone --dataset "
                f"{cell.task}=FOLDER."
            )
        configs[cell] = config.to_dict()
    return configs


def check_simulators(cells: Sequence[Cell]) -> None:
    """Refuse to train for hours what cannot be evaluated here.

    Raises:
        BenchmarkError: A simulator is missing.
    """
    for name in dict.fromkeys(get_task(cell.task).simulator for cell in cells):
        status = simulator_status(name)
        if not status.installed:
            tasks = sorted({cell.task for cell in cells if get_task(cell.task).simulator == name})
            install = f" Install it: {status.install}" if status.install else ""
            raise BenchmarkError(f"{', '.join(tasks)}: {status.problem}.{install}")


def check_datasets(configs: Mapping[Cell, Mapping[str, Any]]) -> None:
    """Refuse to start where a dataset is not there, which every cell would find out for itself.

    Raises:
        MissingDatasetError: Naming it.
    """
    from spi_diffusers.data.loading import check_source

    for task, dataset in {(cell.task, config["dataset"]) for cell, config in configs.items()}:
        if dataset is not None:
            check_source(dataset, task)
