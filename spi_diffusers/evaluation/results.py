"""Results: one entry per (task, algorithm, extraction, cost limit, training seed), and the file of them.

Tables, plots and cards are made from entries and from nothing else. No torch is imported here.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from spi_diffusers.data.tasks import TASKS, Task
from spi_diffusers.files import turn, written_aside

#: What identifies an entry: a newer one with the same values replaces an older one.
KEY_FIELDS = ("task", "algorithm", "extraction", "cost_limit", "feedback", "train_seed")

#: What an entry's extraction is where there is only one way to act, as with a baseline.
BASELINE_EXTRACTION = "policy"

EntryKey = tuple[str, str, str, float, bool, int]


@dataclass(frozen=True)
class TrainInfo:
    """Where the evaluated weights come from.

    Attributes:
        algorithm: name of the algorithm, e.g. "spi".
        train_seed: seed of the training run.
        updates: number of gradient updates.
        train_seconds: wall-clock time of the training in seconds.
        dataset: what it was trained on: "id" (Hub id or name) and "revision" or "sha256".
    """

    algorithm: str
    train_seed: int
    updates: int
    train_seconds: float
    dataset: Mapping[str, str]

    def __post_init__(self) -> None:
        _check_fields(self)

    @classmethod
    def from_dict(cls, values: Any) -> "TrainInfo":
        """Take it from the content of a policy's `train_info.json`, which may hold more.

        Raises:
            ValueError: not a mapping, a field is missing or of the wrong kind; the message names it.
        """
        known = [f.name for f in fields(cls)]
        _check_names(values, known, "train info")
        return cls(**{name: values[name] for name in known})


@dataclass(frozen=True)
class EvaluationEntry:
    """The outcome of one policy at one cost limit, over all evaluation episodes.

    Standard deviations are sample standard deviations over the episodes (divided by n - 1; 0 for a single
    episode).

    Attributes:
        task: DSRL's task name.
        algorithm: name of the algorithm.
        extraction: how the action was picked from the candidates: "safe", or "reward" (Eq. 12); "policy" for
            a baseline.
        cost_limit: limit on the cost return of an episode.
        feedback: whether the cost so far was fed back at every step.
        train_seed: seed of the training run.
        eval_seeds: seeds of the evaluation, `episodes / len(eval_seeds)` episodes each.
        episodes: number of episodes, over all evaluation seeds.
        updates: number of gradient updates in training.
        train_seconds: wall-clock time of the training in seconds.
        reward_mean: mean return.
        reward_std: standard deviation of the returns.
        cost_mean: mean cost return.
        cost_std: standard deviation of the cost returns.
        normalized_reward: mean return in DSRL's scale (`Task.normalize_reward`).
        normalized_cost: mean cost return over the limit (`Task.normalize_cost`); at most 1 is safe.
        within_limit: share of the episodes with cost return <= cost limit.
        steps_per_second: environment steps per second, policy included, all episodes stepped together.
        dataset: as in `TrainInfo`.
        versions: version by package.
    """

    task: str
    algorithm: str
    extraction: str
    cost_limit: float
    feedback: bool
    train_seed: int
    eval_seeds: tuple[int, ...]
    episodes: int
    updates: int
    train_seconds: float
    reward_mean: float
    reward_std: float
    cost_mean: float
    cost_std: float
    normalized_reward: float
    normalized_cost: float
    within_limit: float
    steps_per_second: float
    dataset: dict[str, str]
    versions: dict[str, str]

    def __post_init__(self) -> None:
        _check_fields(self)
        # One type per field, wherever the values come from (JSON knows no tuples, NumPy has its own numbers).
        object.__setattr__(self, "eval_seeds", tuple(int(seed) for seed in self.eval_seeds))
        for name in _INT_FIELDS:
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in _FLOAT_FIELDS:
            object.__setattr__(self, name, float(getattr(self, name)))

    @classmethod
    def from_episodes(
        cls,
        task: Task,
        returns: np.ndarray,
        cost_returns: np.ndarray,
        *,
        cost_limit: float,
        extraction: str,
        feedback: bool,
        eval_seeds: Sequence[int],
        steps_per_second: float,
        train_info: TrainInfo,
        versions: Mapping[str, str],
    ) -> "EvaluationEntry":
        """Boil the episodes of an evaluation down to an entry.

        Args:
            task: the task that was played; its constants give the normalised figures.
            returns: (B,) undiscounted returns.
            cost_returns: (B,) undiscounted cost returns.
            cost_limit: limit on the cost return of an episode.
            extraction: "safe" or "reward".
            feedback: whether the cost so far was fed back at every step.
            eval_seeds: seeds of the rollouts.
            steps_per_second: speed of the rollouts.
            train_info: where the weights come from.
            versions: version by package.

        Returns:
            The entry.

        Raises:
            ValueError: no episodes, arrays of different lengths, values that are not finite, or a
                negative cost limit.
        """
        reward, cost = (
            EpisodeStatistics.of("return", returns),
            EpisodeStatistics.of("cost return", cost_returns),
        )
        if reward.count != cost.count:
            raise ValueError(f"{reward.count} returns for {cost.count} cost returns: one of each per episode")
        return cls(
            task=task.name,
            algorithm=train_info.algorithm,
            extraction=extraction,
            cost_limit=cost_limit,
            feedback=feedback,
            train_seed=train_info.train_seed,
            eval_seeds=tuple(eval_seeds),
            episodes=reward.count,
            updates=train_info.updates,
            train_seconds=train_info.train_seconds,
            reward_mean=reward.mean,
            reward_std=reward.std,
            cost_mean=cost.mean,
            cost_std=cost.std,
            normalized_reward=task.normalize_reward(reward.mean),
            normalized_cost=task.normalize_cost(cost.mean, cost_limit),
            within_limit=float(np.mean(np.asarray(cost_returns) <= cost_limit)),
            steps_per_second=steps_per_second,
            dataset=dict(train_info.dataset),
            versions=dict(versions),
        )

    @classmethod
    def from_dict(cls, values: Any) -> "EvaluationEntry":
        """Make an entry from what `to_dict` gave.

        Raises:
            ValueError: not a mapping, a field is missing or unknown, or a value is of the wrong kind; the
                message names the field.
        """
        known = [f.name for f in fields(cls)]
        _check_names(values, known, "an entry")
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(f"unknown field{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, fields in the order of the class."""
        return {**asdict(self), "eval_seeds": list(self.eval_seeds)}

    @property
    def key(self) -> EntryKey:
        """The values of `KEY_FIELDS`; sorting by it gives the order of results files and tables."""
        return tuple(getattr(self, name) for name in KEY_FIELDS)


