"""Publish files to the Hub as one commit that is verified, or not at all.

First a plan: what is there, what differs. Then large files are uploaded, which changes nothing that anybody
sees; then one commit makes all of it visible at once, and only if the branch is still as the plan saw it. At
the end sizes and checksums that the Hub reports are compared with the local ones.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spi_diffusers.data.network import Result, explain, with_retries
from spi_diffusers.hub.checksums import Checksums
from spi_diffusers.hub.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import CommitInfo, RepoFile

logger = logging.getLogger(__name__)

RepoType = Literal["model", "dataset"]
Change = Literal["new", "changed", "unchanged"]
#: As many paths as the Hub describes in one request.
_PATHS_PER_REQUEST = 500


@dataclass(frozen=True)
class PlannedFile:
    """One file of a plan.

    Attributes:
        path: where in the repository.
        content: a local file, or the bytes.
        checksums: of the content.
        change: what the commit does with it.
    """

    path: str
    content: Path | bytes
    checksums: Checksums
    change: Change


@dataclass(frozen=True)
class UploadPlan:
    """What an upload would do.

    Attributes:
        repo_id: `organisation/name`.
        repo_type: "model" or "dataset".
        branch: where the commit goes.
        exists: whether the repository exists and can be seen.
        private: whether it is private; None if it does not exist.
        has_branch: whether the branch exists.
        head: the commit that the plan was made against; None if the repository does not exist.
        files: what the repository shall hold, in order of their paths.
        delete: files of the repository that the commit removes.
        others: files of the repository that stay as they are.
    """

    repo_id: str
    repo_type: RepoType
    branch: str
    exists: bool
    private: bool | None
    has_branch: bool
    head: str | None
    files: tuple[PlannedFile, ...]
    delete: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        """Whether the repository holds all of it already."""
        return self.has_branch and not self.delete and all(file.change == "unchanged" for file in self.files)


@dataclass(frozen=True)
class UploadResult:
    """What an upload has done.

    Attributes:
        plan: what was to be done.
        commit: id of the commit that holds the files.
        url: its page, or that of the pull request.
        changed: whether a commit was made; else the files were there already.
        pull_request: reference of the pull request (`refs/pr/1`), if it was to be one.
    """

    plan: UploadPlan
    commit: str
    url: str
    changed: bool
    pull_request: str | None = None


def plan_upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    *,
    repo_type: RepoType,
    branch: str = "main",
    stale: Callable[[str], bool] = lambda path: False,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> UploadPlan:
    """Compare local files with a repository; nothing is changed.

    Args:
        repo_id: `organisation/name`; need not exist.
        files: content by path in the repository: local files, or bytes.
        repo_type: "model" or "dataset".
        branch: where the commit is to go; need not exist.
        stale: which files of the repository that are not among `files` the commit shall remove.
        token: access token; None or True takes the stored one.
        endpoint: address of the Hub, where it is not the usual one.

    Returns:
        The plan.

    Raises:
        HubError: the id is not one, the Hub cannot be reached, or it refuses the token.
        OSError: a local file cannot be read.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} cannot be the id of a repository: {error}") from error
    if repo_id.count("/") != 1:
        raise HubError(f"{repo_id!r} must have the form organisation/name")
    checksums = {path: Checksums.of(content) for path, content in sorted(files.items())}
    api = hub_api(token, endpoint)
    private, has_branch, head = None, False, None
    remote: dict[str, RepoFile] = {}
    try:
        info = _read(lambda: api.repo_info(repo_id, repo_type=repo_type), repo_id)
        private, head = bool(info.private), info.sha
        try:
            head = _read(lambda: api.repo_info(repo_id, repo_type=repo_type, revision=branch), repo_id).sha
            has_branch = True
        except RevisionNotFoundError:
            logger.info("%s: there is no branch %s yet; it will start from main.", repo_id, branch)
        remote = _read(lambda: _list(api, repo_id, repo_type, str(head)), repo_id)
    except RepositoryNotFoundError:
        pass
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        raise HubError(f"{repo_id}: cannot be compared with the Hub: {explain(error)}") from error
    planned = tuple(
        PlannedFile(path, files[path], sums, _change(sums, remote.get(path)))
        for path, sums in checksums.items()
    )
    rest = sorted(remote.keys() - files.keys())
    return UploadPlan(
        repo_id=repo_id,
        repo_type=repo_type,
        branch=branch,
        exists=head is not None,
        private=private,
        has_branch=has_branch,
        head=head,
        files=planned,
        delete=tuple(path for path in rest if stale(path)),
        others=tuple(path for path in rest if not stale(path)),
    )


