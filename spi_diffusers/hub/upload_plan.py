"""What an upload would do: local files compared with a repository on the Hub; nothing is changed."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from spi_diffusers.hub.client import HubError, explained, hub_api, read

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger(__name__)

RepoType = Literal["model", "dataset", "space"]
Change = Literal["new", "changed", "unchanged"]


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
            info = read(api.repo_info, repo_id, repo_type=repo_type)
            private, head = bool(info.private), info.sha
            try:
                head = read(api.repo_info, repo_id, repo_type=repo_type, revision=branch).sha
                has_branch = True
            except RevisionNotFoundError:
                logger.info("%s: there is no branch %s yet; it will start from main.", repo_id, branch)
            tree = read(partial(_list_tree, api), repo_id, repo_type=repo_type, revision=head)
            remote = {item.path: item for item in tree if isinstance(item, RepoFile)}
            if options.tag is not None:
                tags = read(api.list_repo_refs, repo_id, repo_type=repo_type).tags
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
        files=tuple(PlannedFile(added, change_of(added, remote)) for added in contents),
        delete=tuple(path for path in rest if stale(path)),
        others=tuple(path for path in rest if not stale(path)),
    )
    if tagged is not None and not (plan.is_done and tagged == head):
        raise HubError(
            f"{repo_id}: the tag {options.tag!r} exists already, for another commit ({tagged[:8]}), and tags "
            "are not moved. Nothing was uploaded; choose another tag"
        )
    return plan


def _list_tree(api: HfApi, repo_id: str, **where: Any) -> list[Any]:
    return list(api.list_repo_tree(repo_id, recursive=True, **where))


def change_of(local: CommitOperationAdd, remote: Mapping[str, RepoFile]) -> Change:
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


def _shown_size(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    value, unit = size / 1000, "kB"
    for larger in ("MB", "GB"):
        if value >= 1000:
            value, unit = value / 1000, larger
    return f"{value:.1f} {unit}"