@dataclass(frozen=True)
class EpisodeStatistics:
    """Mean and spread over episodes.

    Attributes:
        count: number of episodes.
        mean: their mean.
        std: their sample standard deviation (n - 1), 0 for a single one.
    """

    count: int
    mean: float
    std: float

    @classmethod
    def of(cls, name: str, values: Any) -> "EpisodeStatistics":
        """Compute them in float64.

        Args:
            name: what the values are, for messages.
            values: (B,) numbers.

        Raises:
            ValueError: not one-dimensional, empty, or not finite.
        """
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 1 or len(array) == 0:
            raise ValueError(f"need one {name} per episode and at least one episode, got shape {array.shape}")
        if not np.isfinite(array).all():
            episode = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"the {name} of episode {episode} is {array[episode]}")
        std = float(array.std(ddof=1)) if len(array) > 1 else 0.0
        return cls(len(array), float(array.mean()), std)


def check_cost_limit(cost_limit: Any) -> float:
    """Turn a cost limit into a float.

    Raises:
        ValueError: not a finite number of at least 0.
    """
    if not _is_number(cost_limit) or cost_limit < 0:
        raise ValueError(
            f"a cost limit must be a finite number of at least 0 (cost per episode), got {cost_limit!r}"
        )
    return float(cost_limit)


def describe_key(key: EntryKey) -> str:
    """An entry's key for messages, e.g. "task=..., algorithm=..., ..."."""
    return ", ".join(f"{name}={value}" for name, value in zip(KEY_FIELDS, key, strict=True))


def _check_names(values: Any, known: list[str], what: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} must be an object with named fields, got {values!r}")
    missing = [name for name in known if name not in values]
    if missing:
        raise ValueError(f"missing field{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}")


def _check_fields(record: "TrainInfo | EvaluationEntry") -> None:
    for field in fields(record):
        kind, is_valid = _FIELD_CHECKS[field.name]
        value = getattr(record, field.name)
        if not is_valid(value):
            raise ValueError(f"field {field.name!r} must be {kind}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


def _is_strings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(x, str) for pair in value.items() for x in pair)


def _is_source(value: Any) -> bool:
    return _is_strings(value) and "id" in value and ("revision" in value or "sha256" in value)


