"""Publish many policies, each by a commit of its own; one that fails does not keep the others back."""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spi_diffusers.files import CONFIG_FILE
from spi_diffusers.hub.policy_files import PolicyFiles, read_policy_files
from spi_diffusers.hub.publish import PublishPlan, check_acts, plan_publish, publish
from spi_diffusers.hub.trained_policies import TrainedPolicy
from spi_diffusers.hub.upload import check_private
from spi_diffusers.training.run_folder import WITHOUT_EFFECT

logger = logging.getLogger(__name__)

State = Literal["published", "unchanged", "planned", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one policy.

    Attributes:
        policy: The policy.
        repo_id: Its repository.
        state: "unchanged" if the repository held all of it already, "planned" after a dry run.
        text: Address of what is published; what would be done; or what went wrong.
        entries: Number of evaluation results on its card.
    """

    policy: TrainedPolicy
    repo_id: str
    state: State
    text: str
    entries: int = 0


@dataclass(frozen=True)
class PublishSettings:
    """What all policies of a run of `spi publish --all` share.

    Attributes:
        organisation: User or organisation on the Hub.
        branch: Where the commits go.
        tag: Name for what is published.
        message: First line of the commits.
        private: Make repositories private, where they have to be made.
        licence: Of the weights, as the Hub names licences; None takes the default.
        dry_run: Compare everything, change nothing.
        token: Access token; None takes the stored one.
        endpoint: Address of the Hub, where it is not the usual one.
    """

    organisation: str
    branch: str = "main"
    tag: str | None = None
    message: str = "Publish policy"
    private: bool = False
    licence: str | None = None
    dry_run: bool = False
    token: str | None = None
    endpoint: str | None = None


def publish_policies(
    chosen: Sequence[TrainedPolicy], found: Sequence[TrainedPolicy], settings: PublishSettings
) -> Iterator[Outcome]:
    """Publish one policy after the other, or compare them with the Hub.

    Args:
        chosen: What to publish; each has a name of its own.
        found: All policies there are: results of other training seeds go on the card of the chosen one.
        settings: How to publish.

    Yields:
        What became of each, in order. Errors of one policy are in its outcome; the same call made again
        completes what is missing.
    """
    for policy in chosen:
        repo_id = f"{settings.organisation}/{policy.repo_name}"
        others = [other for other in found if other.repo_name == policy.repo_name and other != policy]
        try:
            with tempfile.TemporaryDirectory(prefix="spi-publish-") as scratch:
                files = with_other_seeds(read_policy_files(policy.folder), others, Path(scratch))
                files = replace(files, licence=settings.licence or files.licence)
                outcome = _publish(policy, repo_id, files, settings)
        except Exception as error:  # of whatever kind: the others are still to come, and all are reported
            kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
            outcome = Outcome(policy, repo_id, "failed", kind + " ".join(str(error).split()))
            logger.debug("%s failed", repo_id, exc_info=True)
        yield outcome


def with_other_seeds(files: PolicyFiles, others: Sequence[TrainedPolicy], scratch: Path) -> PolicyFiles:
    """Add the results of other training seeds, where they were trained by the same settings on the same data.

    Args:
        files: Of the policy that is published.
        others: Policies of the same task and algorithm.
        scratch: Folder for the plot of return and cost against the limit, which is drawn over all seeds.

    Returns:
        The same files with more entries; as they are if there is nothing to add.
    """
    entries = {entry.key: entry for entry in files.entries}
    if not entries:
        return files
    for other in others:
        try:
            theirs = read_policy_files(other.folder)
        except (ValueError, OSError) as error:  # it says nothing about the policy that is published
            logger.warning("%s: its results are left out: %s", other.folder, error)
            continue
        difference = _difference(files, theirs)
        if difference:
            logger.warning(
                "%s: its results are left out: %s differs from %s", other.folder, difference, files.folder
            )
            continue
        # What was not played with the weights that are published has no place on their card.
        alike = {entry.key[:-1] for entry in files.entries}
        entries = {entry.key: entry for entry in theirs.entries if entry.key[:-1] in alike} | entries
    if len(entries) == len(files.entries):
        return files
    from spi_diffusers.evaluation.plots import plot_limits

    plot = scratch / "limits.png"
    plot_limits(list(entries.values()), plot)
    ordered = tuple(entry for _, entry in sorted(entries.items()))
    return replace(files, entries=ordered, plots=files.plots | {plot.name: plot})


def _publish(policy: TrainedPolicy, repo_id: str, files: PolicyFiles, settings: PublishSettings) -> Outcome:
    check_acts(files)
    where: dict[str, Any] = {"token": settings.token, "endpoint": settings.endpoint}
    plan = plan_publish(files, repo_id, branch=settings.branch, tag=settings.tag, **where)
    if settings.private:
        check_private(plan.upload)
    if settings.dry_run:
        return Outcome(policy, repo_id, "planned", _plan_text(plan), len(files.entries))
    result = publish(plan, message=settings.message, private=settings.private, **where)
    state: State = "published" if result.changed else "unchanged"
    return Outcome(policy, repo_id, state, result.url, len(files.entries))


def _plan_text(plan: PublishPlan) -> str:
    changes = [file for file in plan.upload.files if file.change != "unchanged"]
    if plan.upload.is_done:
        return "holds exactly these files"
    where = "exists" if plan.upload.exists else "will be made"
    return f"{where}; {len(changes)} files to send, {len(plan.upload.delete)} to delete"


def _difference(first: PolicyFiles, second: PolicyFiles) -> str | None:
    """What makes two policies more than two seeds of one kind; None if nothing does."""
    ours, theirs = first.train_info, second.train_info
    if ours["updates"] != theirs["updates"]:
        return "updates"
    if ours["dataset"].get("sha256") != theirs["dataset"].get("sha256"):
        return "dataset"
    settings = [_settings(files.train_config) for files in (first, second)]
    for name in sorted(settings[0].keys() | settings[1].keys()):
        if settings[0].get(name) != settings[1].get(name):
            return f"{name} in {CONFIG_FILE}"
    return None


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Those that decide what is learned, but for the seed."""
    return {
        name: json.dumps(value, sort_keys=True)
        for name, value in config.items()
        if name not in (*WITHOUT_EFFECT, "seed")
    }
