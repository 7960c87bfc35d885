"""The whole training job: `train()` from Python, `run_training()` for `spi train` and the benchmark."""

import logging
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from spi_diffusers.config.layers import make_train_config
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.data.holdout import holdout_notice
from spi_diffusers.data.streaming import Dataset
from spi_diffusers.data.survey import remarks
from spi_diffusers.files import POLICY_FOLDER
from spi_diffusers.numerics import own_numerics
from spi_diffusers.pipelines.loading import load_pipeline
from spi_diffusers.signals import StopRequest, raising_on_sigterm
from spi_diffusers.training.build import open_training_data
from spi_diffusers.training.export import is_saved, save_policy
from spi_diffusers.training.processes import held_by_all, intra_op_threads, make_accelerator
from spi_diffusers.training.run_folder import check_new_run, set_aside_evaluations
from spi_diffusers.training.trainer import Trainer, TrainingProgress, TrainingResult

if TYPE_CHECKING:
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline

logger = logging.getLogger(__name__)

Callback = Callable[[TrainingProgress], None]


def train(
    task: str | None = None,
    *,
    dataset: str | Path | None = None,
    output_dir: str | Path | None = None,
    callback: Callback | None = None,
    progress: bool = True,
    **settings: Any,
) -> "SPIPolicyPipeline | BaselinePolicyPipeline":
    """Train a policy on logged data.

    Examples:
        >>> policy = train("ballcircle", updates=15_000, seed=0)
        >>> policy = train(dataset="my.parquet", updates=5_000, spi={"eta": 0.3})
        >>> policy = train("ballcircle", algorithm="bcq-lag", cost_limit=20)

    Args:
        task: DSRL task, such as "ballcircle"; without `dataset`, on the data in the package.
        dataset: Parquet file or folder, CSV, DSRL's HDF5 or npz, or a dataset's id on the Hub.
        output_dir: Folder of the run: checkpoints, metrics, and the policy in `policy/`. None keeps nothing
            on disk; save the policy by its `save_pretrained`.
        callback: Called after every `log_every` updates with a `TrainingProgress`: log its `metrics`,
            evaluate its `policy()`, or `stop()` training.
        progress: Show a progress bar.
        **settings: Any field of `TrainConfig`: `updates`, `seed`, `algorithm`, `device`, ... Settings of an
            algorithm are a dictionary, `spi={"eta": 0.3}`.

    Returns:
        The policy: an `SPIPolicyPipeline`, or the `BaselinePolicyPipeline` of a baseline.

    Raises:
        ConfigError: A setting does not exist or has a wrong value; the message names it.
        ValueError: The data or the folder cannot be used; a FolderInUseError: another run works in it.
        TrainingDivergedError: A loss or a weight is no longer finite.
        KeyboardInterrupt: Training was interrupted. With `output_dir`, a checkpoint is kept, and
            `resume=True` goes on from it.
    """
    paths = {"dataset": dataset, "output_dir": output_dir}
    settings |= {"task": task}
    settings |= {
        name: os.fspath(path) if isinstance(path, os.PathLike) else path for name, path in paths.items()
    }
    try:
        if output_dir not in (None, ""):
            return _trained_policy(make_train_config(settings), callback, progress)
        if settings.get("resume"):
            raise ConfigError("resume=True needs the output_dir of the run to go on with", "resume")
        with raising_on_sigterm(), tempfile.TemporaryDirectory(prefix="spi-train-") as folder:
            config = make_train_config({**settings, "output_dir": os.path.join(folder, "run")})
            policy = _trained_policy(config, callback, progress, temporary=True)
    except StopRequest as stopped:
        signal.raise_signal(stopped.signal_number)  # handled as if training had not caught it
        raise KeyboardInterrupt from None
    record = policy.training_record
    assert record is not None  # training has just made it
    record["config"]["output_dir"] = None  # gone by now
    policy.training_record = record
    return policy


def _trained_policy(
    config: TrainConfig, callback: Callback | None, progress: bool, *, temporary: bool = False
) -> "SPIPolicyPipeline | BaselinePolicyPipeline":
    result = run_training(config, callback, progress=progress, temporary=temporary)
    if result.policy_folder is None:
        assert result.training.stopped_by is not None
        logger.warning("Training was stopped after update %d of %d.", result.training.step, config.updates)
        raise StopRequest(result.training.stopped_by)
    return load_pipeline(result.policy_folder)


def _tell_held_out(trainer: Trainer) -> None:
    if not trainer.algorithm.is_evaluated(trainer.config):
        return
    total, share = trainer.dataset.num_episodes, trainer.config.holdout
    if held_out := total - trainer.learned_from.num_episodes:
        logger.info("Held out: %d of %d episodes, to tell how far predictions are off.", held_out, total)
    if notice := holdout_notice(total, share):
        logger.warning("%s.", notice)


@dataclass(frozen=True)
class RunResult:
    """What a training job left behind.

    Attributes:
        training: How training ended.
        policy_folder: The saved policy, or None if a signal stopped training before its end.
        dataset: The data.
        is_main_process: Whether this process is the one that writes and reports.
    """

    training: TrainingResult
    policy_folder: Path | None
    dataset: Dataset
    is_main_process: bool


@own_numerics()
def run_training(
    config: TrainConfig,
    callback: Callback | None = None,
    *,
    progress: bool = True,
    temporary: bool = False,
) -> RunResult:
    """Load the data, train, and save the policy in `output_dir/policy`.

    A run that is resumed after its end leaves its policy, and what lies beside it, as it is; with other
    settings of the policy, that one is replaced, and its evaluations get another name. On several processes
    the process group is closed at the end: it is the last thing they do together.

    Args:
        config: The run's configuration.
        callback: As in `train`.
        progress: Show a progress bar.
        temporary: As for `Trainer`.

    Returns:
        How it ended, and where the policy is.

    Raises:
        ValueError: The configuration, the data or the folder cannot be used.
        FolderInUseError: Another run works in the folder.
        OSError: A file cannot be read or written.
        ImportError: A tracker is not installed.
        TrainingDivergedError: A loss or a weight is no longer finite.
    """
    accelerator = make_accelerator(config)
    with held_by_all(accelerator, Path(str(config.output_dir)), "training"):
        return train_in_held_folder(config, accelerator, callback, progress=progress, temporary=temporary)


def train_in_held_folder(
    config: TrainConfig,
    accelerator: Accelerator,
    callback: Callback | None = None,
    *,
    progress: bool = True,
    temporary: bool = False,
) -> RunResult:
    """As `run_training`, for a caller that holds `output_dir`."""
    output_dir = Path(str(config.output_dir))
    if not config.resume:
        check_new_run(output_dir)  # the trainer checks it too; here it costs no loading of data
    dataset = open_training_data(config, accelerator, progress=progress)
    trainer = Trainer(config, dataset, accelerator=accelerator, progress=progress, temporary=temporary)
    if accelerator.is_main_process:
        logger.info("Data: %r", dataset)
        logger.info("Run: %s", trainer.describe())
        range_given = config.action_low is not None or config.clip_actions
        for remark in remarks(dataset, config.max_episode_steps, range_given=range_given):
            logger.warning("%s.", remark)
        _tell_held_out(trainer)
    training = trainer.train(callback)
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
    return RunResult(training, folder, dataset, accelerator.is_main_process)