# How a value must look, in words and as a check: results files may come from anywhere.
_NAME = ("a non-empty string", lambda value: isinstance(value, str) and value != "")
_NUMBER = ("a finite number", _is_number)
_NOT_NEGATIVE = ("a finite number of at least 0", lambda value: _is_number(value) and value >= 0)
_SEED = ("an integer of at least 0", _is_count)
_FIELD_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "task": ("the full name of a DSRL task", lambda value: isinstance(value, str) and value in TASKS),
    "algorithm": _NAME,
    "extraction": _NAME,
    "cost_limit": _NOT_NEGATIVE,
    "feedback": ("true or false", lambda value: isinstance(value, bool)),
    "train_seed": _SEED,
    "eval_seeds": (
        "a non-empty list of seeds (integers of at least 0)",
        lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_count, value)),
    ),
    "episodes": ("an integer of at least 1", lambda value: _is_count(value) and value > 0),
    "updates": _SEED,
    "train_seconds": _NOT_NEGATIVE,
    "reward_mean": _NUMBER,
    "reward_std": _NOT_NEGATIVE,
    "cost_mean": _NOT_NEGATIVE,
    "cost_std": _NOT_NEGATIVE,
    "normalized_reward": _NUMBER,
    "normalized_cost": _NOT_NEGATIVE,
    "within_limit": ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "steps_per_second": _NOT_NEGATIVE,
    "dataset": ('an object with "id" and "revision" or "sha256" (strings)', _is_source),
    "versions": ("an object of strings", _is_strings),
}
_INT_FIELDS = ("train_seed", "episodes", "updates")
_FLOAT_FIELDS = tuple(f.name for f in fields(EvaluationEntry) if f.type in (float, "float"))
assert tuple(_FIELD_CHECKS) == tuple(f.name for f in fields(EvaluationEntry))


DivergedKey = tuple[str, str, float, int]


