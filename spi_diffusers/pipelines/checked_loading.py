"""Loading of policies, by folder or Hub id, with everything checked before anything is loaded."""

import os
from typing import TYPE_CHECKING, Any, Self

from huggingface_hub import snapshot_download

from spi_diffusers.data.config_names import HUB_ID
from spi_diffusers.pipelines.migrations import migrate
from spi_diffusers.pipelines.policy_folder import check_policy_folder, with_installed_modules

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Base
else:
    _Base = object  # mixed into a pipeline, which is a DiffusionPipeline

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


class CheckedLoading(_Base):
    """What a policy's pipeline gets its loading from; to be named before diffusers' own class."""

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
        return super().from_pretrained(folder, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Save the policy to a folder, as safetensors; arguments as in diffusers.

        Raises:
            ValueError: `safe_serialization` is off: a policy is never saved as a pickle.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle, which can run code: refused.")
        super().save_pretrained(str(save_directory), True, *args, **kwargs)

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
