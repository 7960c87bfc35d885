"""Publish files to the Hub as one commit that is verified, or not at all.

First a plan: what is there, what differs. Then large files are uploaded, which changes nothing that anybody
sees; then one commit makes all of it visible at once, and only if the branch is still as the plan saw it. At
the end sizes and checksums that the Hub reports are compared with the local ones.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from spi_diffusers.data.network import explain
from spi_diffusers.hub.client import HubError, change, explained, hub_api, read
from spi_diffusers.hub.upload_plan import UploadPlan, change_of

logger = logging.getLogger(__name__)
#: As many paths as the Hub describes in one request.
_PATHS_PER_REQUEST = 500


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


def _page(api: HfApi, plan: UploadPlan) -> str:
    kind = "" if plan.repo_type == "model" else f"{plan.repo_type}s/"
    return f"{api.endpoint}/{kind}{plan.repo_id}"


def _differences(api: HfApi, plan: UploadPlan, revision: str) -> list[str]:
    """Paths at which a commit is not what the plan wants."""
    paths = [file.path for file in plan.files] + list(plan.delete)
    remote: dict[str, RepoFile] = {}
    for start in range(0, len(paths), _PATHS_PER_REQUEST):
        part = paths[start : start + _PATHS_PER_REQUEST]
        found = read(api.get_paths_info, plan.repo_id, part, revision=revision, repo_type=plan.repo_type)
        remote |= {item.path: item for item in found if isinstance(item, RepoFile)}
    wrong = [file.path for file in plan.files if change_of(file.content, remote) != "unchanged"]
    return wrong + [path for path in plan.delete if path in remote]


def _prepare(api: HfApi, plan: UploadPlan) -> str:
    """Make the repository or the branch if there is none; return the commit to build on."""
    head, options = plan.head, plan.options
    if head is None:
        # Without a wish, the organization's own default decides.
        private = True if options.private else None
        how: dict[str, Any] = {"space_sdk": "gradio"} if plan.repo_type == "space" else {}
        change(api.create_repo, plan.repo_id, repo_type=plan.repo_type, private=private, **how)
        head = str(read(api.repo_info, plan.repo_id, repo_type=plan.repo_type).sha)
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
    oid = str(read(api.repo_info, plan.repo_id, repo_type=plan.repo_type, revision=branch).sha)
    if oid == head or _differences(api, plan, oid):
        return None
    return UploadResult(plan, oid, f"{_page(api, plan)}/commit/{oid}", changed=False)


def _open_pull_request(api: HfApi, plan: UploadPlan) -> UploadResult | None:
    """An open pull request of this title that holds the same files."""

    def opened(repo_id: str) -> list[Any]:
        kind: dict[str, Any] = {"discussion_type": "pull_request", "discussion_status": "open"}
        return list(api.get_repo_discussions(repo_id, repo_type=plan.repo_type, **kind))

    title, unmerged = plan.options.message, ("open", "draft")
    for found in read(opened, plan.repo_id):
        if found.is_pull_request and found.title == title and found.status in unmerged:
            revision = f"refs/pr/{found.num}"
            oid = str(read(api.repo_info, plan.repo_id, repo_type=plan.repo_type, revision=revision).sha)
            if not _differences(api, plan, oid):
                page = f"{_page(api, plan)}/discussions/{found.num}"
                return UploadResult(plan, oid, page, changed=False, pull_request=revision)
    return None