@dataclass(frozen=True)
class DivergedRun:
    """A training run whose loss or weights were no longer finite.

    Attributes:
        task: DSRL's task name.
        algorithm: Name of the algorithm.
        cost_limit: Cost limit that it was trained for; None if it was for none.
        train_seed: Seed of the run.
        message: What training said.
    """

    task: str
    algorithm: str
    cost_limit: float | None
    train_seed: int
    message: str

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"field 'task' must be the full name of a DSRL task, got {self.task!r}")
        for name in ("algorithm", "message"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"field {name!r} must be a non-empty string, got {getattr(self, name)!r}")
        if self.cost_limit is not None:
            object.__setattr__(self, "cost_limit", check_cost_limit(self.cost_limit))
        if not isinstance(self.train_seed, int) or isinstance(self.train_seed, bool) or self.train_seed < 0:
            raise ValueError(f"field 'train_seed' must be an integer of at least 0, got {self.train_seed!r}")

    @classmethod
    def from_dict(cls, values: Any) -> "DivergedRun":
        """Make one from what `to_dict` gave.

        Raises:
            ValueError: Not a mapping with exactly these fields, or a value is of the wrong kind.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != known:
            names = ", ".join(sorted(known))
            raise ValueError(f"a diverged run must have the fields {names}, got {values!r}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @property
    def key(self) -> DivergedKey:
        """What identifies it; sorting by it gives the order of results files."""
        limit = -1.0 if self.cost_limit is None else self.cost_limit
        return (self.task, self.algorithm, limit, self.train_seed)

    def concerns(self, entry: EvaluationEntry) -> bool:
        """Whether an entry is of this very run, which then did not diverge after all."""
        same = (entry.task, entry.algorithm, entry.train_seed) == (self.task, self.algorithm, self.train_seed)
        return same and self.cost_limit in (None, entry.cost_limit)


FORMAT_VERSION = 1


class ResultsFileError(ValueError):
    """A results file cannot be read; the message names the file, the entry and the field."""


def read_results(path: str | os.PathLike[str]) -> list[EvaluationEntry]:
    """Read a results file.

    Args:
        path: the file.

    Returns:
        Its entries, sorted by key.

    Raises:
        FileNotFoundError: there is no such file.
        ResultsFileError: it is not a complete results file of a version that is known here, an entry has
            missing or unknown fields or a value of the wrong kind, or two entries have the same key.
    """
    path = Path(path)
    content = _read_json(path, "results file")
    entries: list[EvaluationEntry] = []
    for number, values in enumerate(_check_envelope(path, content)):
        try:
            entries.append(EvaluationEntry.from_dict(values))
        except ValueError as error:
            raise ResultsFileError(f"{path}: entry {number}: {error}") from error
    return _sorted_unique(entries, path)


def read_diverged(path: str | os.PathLike[str]) -> list[DivergedRun]:
    """Read which training runs a results file says diverged.

    Args:
        path: the file.

    Returns:
        The runs, sorted by key; none in most files.

    Raises:
        FileNotFoundError: there is no such file.
        ResultsFileError: it is not a complete results file, or one of the runs cannot be read.
    """
    path = Path(path)
    content = _read_json(path, "results file")
    _check_envelope(path, content)
    runs = content.get("diverged", [])
    try:
        if not isinstance(runs, list):
            raise ValueError(f"must be a list, got {runs!r}")
        return sorted((DivergedRun.from_dict(run) for run in runs), key=lambda run: run.key)
    except ValueError as error:
        raise ResultsFileError(f"{path}: 'diverged': {error}") from error


def write_results(
    path: str | os.PathLike[str], entries: Iterable[EvaluationEntry], diverged: Iterable[DivergedRun] = ()
) -> None:
    """Write a results file anew, atomically; entries come sorted by key, fields in their fixed order.

    Args:
        path: the file; folders are made where missing.
        entries: the entries, in any order.
        diverged: training runs that diverged.

    Raises:
        ResultsFileError: two entries have the same key.
        OSError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    text = results_text(entries, path, diverged)
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def results_text(
    entries: Iterable[EvaluationEntry],
    path: str | os.PathLike[str] = "results",
    diverged: Iterable[DivergedRun] = (),
) -> str:
    """The text of a results file.

    Args:
        entries: the entries, in any order.
        path: what messages call the file.
        diverged: training runs that diverged.

    Raises:
        ResultsFileError: two entries have the same key.
    """
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "entries": [entry.to_dict() for entry in _sorted_unique(entries, Path(path))],
    }
    if runs := sorted(diverged, key=lambda run: run.key):
        content["diverged"] = [run.to_dict() for run in runs]
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def merge_results(
    path: str | os.PathLike[str],
    entries: Iterable[EvaluationEntry],
    diverged: Iterable[DivergedRun] = (),
    *,
    outdated: Callable[[EvaluationEntry], bool] | None = None,
) -> list[EvaluationEntry]:
    """Put entries into a results file: same key replaces, others are added, the rest stays.

    Evaluations that run side by side may merge into the same file: each waits for its turn.

    Args:
        path: the file; it and its folders are made where missing.
        entries: the new entries. A run that has entries now is no longer listed as diverged.
        diverged: training runs that diverged.
        outdated: tells of a present entry whether it goes.

    Returns:
        All entries of the file, sorted by key.

    Raises:
        ResultsFileError: the present file cannot be read (it is left as it is), or two of the new entries
            have the same key.
        OSError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    new = _sorted_unique(entries, path)
    with turn(path):
        present = read_results(path) if path.exists() else []
        merged = {entry.key: entry for entry in present if outdated is None or not outdated(entry)}
        merged |= {entry.key: entry for entry in new}
        before = read_diverged(path) if path.exists() else []
        kept = [run for run in before if not any(run.concerns(entry) for entry in new)]
        runs = {run.key: run for run in [*kept, *diverged]}
        write_results(path, merged.values(), runs.values())
    return _sorted_unique(merged.values(), path)


def read_train_info(path: str | os.PathLike[str]) -> TrainInfo:
    """Read the `train_info.json` that training saved beside a policy's weights.

    Args:
        path: the file.

    Returns:
        Where the weights come from.

    Raises:
        FileNotFoundError: there is no such file.
        ResultsFileError: it is not complete JSON, or a field is missing or of the wrong kind.
    """
    path = Path(path)
    try:
        return TrainInfo.from_dict(_read_json(path, "train info file"))
    except ResultsFileError:
        raise
    except ValueError as error:
        raise ResultsFileError(f"{path}: {error}") from error


def _read_json(path: Path, what: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ResultsFileError(f"{path} is not a {what}: it is not text ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise ResultsFileError(
            f"{path} is not complete JSON (line {error.lineno}, column {error.colno}: {error.msg}): it was "
            "cut short or edited. Restore it, or move it away and write it again"
        ) from error


def _check_envelope(path: Path, content: Any) -> list[Any]:
    if not isinstance(content, dict) or "format_version" not in content:
        raise ResultsFileError(
            f'{path} is not a results file: expected {{"format_version": {FORMAT_VERSION}, "entries": [...]}}'
        )
    version = content["format_version"]
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ResultsFileError(f"{path}: format_version must be {FORMAT_VERSION}, got {version!r}")
    if version > FORMAT_VERSION:
        raise ResultsFileError(
            f"{path} has format version {version}, this spi-diffusers reads up to {FORMAT_VERSION}: "
            "upgrade it (pip install --upgrade spi-diffusers)"
        )
    if not isinstance(content.get("entries"), list):
        raise ResultsFileError(f"{path}: 'entries' must be a list, got {content.get('entries')!r}")
    unknown = sorted(set(content) - {"format_version", "entries", "diverged"})
    if unknown:
        raise ResultsFileError(f"{path}: unknown field {unknown[0]!r} beside 'entries'")
    return content["entries"]


def _sorted_unique(entries: Iterable[EvaluationEntry], path: Path) -> list[EvaluationEntry]:
    ordered = sorted(entries, key=lambda entry: entry.key)
    for first, second in itertools.pairwise(ordered):
        if first.key == second.key:
            raise ResultsFileError(f"{path}: two entries have the key {describe_key(first.key)}")
    return ordered
