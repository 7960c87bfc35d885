"""Publish files to the Hub as one commit that is verified, or not at all.

First a plan: what is there, what differs. Then large files are uploaded, which changes nothing that anybody
sees; then one commit makes all of it visible at once, and only if the branch is still as the plan saw it. At
the end sizes and checksums that the Hub reports are compared with the local ones.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from spi_diffusers.data.network import clean_token, explain, is_refused, with_retries

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger(__name__)

RepoType = Literal["model", "dataset"]
Change = Literal["new", "changed", "unchanged"]
#: As many paths as the Hub describes in one request.
_PATHS_PER_REQUEST = 500


class HubError(RuntimeError):
    """Something on the Hub cannot be read or changed; the message names it and says what to do."""


@dataclass(frozen=True)
class UploadOptions:
    """How to publish.

    Attributes:
        branch: Where the commit goes; may be new.
        tag: Name for what is published; an existing tag is never moved.
        message: First line of the commit, and title of the pull request.
        private: Make the repository private, if it is new; refuse a public one.
        create_pr: Open a pull request instead of changing the branch; goes without a tag.
        token: Access token; None or True takes the stored one.
    """

    branch: str = "main"
    tag: str | None = None
    message: str = "Publish policy"
    private: bool = False
    create_pr: bool = False
    token: str | bool | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.create_pr and self.tag is not None:
            raise ValueError("a pull request cannot be tagged: tag it after it is merged")


@dataclass(frozen=True)
class PlannedFile:
    """One file of a plan: its content, and what the commit does with it."""

    content: CommitOperationAdd
    change: Change

    @property
    def path(self) -> str:
        """Path in the repository."""
        return self.content.path_in_repo

    @property
    def size(self) -> int:
        """In bytes."""
        return self.content.upload_info.size


@dataclass(frozen=True)
class UploadPlan:
    """What an upload would do.

    `private` and `head` (the commit the plan was made against) are None if the repository does not exist;
    `tagged` is the commit that has the tag already. `others` are files of the repository that stay.
    """

    repo_id: str
    repo_type: RepoType
    options: UploadOptions
    private: bool | None
    has_branch: bool
    head: str | None
    tagged: str | None
    files: tuple[PlannedFile, ...]
    delete: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def exists(self) -> bool:
        """Whether the repository exists and can be seen."""
        return self.head is not None

    @property
    def is_done(self) -> bool:
        """Whether the repository holds all of it already."""
        return self.has_branch and not self.delete and all(file.change == "unchanged" for file in self.files)

    def summary(self) -> str:
        """How many files are new, changed, unchanged and deleted, and how much is to be sent."""
        changes = [file.change for file in self.files] + ["deleted"] * len(self.delete)
        counts = {change: changes.count(change) for change in ("new", "changed", "unchanged", "deleted")}
        size = sum(file.size for file in self.files if file.change != "unchanged")
        parts = [f"{count} {change}" for change, count in counts.items() if count]
        return f"{', '.join(parts)}; {_shown_size(size)} to send"

    def table(self) -> "Table":
        """The files as a table for `rich`: size, checksum, and what happens to each."""
        from rich.markup import escape
        from rich.table import Table

        where = "will be made"
        if self.exists:
            visibility = "private" if self.private else "public"
            where = f"{visibility}, {self.options.branch} at {str(self.head)[:8]}"
        table = Table(title=f"{self.repo_id} ({self.repo_type}; {where})", caption=self.summary())
        table.add_column("file", overflow="fold")
        table.add_column("size", justify="right")
        table.add_column("SHA-256")
        table.add_column("")
        for file in self.files:
            sha256 = file.content.upload_info.sha256.hex()
            table.add_row(escape(file.path), _shown_size(file.size), sha256[:16], file.change)
        for path in self.delete:
            table.add_row(escape(path), "", "", "deleted")
        return table


@dataclass(frozen=True)
class UploadResult:
    """What an upload has done: the commit and its page (or the pull request's). `changed` is false if the
    files were there already; `pull_request` is its reference (`refs/pr/1`).
    """

    plan: UploadPlan
    commit: str
    url: str
    changed: bool
    pull_request: str | None = None

    def __str__(self) -> str:
        if not self.changed:
            where = "an open pull request" if self.pull_request else self.plan.repo_id
            return f"Nothing to do: {where} holds exactly these files: {self.url}"
        what = "Opened as a pull request" if self.pull_request else "Published"
        return f"{what}: {self.plan.summary()}; verified by checksum: {self.url}"


@contextmanager
def explained(what: str, advice: str = "") -> Iterator[None]:
    """Turn whatever huggingface_hub and its HTTP library raise into a HubError: `what` failed, and why."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # they raise many unrelated types
        raise HubError(f"{what}: {explain(error)}{advice}") from error


def hub_api(token: str | bool | None) -> HfApi:
    """A client of the Hub that says who it is; ValueError if the token cannot be one."""
    return HfApi(token=clean_token(token), library_name="spi-diffusers")


def plan_upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    options: UploadOptions,
    *,
    repo_type: RepoType = "model",
    stale: Callable[[str], bool] = lambda path: False,
) -> UploadPlan:
    """Compare local files (paths or bytes, by path in the repository) with a repository; nothing is changed.

    `stale` tells which other files of the repository the commit shall remove. HubError: the id is not one,
    the Hub cannot be reached or refuses the token, the repository is public and shall be private, or the tag
    names something else; ValueError: a local file is missing.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} cannot be the id of a repository: {error}") from error
    if repo_id.count("/") != 1:
        raise HubError(f"{repo_id!r} must have the form organization/name")
    contents = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
    api, branch = hub_api(options.token), options.branch
    private, has_branch, head, tagged, remote = None, False, None, None, {}
    with explained(f"{repo_id}: cannot be compared with the Hub"):
        try:
            info = _read(api.repo_info, repo_id, repo_type=repo_type)
            private, head = bool(info.private), info.sha
            try:
                head = _read(api.repo_info, repo_id, repo_type=repo_type, revision=branch).sha
                has_branch = True
            except RevisionNotFoundError:
                logger.info("%s: there is no branch %s yet; it will start from main.", repo_id, branch)
            tree = _read(partial(_list_tree, api), repo_id, repo_type=repo_type, revision=head)
            remote = {item.path: item for item in tree if isinstance(item, RepoFile)}
            if options.tag is not None:
                tags = _read(api.list_repo_refs, repo_id, repo_type=repo_type).tags
                tagged = next((found.target_commit for found in tags if found.name == options.tag), None)
        except RepositoryNotFoundError:
            pass
    if options.private and private is False:
        raise HubError(
            f"{repo_id}: exists already and is public, so this would not be private. Nothing was uploaded; "
            "choose another name, or change the repository's visibility on the Hub first"
        )
    rest = sorted(remote.keys() - files.keys())
    plan = UploadPlan(
        repo_id=repo_id,
        repo_type=repo_type,
        options=options,
        private=private,
        has_branch=has_branch,
        head=head,
        tagged=tagged,
        files=tuple(PlannedFile(added, _change(added, remote)) for added in contents),
        delete=tuple(path for path in rest if stale(path)),
        others=tuple(path for path in rest if not stale(path)),
    )
    if tagged is not None and not (plan.is_done and tagged == head):
        raise HubError(
            f"{repo_id}: the tag {options.tag!r} exists already, for another commit ({tagged[:8]}), and tags "
            "are not moved. Nothing was uploaded; choose another tag"
        )
    return plan


def upload(plan: UploadPlan) -> UploadResult:
    """Carry out a plan: one commit, verified by checksum, then the tag.

    A repository that holds everything already gets no commit, nor does one with an open pull request of this
    title and these files. On a HubError nothing visible has changed, unless the message says so; the same
    call (with a new plan) does not upload again what has arrived.
    """
    api, options = hub_api(plan.options.token), plan.options
    if plan.is_done:
        result = UploadResult(plan, str(plan.head), f"{_page(api, plan)}/tree/{plan.head}", changed=False)
    else:
        with explained(f"{plan.repo_id}: nothing was published", ". The same command can be run again"):
            opened = _open_pull_request(api, plan) if options.create_pr and plan.exists else None
            head = "" if opened is not None else _prepare(api, plan)
        result = opened or _commit(api, plan, head)
    if options.tag is not None and plan.tagged is None:
        with explained(
            f"{plan.repo_id}: published as commit {result.commit}, but the tag {options.tag!r} could not be "
            "set",
            ". Run the same command again: it only sets the tag",
        ):
            revision = result.commit
            change(api.create_tag, plan.repo_id, tag=options.tag, revision=revision, repo_type=plan.repo_type)
    return result


def _read(call: Callable[..., Any], repo_id: str, *args: Any, **kwargs: Any) -> Any:
    """A request that changes nothing, with retries."""
    return with_retries(partial(call, repo_id, *args, **kwargs), what=f"{repo_id}: a request to the Hub")


def change(call: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """A request that changes what `name` is the id of; again only where the Hub has refused it for now."""
    asked = partial(call, name, *args, **kwargs)
    return with_retries(asked, what=f"{name}: a change on the Hub", passes=is_refused)


def _list_tree(api: HfApi, repo_id: str, **where: Any) -> list[Any]:
    return list(api.list_repo_tree(repo_id, recursive=True, **where))


def _page(api: HfApi, plan: UploadPlan) -> str:
    return f"{api.endpoint}/{'datasets/' if plan.repo_type == 'dataset' else ''}{plan.repo_id}"


def _change(local: CommitOperationAdd, remote: Mapping[str, RepoFile]) -> Change:
    """Large files have a SHA-256 on the Hub, small ones git's SHA-1 of their content."""
    there = remote.get(local.path_in_repo)
    if there is None:
        return "new"
    if there.size != local.upload_info.size:
        return "changed"
    if there.lfs is not None:
        return "unchanged" if there.lfs.sha256 == local.upload_info.sha256.hex() else "changed"
    with local.as_file() as file:
        return "unchanged" if there.blob_id == git_hash(file.read()) else "changed"


