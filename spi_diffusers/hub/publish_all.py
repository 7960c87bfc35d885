"""Publish every trained policy under a folder: find them, name them, and give each a commit of its own."""

import fnmatch
import logging
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.results import read_train_info
from spi_diffusers.files import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    INDEX_FILE,
    INFO_FILE,
    POLICY_FOLDER,
    did_you_mean,
    local_path,
    read_json,
)
from spi_diffusers.hub.policy_files import PolicyFiles, is_publishable, read_policy_files
from spi_diffusers.hub.publish import check_acts, plan_publish
from spi_diffusers.hub.upload import upload
from spi_diffusers.hub.upload_plan import UploadOptions, UploadPlan
from spi_diffusers.training.run_folder import WITHOUT_EFFECT

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class TrainedPolicy:
    """A policy folder, as far as its name on the Hub depends on it; `task` is the short name, such as
    `ballcircle`.
    """

    task: str
    algorithm: str
    train_seed: int
    folder: Path

    @property
    def repo_name(self) -> str:
        """`<algorithm>-<task>`: no two tasks share a short name, so no two kinds of policy share this."""
        return f"{re.sub(r'[^a-z0-9]+', '-', self.algorithm.lower()).strip('-')}-{self.task}"


@dataclass(frozen=True)
class FoundPolicies:
    """What lies under a folder: policies, sorted; why others cannot be named, by folder; and folders of runs
    whose training has not ended.
    """

    policies: tuple[TrainedPolicy, ...]
    unnamed: dict[Path, str]
    unfinished: tuple[Path, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one policy.

    `state` is "published", "unchanged" (the repository held all of it), "planned" (dry run) or "failed".
    `text` is the address, what would be done, or what went wrong; `entries` the number of results on the
    card.
    """

    policy: TrainedPolicy
    repo_id: str
    state: str
    text: str
    entries: int = 0


def find_trained_policies(folder: str | Path, exclude: Sequence[str] = ()) -> FoundPolicies:
    """Look for policies in a folder and all folders in it, except hidden ones and those that fit `exclude`.

    FileNotFoundError: no such folder, or no policy in it; ValueError: a pattern fits no folder.
    """
    root = local_path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder{did_you_mean(root)}")
    used: set[str] = set()
    policies, unnamed, unfinished = [], {}, []
    for path, is_policy in sorted(_candidates(root, exclude, used)):
        if not is_policy:
            unfinished.append(path)
            continue
        try:
            policies.append(_named(path))
        except (ValueError, OSError) as error:
            unnamed[path] = str(error)
    for pattern in exclude:
        if pattern not in used:
            raise ValueError(f"{root}: --exclude {pattern} fits no folder in it")
    if not policies and not unnamed:
        raise FileNotFoundError(f"{root}: holds no trained policy (no {INDEX_FILE} in any folder)")
    return FoundPolicies(tuple(sorted(policies)), unnamed, tuple(unfinished))


def choose(policies: Sequence[TrainedPolicy], seed: int | None = None) -> tuple[TrainedPolicy, ...]:
    """One policy for each repository, sorted, of this training seed if one is given. ValueError: several
    would get the same name, or none has that seed.
    """
    wanted = [policy for policy in policies if seed in (None, policy.train_seed)]
    if policies and not wanted:
        seeds = ", ".join(str(number) for number in sorted({policy.train_seed for policy in policies}))
        raise ValueError(f"no policy has training seed {seed}; there are {seeds}")
    groups: dict[str, list[TrainedPolicy]] = defaultdict(list)
    for policy in wanted:
        groups[policy.repo_name].append(policy)
    several = {name: group for name, group in groups.items() if len(group) > 1}
    if several:
        listed = "; ".join(
            f"{name}: "
            + ", ".join(f"{policy.folder} (training seed {policy.train_seed})" for policy in group)
            for name, group in sorted(several.items())
        )
        # A seed chooses only between policies of different seeds.
        differ = all(len({policy.train_seed for policy in group}) == len(group) for group in several.values())
        raise ValueError(
            f"several policies would be published under the same name: {listed}. Nothing was published; "
            f"{'choose by --seed, or ' if differ else ''}leave folders out by --exclude"
        )
    return tuple(sorted(wanted))


def publish_policies(
    chosen: Sequence[TrainedPolicy],
    found: Sequence[TrainedPolicy],
    organization: str,
    options: UploadOptions,
    *,
    license: str | None = None,
    dry_run: bool = False,
) -> Iterator[Outcome]:
    """Publish one policy after the other, or (`dry_run`) compare them with the Hub; yields what became of
    each.

    Results of other training seeds in `found` go on the card of the chosen one. Errors of one policy are in
    its outcome; the same call made again completes what is missing.
    """
    for policy in chosen:
        repo_id = f"{organization}/{policy.repo_name}"
        others = [other for other in found if other.repo_name == policy.repo_name and other != policy]
        try:
            with tempfile.TemporaryDirectory(prefix="spi-publish-") as scratch:
                files = with_other_seeds(read_policy_files(policy.folder), others, Path(scratch))
                files = replace(files, license=license or files.license)
                check_acts(files)
                plan, entries = plan_publish(files, repo_id, options), len(files.entries)
                if dry_run:
                    outcome = Outcome(policy, repo_id, "planned", _plan_text(plan), entries)
                else:
                    result = upload(plan)
                    state = "published" if result.changed else "unchanged"
                    outcome = Outcome(policy, repo_id, state, result.url, entries)
        except Exception as error:  # of whatever kind: the others are still to come, and all are reported
            kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
            outcome = Outcome(policy, repo_id, "failed", kind + " ".join(str(error).split()))
            logger.debug("%s failed", repo_id, exc_info=True)
        yield outcome


def with_other_seeds(files: PolicyFiles, others: Sequence[TrainedPolicy], scratch: Path) -> PolicyFiles:
    """The files with results of other seeds added, where these were trained alike on the same data. The plot
    against the limit is drawn anew, over all seeds, in `scratch`.
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


def _candidates(root: Path, exclude: Sequence[str], used: set[str]) -> Iterator[tuple[Path, bool]]:
    """Policy folders, and folders of runs without one (False); patterns that fit go to `used`."""

    def refuse(error: OSError) -> None:
        raise error  # a folder that cannot be read is not an empty one

    seen: set[Path] = set()
    for name, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        path = Path(name)
        if path.resolve() in seen:  # links may lead in circles
            folders.clear()
            continue
        seen.add(path.resolve())
        if INDEX_FILE in files:
            folders.clear()  # its components are no policies
            if is_publishable(path):
                yield path, True
            else:
                logger.warning("%s: is left out, as policies of baselines are not published", path)
            continue
        kept = []
        for child in sorted(folders):
            relative = (path / child).relative_to(root).as_posix()
            fits = [pattern for pattern in exclude if fnmatch.fnmatch(relative, pattern.strip("/"))]
            used.update(fits)
            if not fits and not child.startswith("."):
                kept.append(child)
        if CHECKPOINTS_FOLDER in kept:
            kept.remove(CHECKPOINTS_FOLDER)
            if not (path / POLICY_FOLDER / INDEX_FILE).is_file():
                yield path, False
        folders[:] = kept


def _named(folder: Path) -> TrainedPolicy:
    """What names a policy; ValueError if its task or training is not recorded, or a file is broken."""
    task = read_json(folder / INDEX_FILE).get("task")
    give_name = f"give it one: `spi publish {folder} ORG/NAME`"
    if not isinstance(task, str):
        raise ValueError(
            f"{folder / INDEX_FILE}: names no task, so the policy has no name on the Hub; {give_name}"
        )
    if not (folder / INFO_FILE).is_file():
        raise ValueError(f"{folder}: has no {INFO_FILE}, so the policy has no name on the Hub; {give_name}")
    info = read_train_info(folder / INFO_FILE)
    return TrainedPolicy(get_task(task).short_name, info.algorithm, info.train_seed, folder)


def _plan_text(plan: UploadPlan) -> str:
    if plan.is_done:
        return "holds exactly these files"
    changes = [file for file in plan.files if file.change != "unchanged"]
    where = "exists" if plan.exists else "will be made"
    return f"{where}; {len(changes)} files to send, {len(plan.delete)} to delete"


def _difference(first: PolicyFiles, second: PolicyFiles) -> str | None:
    """What makes two policies more than two seeds of one kind; None if nothing does."""

    def deciding(files: PolicyFiles) -> dict[str, Any]:
        info, settings = files.train_info, files.train_config.items()
        return {"updates": info["updates"], "dataset": info["dataset"].get("sha256")} | {
            f"{name} in {CONFIG_FILE}": value
            for name, value in settings
            if name not in (*WITHOUT_EFFECT, "seed")
        }

    ours, theirs = deciding(first), deciding(second)
    return next((name for name in ours | theirs if ours.get(name) != theirs.get(name)), None)
