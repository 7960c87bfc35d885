"""Publish a policy to the Hub: checked first, then one verified commit, then the tag."""

import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from spi_diffusers.data.network import explain
from spi_diffusers.hub.errors import HubError
from spi_diffusers.hub.policy_files import (
    INDEX,
    PLOTS_FOLDER,
    REPLAY,
    RESULTS,
    PolicyFiles,
    PolicyFolderError,
    assemble,
    is_ours,
    read_policy_files,
)
from spi_diffusers.hub.upload import UploadPlan, UploadResult, hub_api, plan_upload, upload

if TYPE_CHECKING:
    from spi_diffusers.pipelines import SPIPolicyPipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishPlan:
    """What publishing would do.

    Attributes:
        upload: The commit.
        content: The files, by path in the repository.
        tag: The tag to set, or None.
        tagged: The commit that has the tag already, or None.
    """

    upload: UploadPlan
    content: Mapping[str, Path | bytes]
    tag: str | None = None
    tagged: str | None = None


def check_acts(files: PolicyFiles) -> None:
    """Load the policy and draw an action, so that nothing is published that cannot act.

    Raises:
        ValueError: The policy cannot be loaded, or its actions are not finite.
    """
    import torch

    from spi_diffusers.pipelines import SPIPolicyPipeline

    pipeline = SPIPolicyPipeline.from_pretrained(str(files.folder))
    observation = torch.zeros(pipeline.noise_model.config.observation_dim)
    generator = torch.Generator().manual_seed(0)
    pipeline(observation, cost_budget=10.0, steps_left=100, generator=generator)


