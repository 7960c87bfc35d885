"""Loading of policies from a folder or the Hub, with the record of their training."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from diffusers.utils import logging as diffusers_logging

from spi_diffusers.data.network import explain, fetch_snapshot
from spi_diffusers.files import (
    CONFIG_FILE,
    INDEX_FILE,
    INFO_FILE,
    PolicyError,
    did_you_mean,
    find_local_policy,
    local_path,
    read_json,
    to_json,
    write_durably,
)
from spi_diffusers.pipelines.checks import CHECKSUMS, damaged_files, make_settings_plain
from spi_diffusers.pipelines.component_configs import read_config
from spi_diffusers.pipelines.policy_folder import check_policy_folder, with_installed_modules
from spi_diffusers.pipelines.saving import complete_folder, moved_when_complete
from spi_diffusers.pipelines.values import as_plain, shown

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Base

    from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline
else:
    _Base = object  # mixed into a pipeline, which is a DiffusionPipeline

logger = logging.getLogger(__name__)

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def resolve_policy(
    policy: str | os.PathLike[str],
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    **options: Any,
) -> Path:
    """Find the folder of a policy (with `model_index.json`), and download it if it is on the Hub.

    `policy` is its folder, the one of its run, or an id on the Hub (`org/name`); what exists on disk is never
    looked up on the Hub. `trust_remote_code` downloads the code that the repository ships as well; options
    (`token`, `cache_dir`, `local_files_only`, `force_download`) are huggingface_hub's.

    FileNotFoundError: no such folder and no id on the Hub, or no policy in it; PolicyError: the Hub cannot be
    reached or has no such policy, or a revision of a local folder was asked for.
    """
    local, name = find_local_policy(policy, revision), str(policy)
    if local is not None:
        return local
    patterns = ["*.json", "*.safetensors"] + (["*.py"] if trust_remote_code else [])
    try:
        folder = fetch_snapshot(name, revision=revision, allow_patterns=patterns, **options)
        if not options.get("local_files_only") and _is_damaged(folder):
            logger.warning("%s: what the cache holds is damaged; it is downloaded again.", name)
            again = {**options, "force_download": True}
            folder = fetch_snapshot(name, revision=revision, allow_patterns=patterns, **again)
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        hint = did_you_mean(local_path(policy))
        raise PolicyError(
            f"{name}: no such folder, and cannot be loaded from the Hub: {explain(error)}{hint}"
        ) from error
    if not (folder / INDEX_FILE).is_file():
        raise PolicyError(f"{name}: holds no policy: {INDEX_FILE} is missing.")
    return folder


def _is_damaged(folder: Path) -> bool:
    """Whether a file of a downloaded policy is not the one that was published."""
    try:
        index = read_config(folder / INDEX_FILE)
        return CHECKSUMS in index and bool(damaged_files(str(folder), index))
    except FileNotFoundError:
        return False  # no policy
    except ValueError:
        return True


def load_pipeline(
    policy: str | os.PathLike[str], *, revision: str | None = None
) -> "SPIPolicyPipeline | BaselinePolicyPipeline":
    """Load a policy of SPI or of a baseline; arguments and errors as in `resolve_policy`."""
    folder = resolve_policy(policy, revision)
    kind: Any = pipeline_class(folder)
    return kind.from_pretrained(str(folder))


def pipeline_class(folder: Path) -> "type[CheckedLoading]":
    """The class of a policy's pipeline, by the name in its `model_index.json`; ValueError if it is none of
    ours.
    """
    from spi_diffusers import pipelines

    known = {kind.__name__: kind for kind in (pipelines.SPIPolicyPipeline, pipelines.BaselinePolicyPipeline)}
    path = folder / INDEX_FILE
    name = with_installed_modules(read_config(path)).get("_class_name", "SPIPolicyPipeline")
    if name not in known:
        raise ValueError(f"{path} is of a {name!s:.200}: it cannot be loaded as a {' or a '.join(known)}.")
    return known[name]


def _refuse(**arguments: Any) -> None:
    """Refuse what diffusers would save or load in a form that is none of a policy."""
    for name, value in arguments.items():
        if value:
            raise ValueError(f"{name}={shown(value)} does not apply to a policy; leave it out.")


class CheckedLoading(_Base):
    """What a policy's pipeline gets its loading from; to be named before diffusers' own class.

    Attributes:
        publishable: Whether `spi publish` takes the policy.
    """

    publishable: ClassVar[bool]

    _training_record: dict[str, dict[str, Any]] | None = None
    _recorded_state = ""

    @property
    def extractions(self) -> tuple[str, ...]:
        """Ways in which the policy can choose its actions."""
        raise NotImplementedError

    def _check_origin(self, component: Any) -> None:
        """Nothing: the folder was checked before anything was loaded from it."""

    @property
    def training_record(self) -> dict[str, dict[str, Any]] | None:
        """How the policy was trained: `{"config": ..., "info": ...}`, None if unknown.

        `config` is the content of `train_config.json`, which `spi train --config` takes. `info` is that of
        `train_info.json`: algorithm, seed, updates, seconds, dataset, versions. Training and
        `from_pretrained` set it; `save_pretrained` writes both files beside the weights.
        """
        return self._training_record

    @training_record.setter
    def training_record(self, record: dict[str, dict[str, Any]] | None) -> None:
        parts = record.values() if isinstance(record, dict) else [record]
        if record is not None and not all(isinstance(part, dict) for part in parts):
            raise ValueError(f"training_record must hold the dicts config and info, got {shown(record)}.")
        if record is not None and record.keys() != {"config", "info"}:
            raise ValueError(f"training_record must have the keys config and info, got {sorted(record)}.")
        self._training_record = record
        self._recorded_state = self._state() if record is not None else ""

    @property
    def is_as_trained(self) -> bool:
        """Whether weights and settings are still those that `training_record` is about."""
        return self.training_record is not None and self._state() == self._recorded_state

    @property
    def default_limit(self) -> float | None:
        """Cost limit to evaluate the policy at unless another one is named; None takes the task's."""
        return None

    def __repr__(self) -> str:
        config, network = self.config, next(iter(self.components.values())).config
        steps = f", at most {config.max_episode_steps} steps" if config.max_episode_steps else ""
        trained = "not recorded"
        if self.training_record is not None:
            words = "{algorithm}, {updates:,} updates, seed {train_seed}, on {dataset[id]}"
            try:
                trained = words.format(**self.training_record["info"])
            except (LookupError, TypeError, ValueError):  # not written by training
                trained = str(self.training_record["info"])
            trained += "" if self.is_as_trained else "; changed since"
        lines = (
            f"task: {config.task or 'no DSRL task'}{steps}",
            f"sizes: observation {network.observation_dim}, action {network.action_dim}",
            f"acts: {self._how_it_acts()}",
            f"trained: {trained}",
        )
        return "\n  ".join((f"{type(self).__name__}(", *lines)) + "\n)"

    def _how_it_acts(self) -> str:
        raise NotImplementedError

    def _state(self) -> str:
        """Checksum of all weights and settings."""
        digest = hashlib.sha256()
        for name, part in [("", self), *sorted(self.components.items())]:
            if part is None:
                continue
            config = part.config.items()
            settings = {key: as_plain(value) for key, value in config if not key.startswith("_")}
            digest.update(f"{name} {json.dumps(settings, sort_keys=True, default=str)}".encode())
            if isinstance(part, torch.nn.Module):
                for key, value in part.state_dict().items():
                    content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
                    digest.update(f"{key} {value.dtype}".encode() + content.numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """Load a policy from a folder (its own, or its run's) or from the Hub; arguments as in diffusers.

        Only safetensors weights are loaded, never a pickle. The folder is checked first: diffusers itself
        only warns about missing weights, and then goes on with random ones. The code of the installed package
        is used, not the code that a repository ships.

        Raises:
            FileNotFoundError: There is no such folder, or a config or weight file is missing.
            ValueError: A file is truncated or foreign, weights and config do not fit, or the Hub has no such
                policy.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("use_safetensors=False would load a pickle, which can run code: refused.")
        _refuse(**{name: kwargs.pop(name, None) for name in ("variant", "custom_pipeline", "use_flashpack")})
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = torch.float32  # not what the process has chosen for its own networks
        kwargs.pop("low_cpu_mem_usage", None)  # without it diffusers would not cast to the type asked for
        trust = bool(kwargs.get("trust_remote_code", False))
        options = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
        folder = str(resolve_policy(pretrained_model_name_or_path, trust_remote_code=trust, **options))
        check_policy_folder(folder, cls, trust_remote_code=trust)
        with _no_bar():  # five files of a megabyte; and a bar that cannot be shown would end the loading
            pipeline = super().from_pretrained(folder, **kwargs)
        config, info = Path(folder) / CONFIG_FILE, Path(folder) / INFO_FILE
        if config.is_file() and info.is_file():
            pipeline.training_record = {"config": read_json(config), "info": read_json(info)}
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the policy to a folder, as safetensors, with its code, its training record and checksums.

        A policy that was changed since it was trained is saved without the record, which is about other
        weights. What cannot be loaded again is not saved; the folder is then as it was.

        Args:
            save_directory: The folder. `spi evaluate`, `spi card` and `spi publish` take it.
            safe_serialization: Must be true: a policy is never saved as a pickle.
            variant: Must be None: a policy has one set of weights.
            max_shard_size: Must be None: its weights are a few MB, in one file.
            push_to_hub: Publish it as well, by [`push_to_hub`].
            repo_id: Where to publish it, `org/name`.
            **kwargs: With `push_to_hub` those of [`push_to_hub`].

        Raises:
            NotADirectoryError: There is a file of that name.
            ValueError: An argument does not apply, `repo_id` is missing, or the policy could not be loaded.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle, which can run code: refused.")
        _refuse(variant=variant, max_shard_size=max_shard_size)
        if push_to_hub and repo_id is None:
            raise ValueError("push_to_hub=True needs repo_id='org/name'.")
        if not push_to_hub:
            _refuse(repo_id=repo_id, **kwargs)
        if not isinstance(save_directory, str | os.PathLike) or not str(save_directory):
            raise ValueError(f"save_directory must name a folder, got {shown(save_directory)}.")
        folder = local_path(save_directory)
        record = self.training_record
        if record is not None and not self.is_as_trained:
            logger.warning(
                "The policy was changed after its training; it is saved without a training record."
            )
            record = None
        type(self)(**self.components, **self.parameters)  # what cannot be made again cannot be loaded
        make_settings_plain(self, *self.components.values())
        with moved_when_complete(folder, has_record=record is not None) as aside:
            self._write(aside, record)
        if push_to_hub:
            self.push_to_hub(str(repo_id), **kwargs)

    def _write(self, folder: Path, record: dict[str, dict[str, Any]] | None) -> None:
        """Fill a new folder; ValueError if it could not be loaded."""
        super().save_pretrained(folder)
        if record is not None:
            write_durably(folder / CONFIG_FILE, to_json(record["config"]))
            write_durably(folder / INFO_FILE, to_json(record["info"]))
        complete_folder(folder)
        check_policy_folder(str(folder), type(self))

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Self:
        """As in `DiffusersMethods`; the training record goes along, and says what was changed since."""
        made: Self = super().from_pipe(pipeline, **kwargs)
        made._training_record = getattr(pipeline, "_training_record", None)
        made._recorded_state = getattr(pipeline, "_recorded_state", "")
        return made

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in diffusers, but naming the modules of the installed package, not the shipped code."""
        loaded = super().load_config(pretrained_model_name_or_path, **kwargs)
        if isinstance(loaded, tuple):  # further results were asked for
            return (with_installed_modules(loaded[0]), *loaded[1:])
        return with_installed_modules(loaded)


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    was_enabled = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            diffusers_logging.enable_progress_bar()