def _differences(api: HfApi, plan: UploadPlan, revision: str) -> list[str]:
    """Paths at which a commit is not what the plan wants."""
    paths = [file.path for file in plan.files] + list(plan.delete)
    remote: dict[str, RepoFile] = {}
    for start in range(0, len(paths), _PATHS_PER_REQUEST):
        part = paths[start : start + _PATHS_PER_REQUEST]
        found = _read(api.get_paths_info, plan.repo_id, part, revision=revision, repo_type=plan.repo_type)
        remote |= {item.path: item for item in found if isinstance(item, RepoFile)}
    wrong = [file.path for file in plan.files if _change(file.content, remote) != "unchanged"]
    return wrong + [path for path in plan.delete if path in remote]


def _prepare(api: HfApi, plan: UploadPlan) -> str:
    """Make the repository or the branch if there is none; return the commit to build on."""
    head, options = plan.head, plan.options
    if head is None:
        # Without a wish, the organization's own default decides.
        private = True if options.private else None
        change(api.create_repo, plan.repo_id, repo_type=plan.repo_type, private=private)
        head = str(_read(api.repo_info, plan.repo_id, repo_type=plan.repo_type).sha)
    if not plan.has_branch and options.branch != "main" and not options.create_pr:
        branch = options.branch
        change(api.create_branch, plan.repo_id, branch=branch, revision=head, repo_type=plan.repo_type)
    return head