def plan_publish(
    files: PolicyFiles,
    repo_id: str,
    *,
    branch: str = "main",
    tag: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> PublishPlan:
    """Compare a policy with a repository on the Hub; nothing is changed.

    Args:
        files: Of the policy.
        repo_id: `organisation/name`; need not exist.
        branch: Where the commit is to go; need not exist.
        tag: Name for what is published.
        token: Access token; None or True takes the stored one.
        endpoint: Address of the Hub, where it is not the usual one.

    Returns:
        The plan. Files of the repository that publishing does not make (LICENSE, .gitattributes) stay.

    Raises:
        HubError: The Hub cannot be reached, or the tag names something else already.
    """
    content = assemble(files, repo_id)
    components = tuple(files.components)

    def stale(path: str) -> bool:
        return is_ours(path, components)

    plan = plan_upload(
        repo_id, content, repo_type="model", branch=branch, stale=stale, token=token, endpoint=endpoint
    )
    tagged = _tagged_commit(plan, tag, token, endpoint) if tag is not None and plan.exists else None
    if tagged is not None and not (plan.is_done and tagged == plan.head):
        raise HubError(
            f"{repo_id}: the tag {tag!r} exists already, for another commit ({tagged[:8]}), and tags "
            "are not moved. Nothing was uploaded; choose another tag"
        )
    return PublishPlan(plan, content, tag, tagged)


def publish(
    plan: PublishPlan,
    *,
    message: str = "Publish policy",
    private: bool = False,
    create_pr: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> UploadResult:
    """Carry out a plan: one commit, verified by checksum, then the tag.

    Args:
        plan: From `plan_publish`.
        message: First line of the commit, and title of the pull request.
        private: Make the repository private, if it has to be made.
        create_pr: Open a pull request instead of changing the branch; without a tag.
        token: Access token; None or True takes the stored one.
        endpoint: Address of the Hub, where it is not the usual one.

    Returns:
        What was done; no commit is made where the repository holds everything already.

    Raises:
        HubError: Nothing visible has changed, unless the message says so. The same call can be made again.
        ValueError: A tag together with a pull request, whose commit is none of the branch's yet.
    """
    if create_pr and plan.tag is not None:
        raise ValueError("a pull request cannot be tagged: tag it after it is merged")
    result = upload(
        plan.upload, message=message, private=private, create_pr=create_pr, token=token, endpoint=endpoint
    )
    if plan.tag is not None and plan.tagged is None:
        _set_tag(plan.upload.repo_id, plan.tag, result.commit, token, endpoint)
    return result


def publish_pipeline(
    pipeline: "SPIPolicyPipeline",
    repo_id: str,
    *,
    branch: str = "main",
    tag: str | None = None,
    message: str = "Publish policy",
    private: bool = False,
    create_pr: bool = False,
    licence: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> UploadResult:
    """Publish a policy from memory.

    Its training record is published with it if weights and settings are still those that were trained, and so
    is the evaluation in the folder that it was loaded from; else its card says that there are none.

    Args:
        pipeline: The policy.
        repo_id: `organisation/name`; made if it does not exist.
        branch: Where the commit goes.
        tag: Name for what is published.
        message: First line of the commit.
        private: Make the repository private, if it has to be made.
        create_pr: Open a pull request instead of changing the branch.
        licence: Of the weights, as the Hub names licences; None takes Apache-2.0.
        token: Access token; None or True takes the stored one.
        endpoint: Address of the Hub, where it is not the usual one.

    Returns:
        What was done.

    Raises:
        HubError: Nothing visible has changed, unless the message says so.
        ValueError: The policy cannot act.
    """
    with tempfile.TemporaryDirectory(prefix="spi-publish-") as temporary:
        folder = Path(temporary) / "pipeline"
        pipeline.save_pretrained(str(folder))
        _complete_snapshot(str(pipeline.name_or_path), token, endpoint)
        files = _with_evaluation_of_origin(read_policy_files(folder), pipeline)
        files = replace(files, licence=licence or files.licence)
        check_acts(files)
        plan = plan_publish(files, repo_id, branch=branch, tag=tag, token=token, endpoint=endpoint)
        return publish(
            plan, message=message, private=private, create_pr=create_pr, token=token, endpoint=endpoint
        )


def copy_folder(files: PolicyFiles, repo_id: str, folder: Path) -> Path:
    """Write what would be published to a local folder, complete or not at all.

    Raises:
        PolicyFolderError: The folder holds something already.
        OSError: It cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PolicyFolderError(f"{folder}: exists and is not empty; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for path, data in assemble(files, repo_id).items():
            target = aside / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
        aside.chmod(0o755)
        aside.replace(folder)
    except OSError as error:
        raise OSError(error.errno, f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _complete_snapshot(origin: str, token: str | bool | None, endpoint: str | None) -> None:
    """A policy from the Hub came without plots and video: fetch those of the same commit beside it."""
    from huggingface_hub import snapshot_download

    found = re.search(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})$", Path(origin).as_posix())
    if found is None or not (Path(origin) / RESULTS).exists():
        return
    try:
        snapshot_download(
            f"{found[1]}/{found[2]}",
            revision=found[3],
            allow_patterns=[f"{PLOTS_FOLDER}/*.png", REPLAY],
            cache_dir=Path(origin).parents[2],
            token=token,
            endpoint=endpoint,
        )
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        raise HubError(
            f"{found[1]}/{found[2]}: the plots and video of this policy cannot be fetched: {explain(error)}. "
            "Nothing was published"
        ) from error


def _with_evaluation_of_origin(files: PolicyFiles, pipeline: "SPIPolicyPipeline") -> PolicyFiles:
    origin = Path(str(pipeline.name_or_path or ""))
    if not pipeline.is_as_trained or not (origin / INDEX).is_file():
        return files
    try:
        return read_policy_files(origin)
    except (ValueError, OSError) as error:
        logger.warning("%s: published without its training record and evaluation: %s", origin, error)
        return replace(files, train_info={}, train_config={})


def _tagged_commit(
    plan: UploadPlan, tag: str | None, token: str | bool | None, endpoint: str | None
) -> str | None:
    api = hub_api(token, endpoint)
    try:
        refs = api.list_repo_refs(plan.repo_id)
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        raise HubError(f"{plan.repo_id}: its tags cannot be read: {explain(error)}") from error
    return next((found.target_commit for found in refs.tags if found.name == tag), None)


def _set_tag(repo_id: str, tag: str, commit: str, token: str | bool | None, endpoint: str | None) -> None:
    api = hub_api(token, endpoint)
    try:
        api.create_tag(repo_id, tag=tag, revision=commit)
    except Exception as error:
        raise HubError(
            f"{repo_id}: published as commit {commit}, but the tag {tag!r} could not be set: "
            f"{explain(error)}. Run the same command again: it only sets the tag"
        ) from error
