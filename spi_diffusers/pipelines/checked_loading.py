"""Loading of policies, by folder or Hub id, with everything checked before anything is loaded."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from huggingface_hub import snapshot_download

from spi_diffusers.data.tasks import HUB_ID
from spi_diffusers.files import CONFIG_FILE, INFO_FILE, read_json, to_json, write_durably
from spi_diffusers.pipelines.migrations import migrate
from spi_diffusers.pipelines.policy_folder import check_policy_folder, with_installed_modules

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Base
else:
    _Base = object  # mixed into a pipeline, which is a DiffusionPipeline

logger = logging.getLogger(__name__)

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


class CheckedLoading(_Base):
    """What a policy's pipeline gets its loading from; to be named before diffusers' own class."""

    _training_record: dict[str, dict[str, Any]] | None = None
    _recorded_state = ""

    @property
    def training_record(self) -> dict[str, dict[str, Any]] | None:
        """How the policy was trained: `{"config": ..., "info": ...}`, or None where nobody knows.

        `config` is the content of `train_config.json`, which `spi train --config` takes. `info` is that of
        `train_info.json`: algorithm, seed, updates, seconds, dataset, versions. Training and
        `from_pretrained` set it; `save_pretrained` writes both files beside the weights.
        """
        return self._training_record

    @training_record.setter
    def training_record(self, record: dict[str, dict[str, Any]] | None) -> None:
        if record is not None and record.keys() != {"config", "info"}:
            raise ValueError(f"training_record must have the keys config and info, got {sorted(record)}.")
        self._training_record = record
        self._recorded_state = self._state() if record is not None else ""

    @property
    def is_as_trained(self) -> bool:
        """Whether weights and settings are still those that `training_record` is about."""
        return self.training_record is not None and self._state() == self._recorded_state

    def _state(self) -> str:
        """Checksum of all weights and settings."""
        digest = hashlib.sha256()
        for name, part in [("", self), *sorted(self.components.items())]:
            if part is None:
                continue
            settings = {key: value for key, value in part.config.items() if not key.startswith("_")}
            digest.update(f"{name} {json.dumps(settings, sort_keys=True, default=str)}".encode())
            if isinstance(part, torch.nn.Module):
                for key, value in part.state_dict().items():
                    content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
                    digest.update(f"{key} {value.dtype}".encode() + content.numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """Load a policy from a local folder, or from the Hub; arguments as in diffusers.

        Only safetensors weights are loaded, never a pickle. A local folder is checked first, as diffusers
        itself only warns about weights that are missing and then goes on with random ones. Code that a
        repository ships is not run: the installed package's is.

        Raises:
            FileNotFoundError: There is no such folder, or a config or weight file is missing.
            ValueError: A file is truncated or foreign, or weights and config do not fit.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("use_safetensors=False would load a pickle, which can run code: refused.")
        trust = bool(kwargs.get("trust_remote_code", False))
        folder = str(pretrained_model_name_or_path)
        if not os.path.isdir(folder):
            if not HUB_ID.fullmatch(folder):
                raise FileNotFoundError(f"{folder}: no such folder, and not an id on the Hub (org/name).")
            options = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
            folder = cls.download(folder, trust_remote_code=trust, **options)
        check_policy_folder(folder, cls, trust_remote_code=trust)
        pipeline = super().from_pretrained(folder, **kwargs)
        config, info = Path(folder) / CONFIG_FILE, Path(folder) / INFO_FILE
        if config.is_file() and info.is_file():
            pipeline.training_record = {"config": read_json(config), "info": read_json(info)}
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save the policy to a folder, as safetensors, with its training record; arguments as in diffusers.

        `spi evaluate`, `spi card` and `spi publish` take the folder. A policy that was changed since it was
        trained is saved without the record, which is about other weights.

        Raises:
            ValueError: `safe_serialization` is off: a policy is never saved as a pickle.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle, which can run code: refused.")
        super().save_pretrained(str(save_directory), True, *args, **kwargs)
        record, folder = self.training_record, Path(save_directory)
        if record is not None and not self.is_as_trained:
            logger.warning(
                "The policy was changed after its training; it is saved without a training record."
            )
            record = None
        for name, key in ((CONFIG_FILE, "config"), (INFO_FILE, "info")):
            if record is None:
                (folder / name).unlink(missing_ok=True)  # of the policy that was here before
            else:
                write_durably(folder / name, to_json(record[key]))

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Download a policy's configs and safetensors weights into the Hub's cache.

        diffusers' own refuses components whose library it does not know.

        Args:
            pretrained_model_name: Repository on the Hub (`org/name`).
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`; with
                `trust_remote_code`, the code that the repository ships is downloaded as well.

        Returns:
            Local folder of the snapshot.
        """
        options = {key: value for key, value in kwargs.items() if key in _HUB_OPTIONS}
        patterns = ["*.json", "*.safetensors"] + (["*.py"] if kwargs.get("trust_remote_code") else [])
        return snapshot_download(pretrained_model_name, allow_patterns=patterns, **options)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in diffusers, but in the newest format, and naming the installed package, not shipped code."""
        loaded = super().load_config(pretrained_model_name_or_path, **kwargs)
        if isinstance(loaded, tuple):  # further results were asked for
            return (with_installed_modules(migrate(loaded[0])), *loaded[1:])
        return with_installed_modules(migrate(loaded))