def check_private(plan: UploadPlan) -> None:
    """Refuse to publish in a repository that is public what shall be private.

    Raises:
        HubError: It exists and is public.
    """
    if plan.private is False:
        raise HubError(
            f"{plan.repo_id}: exists already and is public, so this would not be private. Nothing was "
            "uploaded; choose another name, or change the repository's visibility on the Hub first"
        )


def upload(
    plan: UploadPlan,
    *,
    message: str,
    private: bool = False,
    create_pr: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> UploadResult:
    """Carry out a plan by one commit.

    Args:
        plan: from `plan_upload`.
        message: first line of the commit, and title of the pull request.
        private: make the repository private, if it has to be made.
        create_pr: open a pull request instead of changing the branch.
        token: access token; None or True takes the stored one.
        endpoint: address of the Hub, where it is not the usual one.

    Returns:
        What was done. A repository that holds everything already gets no commit, and neither does one that
        has an open pull request of this title with the same files.

    Raises:
        HubError: nothing visible has changed, unless the message says so. The same call can be made again
            (with a new plan), and does not upload again what has arrived.
    """
    api = hub_api(token, endpoint)
    base = f"{api.endpoint}/{'datasets/' if plan.repo_type == 'dataset' else ''}{plan.repo_id}"
    if private:
        check_private(plan)
    if plan.is_done:
        return UploadResult(plan, str(plan.head), f"{base}/tree/{plan.head}", changed=False)
    try:
        if create_pr:
            found = _open_pull_request(api, plan, message)
            if found is not None:
                return UploadResult(
                    plan, found[0], f"{base}/discussions/{found[1]}", False, f"refs/pr/{found[1]}"
                )
        head = _prepare(api, plan, private, create_pr)
    except HubError:
        raise
    except Exception as error:
        raise HubError(
            f"{plan.repo_id}: nothing was published: {explain(error)}. The same command can be run again"
        ) from error
    commit, url, pull_request = _commit(api, plan, head, message, create_pr, base)
    _verify(api, plan, commit)
    return UploadResult(plan, commit, url, changed=True, pull_request=pull_request)


def hub_api(token: str | bool | None, endpoint: str | None) -> "HfApi":
    """A client of the Hub that says who it is."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token=token, library_name="spi-diffusers")


def _read(call: Callable[[], Result], repo_id: str) -> Result:
    return with_retries(call, what=f"{repo_id}: a request to the Hub")


def _list(api: "HfApi", repo_id: str, repo_type: RepoType, revision: str) -> "dict[str, RepoFile]":
    from huggingface_hub.hf_api import RepoFile

    items = api.list_repo_tree(repo_id, repo_type=repo_type, revision=revision, recursive=True)
    return {item.path: item for item in items if isinstance(item, RepoFile)}


def _change(local: Checksums, remote: "RepoFile | None") -> Change:
    if remote is None:
        return "new"
    return "unchanged" if _is_same(local, remote) else "changed"


def _is_same(local: Checksums, remote: "RepoFile") -> bool:
    """Large files have a SHA-256 on the Hub, small ones git's SHA-1 of their content."""
    if remote.size != local.size:
        return False
    return remote.lfs.sha256 == local.sha256 if remote.lfs is not None else remote.blob_id == local.git_sha1


def _prepare(api: "HfApi", plan: UploadPlan, private: bool, create_pr: bool) -> str:
    """Make the repository or the branch if there is none; return the commit to build on."""
    if plan.head is None:
        # Without a wish, the organisation's own default decides.
        api.create_repo(plan.repo_id, repo_type=plan.repo_type, private=True if private else None)
        info = api.repo_info(plan.repo_id, repo_type=plan.repo_type)
        head = str(info.sha)
    else:
        head = plan.head
    if not plan.has_branch and plan.branch != "main" and not create_pr:
        api.create_branch(plan.repo_id, branch=plan.branch, revision=head, repo_type=plan.repo_type)
    return head


def _commit(
    api: "HfApi", plan: UploadPlan, head: str, message: str, create_pr: bool, base: str
) -> tuple[str, str, str | None]:
    """The commit's id, its page, and the reference of the pull request."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    changed = [file for file in plan.files if file.change != "unchanged"]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=file.content) for file in changed
    ]
    operations += [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in plan.delete]
    try:
        made: CommitInfo = api.create_commit(
            plan.repo_id,
            operations,
            commit_message=message,
            repo_type=plan.repo_type,
            revision=None if create_pr else plan.branch,
            create_pr=create_pr,
            parent_commit=head,
        )
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        # The connection may have broken after the commit was made: look, instead of guessing.
        try:
            landed = _find_landed(api, plan, head, message, create_pr)
        except Exception as again:
            raise HubError(
                f"{plan.repo_id}: the upload failed ({explain(error)}), and the Hub does not say whether the "
                f"commit was made ({explain(again)}). Run the same command again: it finds out"
            ) from error
        if landed is None:
            raise HubError(
                f"{plan.repo_id}: nothing was published, the branch is as it was: {explain(error)}. The same "
                "command can be run again; what has arrived is not uploaded twice"
            ) from error
        oid, num = landed
        logger.warning("%s: the answer to the commit was lost, but the commit was made.", plan.repo_id)
        url = f"{base}/discussions/{num}" if num else f"{base}/commit/{oid}"
        return oid, url, f"refs/pr/{num}" if num else None
    return made.oid, made.pr_url or made.commit_url, made.pr_revision


def _find_landed(
    api: "HfApi", plan: UploadPlan, head: str, message: str, create_pr: bool
) -> tuple[str, int | None] | None:
    if create_pr:
        return _open_pull_request(api, plan, message)
    info = _read(
        lambda: api.repo_info(plan.repo_id, repo_type=plan.repo_type, revision=plan.branch), plan.repo_id
    )
    if info.sha == head or _differences(plan, _list(api, plan.repo_id, plan.repo_type, str(info.sha))):
        return None
    return str(info.sha), None


def _open_pull_request(api: "HfApi", plan: UploadPlan, message: str) -> tuple[str, int] | None:
    """Commit and number of an open pull request of this title that holds the same files."""
    if not plan.exists:
        return None
    opened = _read(
        lambda: list(
            api.get_repo_discussions(
                plan.repo_id,
                repo_type=plan.repo_type,
                discussion_type="pull_request",
                discussion_status="open",
            )
        ),
        plan.repo_id,
    )
    for found in opened:
        if found.is_pull_request and found.status in ("open", "draft") and found.title == message:
            revision = f"refs/pr/{found.num}"
            info = api.repo_info(plan.repo_id, repo_type=plan.repo_type, revision=revision)
            if not _differences(plan, _list(api, plan.repo_id, plan.repo_type, str(info.sha))):
                return str(info.sha), found.num
    return None


def _differences(plan: UploadPlan, remote: "Mapping[str, RepoFile]") -> list[str]:
    """Paths at which a commit is not what the plan wants."""
    wrong = [
        file.path for file in plan.files if _change(file.checksums, remote.get(file.path)) != "unchanged"
    ]
    return wrong + [path for path in plan.delete if path in remote]


def _verify(api: "HfApi", plan: UploadPlan, commit: str) -> None:
    """Compare what the Hub says of every file of the commit with the local ones.

    Raises:
        HubError: naming the files that differ.
    """
    from huggingface_hub.hf_api import RepoFile

    paths = [file.path for file in plan.files] + list(plan.delete)
    remote: dict[str, RepoFile] = {}
    try:
        for start in range(0, len(paths), _PATHS_PER_REQUEST):
            part = paths[start : start + _PATHS_PER_REQUEST]
            describe = partial(
                api.get_paths_info, plan.repo_id, part, revision=commit, repo_type=plan.repo_type
            )
            found = _read(describe, plan.repo_id)
            remote |= {item.path: item for item in found if isinstance(item, RepoFile)}
    except Exception as error:
        raise HubError(
            f"{plan.repo_id}: commit {commit} was made, but could not be verified: {explain(error)}. Run the "
            "same command again: it compares all files, and changes nothing that is right"
        ) from error
    wrong = _differences(plan, remote)
    if wrong:
        raise HubError(
            f"{plan.repo_id}: commit {commit} does not hold what was uploaded: {', '.join(wrong[:5])} "
            f"{'differs' if len(wrong) == 1 else 'differ'} in size or checksum. The state before is "
            f"{plan.head or 'empty'}. Run the same command again to repair it"
        )
