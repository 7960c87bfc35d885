"""Load a policy of SPI or of a baseline, from its folder or the Hub, with its training's record."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spi_diffusers.data.network import explain, with_retries
from spi_diffusers.data.tasks import HUB_ID
from spi_diffusers.evaluation.results import TrainInfo, read_train_info
from spi_diffusers.files import CONFIG_FILE, INFO_FILE, POLICY_FOLDER

if TYPE_CHECKING:
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline


class PolicyError(ValueError):
    """A policy folder cannot be evaluated; the message names the file."""


class MissingPolicyError(PolicyError, FileNotFoundError):
    """There is no such policy."""


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy with what is known about its training.

    Attributes:
        pipeline: The policy.
        train_info: Where its weights come from.
        train_config: Its `train_config.json`.
        folder: Its local folder, or None for one from the Hub.
    """

    pipeline: "SPIPolicyPipeline | BaselinePolicyPipeline"
    train_info: TrainInfo
    train_config: dict[str, Any]
    folder: Path | None


def load_policy(policy: str | Path, *, revision: str | None = None) -> LoadedPolicy:
    """Load a policy and the record of its training, without which nobody knows what its results are of.

    Args:
        policy: Folder of a policy, or of the run that made it, or an id on the Hub (`org/name`). What
            exists on disk is never looked up on the Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        MissingPolicyError: There is no such folder, and it does not look like an id on the Hub.
        PolicyError: A file is missing or cannot be read.
        ValueError: The weights cannot be used.
    """
    folder = _local_copy(policy, revision)
    for name in (INFO_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise PolicyError(
                f"{policy}: has no {name}, which training saves beside the weights: nothing says which "
                "training its results would be of."
            )
    info, config = read_train_info(folder / INFO_FILE), _read_json(folder / CONFIG_FILE)
    is_local = Path(policy).expanduser().exists()
    return LoadedPolicy(_load(folder), info, config, folder if is_local else None)


def load_pipeline(
    policy: str | Path, *, revision: str | None = None
) -> "SPIPolicyPipeline | BaselinePolicyPipeline":
    """Load a policy to act with it; arguments and errors as in `load_policy`, but it needs no record."""
    return _load(_local_copy(policy, revision))


def short_name(policy: str | Path) -> str:
    """What to call a policy: the name of its repository on the Hub, or of its run's folder."""
    path = Path(policy).expanduser()
    if path.exists():
        path = path.resolve()
        path = path.parent if path.name == POLICY_FOLDER else path
    return path.name


def _local_copy(policy: str | Path, revision: str | None) -> Path:
    """The folder of a policy, downloaded if it is on the Hub."""
    path = Path(policy).expanduser()
    if path.exists():
        if revision is not None:
            raise PolicyError(f"{path}: is a folder, so a revision ({revision}) means nothing.")
        for folder in (path, path / POLICY_FOLDER):
            if (folder / "model_index.json").is_file():
                return folder
        raise MissingPolicyError(
            f"{path}: holds no policy (there is no model_index.json). A training run saves it at its end; if "
            "it was stopped before, go on with --resume."
        )
    if not HUB_ID.fullmatch(str(policy)):
        raise MissingPolicyError(f"{policy}: no such folder, and not an id on the Hub (org/name).")
    from spi_diffusers.pipelines import SPIPolicyPipeline

    try:
        download = partial(SPIPolicyPipeline.download, str(policy), revision=revision)
        folder = Path(with_retries(download, what=f"Loading {policy}"))
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        raise PolicyError(f"{policy}: cannot be loaded from the Hub: {explain(error)}.") from error
    if not (folder / "model_index.json").is_file():
        raise PolicyError(f"{policy}: is no policy: there is no model_index.json in it.")
    return folder


def _load(folder: Path) -> "SPIPolicyPipeline | BaselinePolicyPipeline":
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline

    name = _read_json(folder / "model_index.json").get("_class_name")
    is_baseline = name == BaselinePolicyPipeline.__name__
    return (BaselinePolicyPipeline if is_baseline else SPIPolicyPipeline).from_pretrained(str(folder))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise PolicyError(f"{path}: is not complete JSON: {error}.") from error
    if not isinstance(content, dict):
        raise PolicyError(f"{path}: must hold an object, got {type(content).__name__}.")
    return content