def _commit(api: HfApi, plan: UploadPlan, head: str) -> UploadResult:
    """Make the commit, and compare what the Hub says of every file in it with the local ones."""
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        file.content for file in plan.files if file.change != "unchanged"
    ]
    operations += [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in plan.delete]
    try:
        made = change(
            api.create_commit,
            plan.repo_id,
            operations,
            commit_message=plan.options.message,
            repo_type=plan.repo_type,
            revision=None if plan.options.create_pr else plan.options.branch,
            create_pr=plan.options.create_pr,
            parent_commit=head,
        )
        result = UploadResult(plan, made.oid, made.pr_url or made.commit_url, True, made.pr_revision)
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        # The connection may have broken after the commit was made: look, instead of guessing.
        with explained(
            f"{plan.repo_id}: the upload failed ({explain(error)}), and the Hub does not say whether the "
            "commit was made",
            ". Run the same command again: it finds out",
        ):
            landed = _open_pull_request(api, plan) if plan.options.create_pr else _landed(api, plan, head)
        if landed is None:
            raise HubError(
                f"{plan.repo_id}: nothing was published, the branch is as it was: {explain(error)}. The same "
                "command can be run again; what has arrived is not uploaded twice"
            ) from error
        logger.warning("%s: the answer to the commit was lost, but the commit was made.", plan.repo_id)
        result = replace(landed, changed=True)
    with explained(
        f"{plan.repo_id}: commit {result.commit} was made, but could not be verified",
        ". Run the same command again: it compares all files, and changes nothing that is right",
    ):
        wrong = _differences(api, plan, result.commit)
    if wrong:
        raise HubError(
            f"{plan.repo_id}: commit {result.commit} does not hold what was uploaded: {', '.join(wrong[:5])} "
            f"{'differs' if len(wrong) == 1 else 'differ'} in size or checksum. The state before is "
            f"{plan.head or 'empty'}. Run the same command again to repair it"
        )
    return result


def _landed(api: HfApi, plan: UploadPlan, head: str) -> UploadResult | None:
    """The commit at the branch's head, if it is new and what the plan wants."""
    branch = plan.options.branch
    oid = str(_read(api.repo_info, plan.repo_id, repo_type=plan.repo_type, revision=branch).sha)
    if oid == head or _differences(api, plan, oid):
        return None
    return UploadResult(plan, oid, f"{_page(api, plan)}/commit/{oid}", changed=False)


def _open_pull_request(api: HfApi, plan: UploadPlan) -> UploadResult | None:
    """An open pull request of this title that holds the same files."""

    def opened(repo_id: str) -> list[Any]:
        kind: dict[str, Any] = {"discussion_type": "pull_request", "discussion_status": "open"}
        return list(api.get_repo_discussions(repo_id, repo_type=plan.repo_type, **kind))

    title, unmerged = plan.options.message, ("open", "draft")
    for found in _read(opened, plan.repo_id):
        if found.is_pull_request and found.title == title and found.status in unmerged:
            revision = f"refs/pr/{found.num}"
            oid = str(_read(api.repo_info, plan.repo_id, repo_type=plan.repo_type, revision=revision).sha)
            if not _differences(api, plan, oid):
                page = f"{_page(api, plan)}/discussions/{found.num}"
                return UploadResult(plan, oid, page, changed=False, pull_request=revision)
    return None


def _shown_size(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB"):
        if value >= 1000:
            value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"
