"""Policies as they were along a training run, from its checkpoints."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from spi_diffusers.config.train import TrainConfig
from spi_diffusers.evaluation.metrics import TrainInfo

if TYPE_CHECKING:
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline


def policies_along_training(
    config: TrainConfig,
) -> "Iterator[tuple[int, SPIPolicyPipeline | BaselinePolicyPipeline, TrainInfo]]":
    """The policy of every checkpoint that a run has kept, without calibration.

    Those that an interruption made are left out: other runs have none at the same step.

    Args:
        config: The run's configuration; `output_dir` holds the checkpoints.

    Yields:
        Updates done, the policy, and where it comes from.

    Raises:
        CheckpointError: A checkpoint cannot be read, or is of another configuration.
    """
    from spi_diffusers.training.export import make_pipeline, train_info
    from spi_diffusers.training.runtime import make_accelerator
    from spi_diffusers.training.state import load_training_tensors
    from spi_diffusers.training.trainer import Trainer
    from spi_diffusers.training.training_data import open_training_data

    accelerator = make_accelerator(config)
    dataset = open_training_data(config, accelerator, progress=False)
    trainer = Trainer(config, dataset, accelerator=accelerator, progress=False)
    for step in trainer.checkpoints.steps():
        if step % config.checkpoint_every and step != config.updates:
            continue
        checkpoint = trainer.checkpoints.load(step)
        load_training_tensors(trainer.algorithm, checkpoint.tensors)
        trainer.step, trainer.seconds = step, checkpoint.state["train_seconds"]
        yield step, make_pipeline(trainer), TrainInfo.from_dict(train_info(trainer))
