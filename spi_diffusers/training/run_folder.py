"""The files of a run besides its checkpoints, and whether a run may start or resume in a folder."""

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import flatten
from spi_diffusers.files import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    EVALUATION_FOLDER,
    METRICS_FILE,
    POLICY_FOLDER,
    read_json,
    replace_file,
    to_json,
)

logger = logging.getLogger(__name__)

#: Settings that do not change the result. The data counts by its content, not by where it lies.
WITHOUT_EFFECT = {
    *("dataset", "revision", "output_dir", "resume", "device", "threads", "overlap"),
    *("log_every", "checkpoint_every", "keep_checkpoints", "trackers"),
}


class RunFolderError(ValueError):
    """A run cannot start or resume in this folder."""


def check_new_run(output_dir: Path) -> None:
    """Refuse to start a new run over an old one.

    Raises:
        RunFolderError: The folder holds a run already, or is a file.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise RunFolderError(f"{output_dir}: is a file; output_dir must be a folder.")
    for name in (CHECKPOINTS_FOLDER, METRICS_FILE, POLICY_FOLDER):
        if (output_dir / name).exists():
            what_to_do = "Resume it with --resume (in Python: resume=True), or choose another output_dir."
            if name == POLICY_FOLDER:  # finished, and nothing to resume from
                what_to_do = "Choose another output_dir."
            raise RunFolderError(f"{output_dir}: holds a run already (there is {name}). {what_to_do}")


def check_restart(output_dir: Path, config: TrainConfig) -> None:
    """Refuse to resume at update 0, where no checkpoint is, over what another run or a finished one has left.

    Raises:
        RunFolderError: Naming what is there, or the settings that differ.
    """
    if (output_dir / POLICY_FOLDER).exists():
        raise RunFolderError(
            f"{output_dir}: holds a finished policy, but no checkpoint to resume from: training would start "
            "again and replace it. Choose another output_dir, or move the folder away."
        )
    try:
        before = read_json(output_dir / CONFIG_FILE)
    except (OSError, ValueError):
        return
    if not (output_dir / METRICS_FILE).exists():
        return
    if changed := _changed(before, config, "before"):
        raise RunFolderError(
            f"{output_dir}: holds a run without a checkpoint, and the configuration differs. "
            f"{'; '.join(changed)}. Choose another output_dir, or move the folder away."
        )


def decided_before(config: TrainConfig, name: str) -> Any:
    """What the run that is resumed has settled for a setting that is left open; None: none is resumed."""
    if not config.resume:
        return None
    try:
        return read_json(Path(str(config.output_dir)) / CONFIG_FILE).get(name)
    except (OSError, ValueError):
        return None


def saved_config(config: TrainConfig) -> dict[str, Any]:
    """The configuration as it is saved: usable by `--config` for a new run, so `resume` is off."""
    return {**config.to_dict(), "resume": False}


def write_config(output_dir: Path, config: TrainConfig) -> None:
    """Save the configuration in use as `train_config.json`."""
    output_dir.mkdir(parents=True, exist_ok=True)
    replace_file(output_dir / CONFIG_FILE, to_json(saved_config(config)))


def check_same_run(
    folder: Path, saved: Mapping[str, Any], config: TrainConfig, dataset_sha256: str, source: str
) -> None:
    """Refuse to resume from a checkpoint's state with another configuration or other data.

    Raises:
        RunFolderError: Naming each setting that differs, or the data.
    """
    if changed := _changed(saved["config"], config, "in the checkpoint"):
        raise RunFolderError(
            f"{folder}: cannot resume, the configuration differs. {'; '.join(changed)}. Use the same "
            f"settings ({folder.parent.parent / CONFIG_FILE}), or another output_dir for a new run."
        )
    if saved["dataset_sha256"] != dataset_sha256:
        raise RunFolderError(
            f"{folder}: cannot resume, the data differs: the run was started on data with SHA-256 "
            f"{saved['dataset_sha256'][:16]}..., but {source} has {dataset_sha256[:16]}..."
        )


def _changed(saved: Mapping[str, Any], config: TrainConfig, where: str) -> list[str]:
    """Settings that a resumed run must not change, and that differ."""
    before, now = flatten(saved), flatten(saved_config(config))
    free = set(WITHOUT_EFFECT)
    if not before.get("streaming") and not now["streaming"]:
        free.add("shuffle_buffer")
    if before.get("lr_schedule") == now["lr_schedule"] == "constant":
        free.add("updates")  # with the cosine schedule, the rate of every update depends on their number
    return [
        f"{key}: {before.get(key)!r} {where}, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if key not in free and before.get(key) != now.get(key)
    ]


def set_aside_evaluations(output_dir: Path) -> None:
    """Rename the evaluations of a replaced policy, so they are not mistaken for the new policy's."""
    for folder in filter(Path.is_dir, sorted(output_dir.glob(f"{EVALUATION_FOLDER}*"))):
        names = (output_dir / f"replaced{number}-{folder.name}" for number in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        folder.rename(aside)
        logger.warning("%s was of the replaced policy; it is called %s now.", folder, aside)
