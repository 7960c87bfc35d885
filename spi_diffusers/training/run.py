"""The whole training job, as `spi train` and `scripts/train.py` run it."""

import logging
from dataclasses import dataclass
from pathlib import Path

from spi_diffusers.config.train import TrainConfig
from spi_diffusers.files import POLICY_FOLDER
from spi_diffusers.training.export import is_saved, save_policy
from spi_diffusers.training.run_folder import check_new_run, set_aside_evaluations
from spi_diffusers.training.runtime import intra_op_threads, make_accelerator
from spi_diffusers.training.setup import open_training_data
from spi_diffusers.training.trainer import Trainer, TrainingResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a training job left behind.

    Attributes:
        training: How training ended.
        policy_folder: The saved policy, or None if training was stopped before its end.
        task: Name of the data's task; None for data of none of DSRL's.
        is_main_process: Whether this process is the one that writes and reports.
    """

    training: TrainingResult
    policy_folder: Path | None
    task: str | None
    is_main_process: bool


def run_training(config: TrainConfig, *, progress: bool = True) -> RunResult:
    """Load the data, train, and save the policy in `output_dir/policy`.

    A run that is resumed after its end leaves its policy, and what lies beside it, as it is; with other
    settings of the policy, that one is replaced, and its evaluations get another name.

    Args:
        config: The run's configuration.
        progress: Whether to show a progress bar.

    Returns:
        How it ended, and where the policy is.

    Raises:
        ValueError: The configuration, the data or the folder cannot be used.
        OSError: A file cannot be read or written.
        ImportError: A tracker is not installed.
        TrainingDivergedError: A loss or a weight is no longer finite.

    On several processes the process group is closed at the end: it is the last thing they do together.
    """
    output_dir = Path(str(config.output_dir))
    if not config.resume:
        check_new_run(output_dir)  # the trainer checks it too; here it costs no loading of data
    accelerator = make_accelerator(config)
    dataset = open_training_data(config, accelerator, progress=progress)
    trainer = Trainer(config, dataset, accelerator=accelerator, progress=progress)
    if accelerator.is_main_process:
        logger.info("Data: %r", dataset)
        logger.info("Run: %s", trainer.describe())
    training = trainer.train()
    folder = None
    if training.stopped_by is None:
        folder = output_dir / POLICY_FOLDER
        if accelerator.is_main_process and is_saved(trainer, folder):
            logger.info("%s holds this policy already and stays as it is.", folder)
        elif accelerator.is_main_process:
            is_new = not folder.exists()
            with intra_op_threads(config, overlap=False):
                save_policy(trainer, folder, progress=progress)
            if not is_new:
                set_aside_evaluations(output_dir)
        accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        # A process that ends with the group still open can abort, as its threads wait for the others.
        accelerator.end_training()
    task = dataset.task.name if dataset.task else None
    return RunResult(training, folder, task, accelerator.is_main_process)
