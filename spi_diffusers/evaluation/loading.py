"""Load a policy of SPI or of a baseline, from its folder or the Hub, with its training's record."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spi_diffusers.evaluation.results import TrainInfo, read_train_info
from spi_diffusers.files import CONFIG_FILE, INDEX_FILE, INFO_FILE, read_json

if TYPE_CHECKING:
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline


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
        FileNotFoundError: There is no such folder, and it does not look like an id on the Hub.
        PolicyError: A file is missing or cannot be read.
        ValueError: The weights cannot be used.
    """
    from spi_diffusers.pipelines.loading import PolicyError, resolve_policy

    folder = resolve_policy(policy, revision)
    for name in (INFO_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise PolicyError(
                f"{policy}: has no {name}, which training saves beside the weights: nothing says which "
                "training its results would be of."
            )
    info, config = read_train_info(folder / INFO_FILE), read_json(folder / CONFIG_FILE)
    is_local = Path(policy).expanduser().exists()
    return LoadedPolicy(_load(folder), info, config, folder if is_local else None)


def load_pipeline(
    policy: str | Path, *, revision: str | None = None
) -> "SPIPolicyPipeline | BaselinePolicyPipeline":
    """Load a policy to act with it; arguments and errors as in `load_policy`, but it needs no record."""
    from spi_diffusers.pipelines.loading import resolve_policy

    return _load(resolve_policy(policy, revision))


def _load(folder: Path) -> "SPIPolicyPipeline | BaselinePolicyPipeline":
    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline

    name = read_json(folder / INDEX_FILE).get("_class_name")
    is_baseline = name == BaselinePolicyPipeline.__name__
    return (BaselinePolicyPipeline if is_baseline else SPIPolicyPipeline).from_pretrained(str(folder))
