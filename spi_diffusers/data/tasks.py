"""The 38 tasks of DSRL with the constants that its scores are defined by.

The constants (episode lengths, reference returns and cost returns, dataset file names) are facts
published with DSRL (Liu et al., "Datasets and Benchmarks for Offline Safe Reinforcement Learning",
`dsrl/infos.py`); they live in `tasks.json` beside this file. No torch or NumPy is imported here, so
listings and `--help` answer at once.
"""

import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spi_diffusers.files import CARD_FILE, HUB_ID, is_mistyped, local_path

#: Hub dataset repository that holds DSRL's HDF5 files (CC BY 4.0); `Task.dataset_file` is a file in it.
DSRL_DATASET_REPO = "YYY-45/DSRL"


class UnknownTaskError(KeyError, ValueError):
    """No DSRL task has the given name."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would turn the message into a quoted string.
        return str(self.args[0])


@dataclass(frozen=True)
class Task:
    """One DSRL task: a simulator, its dataset and the constants of its normalized scores.

    Attributes:
        name: DSRL's id, e.g. `OfflineBallCircle-v0`.
        short_name: the lower-cased stem of the id, e.g. `ballcircle`.
        simulator: `bullet`, `velocity`, `safety_gymnasium` or `metadrive`.
        env_id: the simulator's own id, e.g. `SafetyBallCircle-v0`.
        max_episode_steps: steps after which an episode is truncated; also the horizon of the cost limit.
        observation_dim: length of an observation, or None where it is not known without the simulator.
        action_dim: length of an action, or None where it is not known without the simulator.
        reward_min: DSRL's reference minimum of the return (`normalize_reward` gives 0).
        reward_max: DSRL's reference maximum of the return (`normalize_reward` gives 1).
        cost_min: DSRL's reference minimum of the cost return.
        cost_max: DSRL's reference maximum of the cost return.
        dataset_file: HDF5 file in the Hub dataset repository `YYY-45/DSRL`.
        cost_limits: the cost limits per episode that DSRL evaluates at, and we by default.
        paper: whether it is one of the eight tasks of the SPI paper.
        paper_cost_limit: the cost limit per episode that the paper's normalized costs are taken relative
            to, or None for a task that is not in the paper.
        aliases: further ids under which DSRL registers the same task.
    """

    name: str
    short_name: str
    simulator: str
    env_id: str
    max_episode_steps: int
    observation_dim: int | None
    action_dim: int | None
    reward_min: float
    reward_max: float
    cost_min: float
    cost_max: float
    dataset_file: str
    cost_limits: tuple[float, ...]
    paper: bool
    aliases: tuple[str, ...] = ()
    paper_cost_limit: float | None = None

    def normalize_reward(self, return_: Any) -> Any:
        """Scale a return to DSRL's reference range.

        Args:
            return_: undiscounted return of an episode, a number or an array of any shape.

        Returns:
            (return - reward_min) / (reward_max - reward_min), in the type of the input; 0 and 1 are
            DSRL's references, values outside [0, 1] are possible.
        """
        return (return_ - self.reward_min) / (self.reward_max - self.reward_min)

    def normalize_cost(self, cost_return: Any, cost_limit: float) -> Any:
        """Scale a cost return by the cost limit; at most 1 means that the limit is kept.

        Args:
            cost_return: undiscounted sum of costs of an episode, a number or an array of any shape.
            cost_limit: the limit per episode, at least 0.

        Returns:
            cost_return / cost_limit, and (cost_return + 1) / (cost_limit + 1) only for limit 0 (DSRL).

        Raises:
            ValueError: the limit is negative or not finite.
        """
        is_number = isinstance(cost_limit, Real) and not isinstance(cost_limit, bool)
        if not (is_number and math.isfinite(cost_limit) and cost_limit >= 0):
            raise ValueError(f"cost_limit must be a finite number of at least 0, got {cost_limit!r}")
        slack = 1.0 if cost_limit == 0 else 0.0
        return (cost_return + slack) / (cost_limit + slack)


def _read_tasks() -> dict[str, Task]:
    text = resources.files("spi_diffusers.data").joinpath("tasks.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(text)
    for row in rows:
        row["cost_limits"], row["aliases"] = tuple(row["cost_limits"]), tuple(row["aliases"])
    return {row["name"]: Task(**row) for row in rows}


#: All tasks by DSRL id, in DSRL's order.
TASKS: Mapping[str, Task] = MappingProxyType(_read_tasks())


def _keys(task: Task) -> Iterable[str]:
    return (task.name.lower(), task.short_name, *(alias.lower() for alias in task.aliases))


_BY_KEY = {key: task for task in TASKS.values() for key in _keys(task)}


def get_task(name: "str | Task") -> Task:
    """Look a task up by its DSRL id or its short form, ignoring case; a `Task` is returned as it is.

    Raises:
        UnknownTaskError: no task has this name; the message lists the closest ones.

    Examples:
        >>> get_task("ballcircle").name
        'OfflineBallCircle-v0'
    """
    if isinstance(name, Task):
        return name
    key = str(name).strip().lower()
    if key in _BY_KEY:
        return _BY_KEY[key]
    close = difflib.get_close_matches(key, _BY_KEY, n=6, cutoff=0.5)
    close += [k for k in _BY_KEY if len(key) > 2 and key in k and k not in close]
    names = list(dict.fromkeys(f"{_BY_KEY[k].short_name} ({_BY_KEY[k].name})" for k in close))[:5]
    hint = f"Did you mean {' or '.join(names)}? " if names else ""
    raise UnknownTaskError(
        f"unknown task {str(name)!r}. {hint}"
        f"`spi tasks` lists all {len(TASKS)} (in Python: spi_diffusers.data.tasks.TASKS), e.g. "
        f"{next(t.name for t in TASKS.values() if t.paper)}."
    )


def task_of_file(path: Path) -> Task | None:
    """Tell the task from DSRL's file name or from a stem that is a task's name; None where neither is."""
    for task in TASKS.values():
        if path.name == task.dataset_file:
            return task
    try:
        return get_task(path.name.partition(".")[0] if path.suffix.lower() == ".gz" else path.stem)
    except UnknownTaskError:
        return None


# ---- what a dataset is named by

#: What stands for the data in the package and for DSRL's own wherever a dataset is named.
RESERVED_NAMES = ("embedded", "dsrl")
#: The dataset that ships with the package: a folder in the parquet layout.
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
#: What a Minari dataset id starts with: `minari:D4RL/door/human-v2`.
MINARI_PREFIX = "minari:"
#: Suffixes of files in DSRL's layout, and of tables.
DSRL_SUFFIXES = (".npz", ".hdf5", ".h5")
TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_SPECIAL = '<>:"\\|?*[]{}'  # in file patterns, in names of configs of `datasets`, in the card's code


def as_path(name: str) -> str:
    """The source that is a folder by its name, even where the name stands for other data."""
    return f"./{name}" if name in RESERVED_NAMES or name.startswith(MINARI_PREFIX) else name


def source_kind(dataset: str | os.PathLike[str] | None) -> str:
    """Tell what a dataset's name stands for; what exists on disk is never looked up on the Hub.

    Returns `embedded` (also for None), `dsrl`, `file`, `folder`, `minari` (an id or a folder), `hub`,
    `dsrl-hub` (DSRL's own Hub dataset), or `missing`.
    """
    text = "embedded" if dataset is None else str(dataset)
    path = local_path(text)
    if text in RESERVED_NAMES:
        return text
    if text.startswith(MINARI_PREFIX):
        return "minari"
    if path.is_dir():
        is_layout = (path / CARD_FILE).is_file()
        is_minari = any((path / inner / "metadata.json").is_file() for inner in ("data", "."))
        return "minari" if is_minari and not is_layout else "folder"
    if path.exists():
        return "file"
    if text.lower() == DSRL_DATASET_REPO.lower():
        return "dsrl-hub"
    is_file = text.lower().endswith((*DSRL_SUFFIXES, *TABLE_SUFFIXES))
    return "hub" if HUB_ID.fullmatch(text) and not is_file and not is_mistyped(text) else "missing"


def resolve_task(
    task: str | Task | None, dataset: str | os.PathLike[str] | None
) -> tuple[Task | None, str | None]:
    """Tell which DSRL task and which config of a dataset a name means, or None and None for no name.

    Only a folder or a Hub dataset has configs; whether it has that one, `load_transitions` finds out. The
    task is None for a name that is not DSRL's; where there are no configs either, that is an
    UnknownTaskError.
    """
    if task is None:
        return None, None
    try:
        known = get_task(task)
    except UnknownTaskError:
        if source_kind(dataset) not in ("folder", "hub"):
            raise
        return None, str(task)
    return known, known.name


def check_config_name(name: str) -> None:
    """Refuse, by ValueError, a name that could not be written or loaded again as a config."""
    if not name or Path(name).name != name or name.startswith(".") or set(name) & set(_SPECIAL):
        raise ValueError(
            f"config_name must be a plain folder name (--name), without any of {' '.join(_SPECIAL)}, got "
            f"{name!r}"
        )
    if name.lower() == "readme.md":
        raise ValueError(f"config_name cannot be {name!r} (--name): that is the card")
