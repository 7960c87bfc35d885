"""From a trainer to a policy folder: the pipeline is made, evaluated on the data and saved."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spi_diffusers import pipelines
from spi_diffusers.data.holdout import load_held_out
from spi_diffusers.data.streaming import sample_episodes
from spi_diffusers.files import CONFIG_FILE, INFO_FILE, folder_aside, read_json
from spi_diffusers.models import TwinCritic
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.pipelines.policy_folder import check_policy_folder
from spi_diffusers.pipelines.saving import in_half_precision
from spi_diffusers.training.evaluation_stage import (
    RESIDUAL_TRANSITIONS,
    fit_evaluation_critic,
    learn_residuals,
)
from spi_diffusers.training.processes import training_versions
from spi_diffusers.training.run_folder import WITHOUT_EFFECT, saved_config
from spi_diffusers.training.settle import episode_steps

if TYPE_CHECKING:
    from spi_diffusers.pipelines import BaselinePolicyPipeline
    from spi_diffusers.training.trainer import Trainer

#: Updates of the evaluation critic, as a share of the training's.
EVALUATION_SHARE = 1.6


def make_policy(trainer: "Trainer") -> "SPIPolicyPipeline | BaselinePolicyPipeline":
    """The policy of a training as it is now, with its record: float32, on the CPU, in evaluation mode.

    It shares no memory with training. The weights of Q^r and Q^c' are rounded to half precision.
    """
    algorithm, dataset, config = trainer.algorithm, trainer.dataset, trainer.config
    trained = {**algorithm.policy_components(), "normalizer": trainer.normalizer}
    pipeline = getattr(pipelines, algorithm.pipeline)(
        **{name: _fresh_copy(component) for name, component in trained.items()},
        task=dataset.task.name if dataset.task else None,
        max_episode_steps=episode_steps(config, dataset),
        **algorithm.pipeline_settings(config, trainer.units),
    )
    source = {"id": dataset.source, "sha256": dataset.sha256}
    if config.revision:
        source["revision"] = config.revision
    info = {  # in the words of the results file (`TrainInfo`)
        "algorithm": config.algorithm,
        "train_seed": config.seed,
        "updates": trainer.step,
        "train_seconds": trainer.seconds,
        "dataset": source,
        "versions": training_versions(),
    }
    pipeline.training_record = {"config": saved_config(config), "info": info}
    return pipeline


def _fresh_copy(component: Any) -> Any:
    if not isinstance(component, torch.nn.Module):
        return component  # a scheduler, which training does not change
    with torch.random.fork_rng(devices=[]):  # building it draws weights that are overwritten at once
        made: Any = type(component)
        copy = made.from_config(component.config)
    weights = {name: value.detach().cpu() for name, value in component.state_dict().items()}
    if made is TwinCritic:  # they are a third of a policy, and only the paper's extraction asks them
        weights = {name: in_half_precision(value) for name, value in weights.items()}
    copy.load_state_dict(weights)
    return copy.requires_grad_(True).eval()


def add_evaluation_critic(pipeline: SPIPolicyPipeline, trainer: "Trainer", *, progress: bool) -> None:
    """Evaluate the pipeline's policy on the training data, and give it the critic that knows the outcome.

    By how much the critic is off, held-out episodes tell it, or where there are none the training's own.
    """
    config, dataset = trainer.config, trainer.learned_from
    critic = fit_evaluation_critic(
        pipeline,
        dataset,
        updates=max(1, round(EVALUATION_SHARE * config.updates)),
        seed=config.seed,
        progress=progress,
    )
    pipeline.register_modules(evaluation_critic=critic)
    most = RESIDUAL_TRANSITIONS
    unseen = load_held_out(trainer.dataset, config.seed, config.holdout, most)
    learn_residuals(pipeline, unseen or sample_episodes(dataset, most, config.seed), seed=config.seed)


def is_saved(trainer: "Trainer", folder: str | Path) -> bool:
    """Whether a folder holds the whole policy of this training already, as the settings now ask for it."""
    folder = Path(folder)
    try:
        check_policy_folder(str(folder), getattr(pipelines, trainer.algorithm.pipeline))
        info, config = read_json(folder / INFO_FILE), read_json(folder / CONFIG_FILE)
        sha256 = info["dataset"]["sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        return False  # it is damaged, or somebody else's

    def deciding(settings: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT}

    same_training = (info.get("updates"), sha256) == (trainer.step, trainer.dataset.sha256)
    return same_training and deciding(config) == deciding(saved_config(trainer.config))


def save_policy(trainer: "Trainer", folder: str | Path, *, progress: bool = False) -> Path:
    """Evaluate the policy on its data, then save it with its `train_config.json` and `train_info.json`.

    The folder is written aside and renamed, so a full disk leaves the old one, and a kill the old one or the
    new one, or in the moment between two renames none, which `--resume` mends.

    Args:
        trainer: After training.
        folder: Where to; a policy that is there already is replaced.
        progress: Show a progress bar of the evaluation.

    Returns:
        The folder, which `SPIPolicyPipeline.from_pretrained` loads.

    Raises:
        OSError: The disk is full or cannot be written; what was there is intact.
    """
    pipeline = make_policy(trainer)
    if trainer.algorithm.is_evaluated(trainer.config):
        record = pipeline.training_record
        add_evaluation_critic(pipeline, trainer, progress=progress)
        pipeline.training_record = record  # the critic belongs to what was trained
    folder = Path(folder)
    try:
        with folder_aside(folder, replace=True) as aside:
            pipeline._write(aside, pipeline.training_record)
    except Exception as error:  # safetensors reports a full disk as an error of its own kind
        reason = getattr(error, "strerror", None) or str(error)
        number = getattr(error, "errno", None)
        message = f"{folder}: the policy cannot be saved: {reason}."
        if not trainer.temporary:
            message += " Checkpoints are intact: the same run with --resume saves it."
        raise (OSError(number, message) if number else OSError(message)) from error
    return folder
