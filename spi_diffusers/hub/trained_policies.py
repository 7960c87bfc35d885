"""The trained policies under a folder, and which of them becomes which repository on the Hub."""

import fnmatch
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spi_diffusers.data.tasks import get_task
from spi_diffusers.evaluation.results import read_train_info
from spi_diffusers.files import CHECKPOINTS_FOLDER, INFO_FILE, POLICY_FOLDER
from spi_diffusers.hub.policy_files import INDEX, is_baseline

logger = logging.getLogger(__name__)


class AmbiguousPoliciesError(ValueError):
    """Several policies would go to the same repository; the message lists them."""


@dataclass(frozen=True, order=True)
class TrainedPolicy:
    """A policy folder, as far as its name on the Hub depends on it.

    Attributes:
        task: Short name of the task, such as `ballcircle`.
        algorithm: As results call it: `spi`, `spi-paper`.
        train_seed: Seed of the training run.
        folder: The folder with `model_index.json`.
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
    """What lies under a folder.

    Attributes:
        policies: Trained policies, sorted.
        unnamed: Why others cannot be given a name, by folder.
        unfinished: Folders of runs whose training has not ended.
    """

    policies: tuple[TrainedPolicy, ...]
    unnamed: dict[Path, str]
    unfinished: tuple[Path, ...]


def find_trained_policies(folder: str | Path, exclude: Sequence[str] = ()) -> FoundPolicies:
    """Look for policies in a folder and all folders in it, except hidden ones.

    Args:
        folder: Such as `outputs`.
        exclude: Patterns of folders that are not looked into, relative to `folder`: `demo`, `old/*`.

    Returns:
        What is there.

    Raises:
        FileNotFoundError: There is no such folder, or no policy in it.
        ValueError: A pattern fits no folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    used: set[str] = set()
    policies, unnamed, unfinished = [], {}, []
    for path, is_policy in sorted(_candidates(root, exclude, used)):
        if not is_policy:
            unfinished.append(path)
            continue
        try:
            policies.append(_read(path))
        except (ValueError, OSError) as error:
            unnamed[path] = str(error)
    for pattern in exclude:
        if pattern not in used:
            raise ValueError(f"{root}: --exclude {pattern} fits no folder in it")
    if not policies and not unnamed:
        raise FileNotFoundError(f"{root}: holds no trained policy (no {INDEX} in any folder)")
    return FoundPolicies(tuple(sorted(policies)), unnamed, tuple(unfinished))


def choose(policies: Sequence[TrainedPolicy], seed: int | None = None) -> tuple[TrainedPolicy, ...]:
    """One policy for each repository.

    Args:
        policies: All that were found.
        seed: Only policies of this training seed; None takes any, if there is no choice.

    Returns:
        Sorted; each with another `repo_name`.

    Raises:
        AmbiguousPoliciesError: Several would get the same name.
        ValueError: None has that seed.
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
        by_seed = "choose by --seed, or " if differ else ""
        raise AmbiguousPoliciesError(
            f"several policies would be published under the same name: {listed}. Nothing was published; "
            f"{by_seed}leave folders out by --exclude"
        )
    return tuple(sorted(wanted))


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
        if INDEX in files:
            folders.clear()  # its components are no policies
            if is_baseline(path):
                logger.warning("%s: is left out, as policies of baselines are not published", path)
            else:
                yield path, True
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
            if not (path / POLICY_FOLDER / INDEX).is_file():
                yield path, False
        folders[:] = kept


def _read(folder: Path) -> TrainedPolicy:
    """What names a policy.

    Raises:
        ValueError: Its task or its training is not recorded, or a file is broken.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / INDEX}: is not complete JSON: {error}") from error
    task = index.get("task") if isinstance(index, dict) else None
    if not isinstance(task, str):
        raise ValueError(
            f"{folder / INDEX}: names no task, so the policy has no name on the Hub; give it one: "
            f"`spi publish {folder} ORG/NAME`"
        )
    if not (folder / INFO_FILE).is_file():
        raise ValueError(
            f"{folder}: has no {INFO_FILE}, so nothing says how it was trained; give it a name: "
            f"`spi publish {folder} ORG/NAME`"
        )
    info = read_train_info(folder / INFO_FILE)
    return TrainedPolicy(get_task(task).short_name, info.algorithm, info.train_seed, folder)
