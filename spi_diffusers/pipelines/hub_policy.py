"""The SPI policy as the installed package has it: loaded with checks, by folder or Hub id, and published."""

import os
from typing import Any

from huggingface_hub import snapshot_download

from spi_diffusers.pipelines import spi_policy
from spi_diffusers.pipelines.migrations import migrate
from spi_diffusers.pipelines.policy_folder import check_policy_folder, with_installed_modules

_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


class SPIPolicyPipeline(spi_policy.SPIPolicyPipeline):
    """A safe policy, see `spi_policy.SPIPolicyPipeline`, with checked loading and with publishing.

    A saved policy names its class, so both have one name; it acts the same with either.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "SPIPolicyPipeline":
        """Load a policy from a local folder, or from the Hub; arguments as in diffusers.

        Only safetensors weights are loaded, never a pickle. A local folder is checked first, as diffusers
        itself only warns about weights that are missing and then goes on with random ones. Code that a
        repository ships is not run: the installed package's is.

        Raises:
            FileNotFoundError: A config or weight file is missing.
            ValueError: A file is truncated or foreign, or weights and config do not fit.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("use_safetensors=False would load a pickle, which can run code: refused.")
        trust = bool(kwargs.get("trust_remote_code", False))
        folder = str(pretrained_model_name_or_path)
        if not os.path.isdir(folder):
            options = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
            folder = cls.download(folder, trust_remote_code=trust, **options)
        check_policy_folder(folder, trust_remote_code=trust)
        return super().from_pretrained(folder, **kwargs)

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

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        *args: Any,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the policy to a folder, as safetensors.

        Args:
            save_directory: The folder.
            safe_serialization: Must be true: a policy is never saved as a pickle.
            *args: As in diffusers.
            push_to_hub: Publish it as well, by [`push_to_hub`].
            repo_id: Where to publish it, `org/name`.
            **kwargs: As in diffusers; with `push_to_hub` those of [`push_to_hub`].
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle, which can run code: refused.")
        if not push_to_hub:
            super().save_pretrained(str(save_directory), True, *args, **kwargs)
            return
        if repo_id is None:
            raise ValueError("push_to_hub=True needs repo_id='org/name'.")
        super().save_pretrained(str(save_directory), True, *args)
        self.push_to_hub(repo_id, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        create_pr: bool = False,
        *,
        revision: str = "main",
        tag: str | None = None,
    ) -> str:
        """Publish the policy by one verified commit, with its code and card; as `spi publish` does.

        diffusers' own would replace the card by a blank template, and make a repository that only this
        class can load.

        Args:
            repo_id: `org/name`; made if it does not exist.
            commit_message: What the commit is called.
            private: Make the repository private, if it has to be made.
            token: Access token; by default that of `hf auth login`.
            create_pr: Open a pull request instead of changing the branch.
            revision: Branch; may be new.
            tag: Name for what is published.

        Returns:
            Address of the commit, or of the pull request.

        Raises:
            HubError: Nothing visible has changed, unless the message says so.
        """
        from spi_diffusers.hub.publish_policy import publish_pipeline  # what publishes stands above this file

        return publish_pipeline(
            self,
            repo_id,
            branch=revision,
            tag=tag,
            message=commit_message or "Publish policy",
            private=bool(private),
            create_pr=create_pr,
            token=token,
        ).url
