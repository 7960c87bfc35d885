"""Results: one entry per (task, algorithm, extraction, cost limit, training seed), and the file of them.

Tables, plots and cards are made from entries and from nothing else. The file is `{"format_version": 1,
"entries": [...]}`, with a list "diverged" where training runs diverged. No torch is imported here.
"""

import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from spi_diffusers.data.tasks import TASKS, Task
from spi_diffusers.evaluation import knows_limit
from spi_diffusers.files import read_json, turn, written_aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from spi_diffusers.evaluation.summary import BehaviorRow

FORMAT_VERSION = 1

#: What identifies an entry: a newer one with the same values replaces an older one.
KEY_FIELDS = ("task", "algorithm", "extraction", "cost_limit", "feedback", "train_seed")

EntryKey = tuple[str, str, str, float, bool, int]


class ResultsFileError(ValueError):
    """A results file cannot be read; the message names the file, the entry and the field."""


# ---- records with checked fields: results files may come from anywhere


class _Record:
    """A dataclass whose fields are checked by name (`_FIELD_CHECKS`) and have one type each."""

    #: Whether a mapping may hold more than the fields.
    _takes_more = False

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            kind, is_valid = _FIELD_CHECKS[field.name]
            value = getattr(self, field.name)
            if value is None and field.type == float | None:
                continue
            if not is_valid(value):
                raise ValueError(f"field {field.name!r} must be {kind}, got {value!r}")
            # JSON knows no tuples, and NumPy has numbers of its own.
            if field.type is int:
                object.__setattr__(self, field.name, int(value))
            elif field.type in (float, float | None):
                object.__setattr__(self, field.name, float(value))
            elif field.type == tuple[int, ...]:
                object.__setattr__(self, field.name, tuple(int(number) for number in value))

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Make a record from what `to_dict` gave; ValueError names a field that is missing, unknown or of the
        wrong kind.
        """
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if not isinstance(values, Mapping):
            raise ValueError(f"must be an object with named fields, got {values!r}")
        missing = [name for name in known if name not in values]
        unknown = [name for name in values if name not in known and not cls._takes_more]
        for what, names in (("missing", missing), ("unknown", unknown)):
            if names:
                raise ValueError(f"{what} field{'s' * (len(names) > 1)} {', '.join(map(repr, names))}")
        return cls(**{name: values[name] for name in known})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, fields in the order of the class."""
        values = asdict(self)  # type: ignore[call-overload]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class TrainInfo(_Record):
    """Where the evaluated weights come from, as a policy's `train_info.json` says, which may say more.

    Attributes:
        algorithm: Name of the algorithm, e.g. "spi".
        train_seed: Seed of the training run.
        updates: Number of gradient updates.
        train_seconds: Wall-clock time of the training in seconds.
        dataset: What it was trained on: "id" (Hub id or name) and "revision" or "sha256".
    """

    algorithm: str
    train_seed: int
    updates: int
    train_seconds: float
    dataset: Mapping[str, str]

    _takes_more = True


@dataclass(frozen=True)
class DivergedRun(_Record):
    """A training run whose loss or weights were no longer finite. Listed so that averages can report it.

    `cost_limit` is the one that it was trained for, None if for none; `message` is what training said.
    """

    task: str
    algorithm: str
    cost_limit: float | None
    train_seed: int
    message: str

    @property
    def key(self) -> tuple[str, str, float, int]:
        """What identifies it; sorting by it gives the order of results files."""
        limit = -1.0 if self.cost_limit is None else self.cost_limit
        return (self.task, self.algorithm, limit, self.train_seed)

    def concerns(self, entry: "EvaluationEntry") -> bool:
        """Whether an entry is of this very run, which then did not diverge after all."""
        same = (entry.task, entry.algorithm, entry.train_seed) == (self.task, self.algorithm, self.train_seed)
        return same and self.cost_limit in (None, entry.cost_limit)


@dataclass(frozen=True)
class EvaluationEntry(_Record):
    """The outcome of one policy at one cost limit, over all evaluation episodes.

    Standard deviations are sample standard deviations over the episodes (divided by n - 1; 0 for a single
    episode).

    Attributes:
        task: DSRL's task name.
        algorithm: Name of the algorithm.
        extraction: How the action was picked from the candidates: "safe", or "reward" (Eq. 12); "policy" for
            a baseline.
        cost_limit: Limit on the cost return of an episode.
        feedback: Whether the cost so far was fed back at every step.
        train_seed: Seed of the training run.
        eval_seeds: Seeds of the evaluation, `episodes / len(eval_seeds)` episodes each.
        episodes: Number of episodes, over all evaluation seeds.
        updates: Number of gradient updates in training.
        train_seconds: Wall-clock time of the training in seconds.
        reward_mean: Mean return.
        reward_std: Standard deviation of the returns.
        cost_mean: Mean cost return.
        cost_std: Standard deviation of the cost returns.
        normalized_reward: Mean return in DSRL's scale (`Task.normalize_reward`).
        normalized_cost: Mean cost return over the limit (`Task.normalize_cost`); at most 1 is safe.
        within_limit: Share of the episodes with cost return <= cost limit.
        steps_per_second: Environment steps per second, policy included, all episodes stepped together.
        dataset: As in `TrainInfo`.
        versions: Version by package.
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

    @classmethod
    def from_episodes(
        cls,
        task: Task,
        returns: np.ndarray,
        cost_returns: np.ndarray,
        *,
        cost_limit: float,
        train_info: TrainInfo,
        **how: Any,
    ) -> "EvaluationEntry":
        """Summarize the episodes of an evaluation, returns and cost returns (B,), undiscounted, in an entry.

        `how` has its `extraction`, `feedback`, `eval_seeds`, `steps_per_second` and `versions`. ValueError:
        no episodes, arrays of different lengths, values that are not finite, or a negative cost limit.
        """
        reward = EpisodeStatistics.of("return", returns)
        cost = EpisodeStatistics.of("cost return", cost_returns)
        if reward.count != cost.count:
            raise ValueError(f"{reward.count} returns for {cost.count} cost returns: one of each per episode")
        return cls(
            task=task.name,
            cost_limit=cost_limit,
            episodes=reward.count,
            reward_mean=reward.mean,
            reward_std=reward.std,
            cost_mean=cost.mean,
            cost_std=cost.std,
            normalized_reward=task.normalize_reward(reward.mean),
            normalized_cost=task.normalize_cost(cost.mean, cost_limit),
            within_limit=float(np.mean(np.asarray(cost_returns) <= cost_limit)),
            **asdict(train_info),
            **how,
        )

    @property
    def key(self) -> EntryKey:
        """The values of `KEY_FIELDS`; sorting by it gives the order of results files and tables."""
        return tuple(getattr(self, name) for name in KEY_FIELDS)

    @property
    def told_limit(self) -> bool:
        """Whether the policy was told the cost limit."""
        return knows_limit(self.extraction)


@dataclass(frozen=True)
class EpisodeStatistics:
    """Number, mean and sample standard deviation (n - 1; 0 for a single one) of figures of episodes."""

    count: int
    mean: float
    std: float

    @classmethod
    def of(cls, name: str, values: Any) -> "EpisodeStatistics":
        """Compute them in float64 from (B,) values; ValueError (with the name) if there are none or they are
        not finite.
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
    """Turn a cost limit into a float; ValueError if it is not a finite number of at least 0."""
    if not _is_number(cost_limit) or cost_limit < 0:
        raise ValueError(
            f"a cost limit must be a finite number of at least 0 (cost per episode), got {cost_limit!r}"
        )
    return float(cost_limit)


def describe_key(key: EntryKey) -> str:
    """An entry's key for messages, e.g. "task=..., algorithm=..., ..."."""
    return ", ".join(f"{name}={value}" for name, value in zip(KEY_FIELDS, key, strict=True))


# ---- all results of an evaluation or a file


class Results(list[EvaluationEntry]):
    """Entries as a list, with what belongs to them.

    Printed, they are a table with the spread and whether limits are kept; a notebook shows the same.

    Examples:
        >>> results = evaluate("outputs/ballcircle-seed0", cost_limits=[10, 20, 40])
        >>> print(results)
        >>> results.plot("limits.png")
        >>> results.to_frame()[["extraction", "cost_limit", "reward_mean", "cost_mean"]]

    Args:
        entries: The entries.
        diverged: Training runs that have none, as they diverged.
        behavior: What the behavior data itself reaches at these limits, for tables and plots.
    """

    def __init__(
        self,
        entries: Iterable[EvaluationEntry] = (),
        *,
        diverged: Iterable[DivergedRun] = (),
        behavior: "Iterable[BehaviorRow]" = (),
    ) -> None:
        super().__init__(entries)
        self.diverged, self.behavior = list(diverged), list(behavior)

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw reward and cost against the cost limit, with spread.

        Args:
            path: Where to save the picture; its suffix gives the format (.png, .pdf, .svg). None saves none.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: No entries, or entries of several tasks.
            OSError: The picture cannot be written.
        """
        from spi_diffusers.evaluation.plots import plot_limits

        return plot_limits(self, path, self.behavior)

    def to_frame(self) -> Any:
        """A pandas DataFrame: one row per entry, one column per field of `EvaluationEntry`."""

        import pandas as pd  # type: ignore[import-untyped]

        names = [field.name for field in fields(EvaluationEntry)]
        return pd.DataFrame([entry.to_dict() for entry in self], columns=names)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a results file, which `spi compare` and `read_results` read; one that is there is replaced.

        Raises:
            OSError: It cannot be written; what was there before is untouched.
        """
        return write_results(path, self, self.diverged)

    def __repr__(self) -> str:
        if not self and not self.behavior:
            return "Results: no entries"
        return "\n".join(line.rstrip() for line in self._printed().export_text().splitlines())

    def _repr_html_(self) -> str:
        return self._printed().export_html(inline_styles=True, code_format="<pre>{code}</pre>")

    def _printed(self) -> "Console":
        from rich.console import Console

        from spi_diffusers.evaluation.tables import results_tables

        console = Console(file=io.StringIO(), width=140, record=True)
        console.print(*results_tables(self, self.behavior))
        return console


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read a results file: its entries and its runs that diverged, each sorted by key.

    FileNotFoundError: no such file; ResultsFileError: not a complete results file of a known version, a field
    is missing, unknown or of the wrong kind, or two entries have the same key.
    """
    path = Path(path)
    content = _read_checked(path)
    lists: list[list[Any]] = []
    for name, record in (("entries", EvaluationEntry), ("diverged", DivergedRun)):
        lists.append([])
        for number, values in enumerate(content.get(name, [])):
            try:
                lists[-1].append(record.from_dict(values))
            except ValueError as error:
                what = "entry" if name == "entries" else "diverged run"
                raise ResultsFileError(f"{path}: {what} {number}: {error}") from error
    entries, diverged = lists
    return Results(_sorted_unique(entries, path), diverged=sorted(diverged, key=lambda run: run.key))


def write_results(
    path: str | os.PathLike[str], entries: Iterable[EvaluationEntry], diverged: Iterable[DivergedRun] = ()
) -> Path:
    """Write a results file anew, complete or not at all; entries come sorted by key, fields in their fixed
    order.

    ResultsFileError: two entries have the same key; OSError: it cannot be written, what was there is
    untouched.
    """
    path = Path(path)
    text = results_text(entries, diverged, path)
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path


def results_text(
    entries: Iterable[EvaluationEntry],
    diverged: Iterable[DivergedRun] = (),
    path: str | os.PathLike[str] = "results",
) -> str:
    """The text of a results file, which messages call `path`; ResultsFileError if two entries have the same
    key.
    """
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "entries": [entry.to_dict() for entry in _sorted_unique(entries, path)],
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
) -> Results:
    """Put entries into a results file: same key replaces, others are added, the rest stays.

    Evaluations that run side by side may merge into the same file: each waits for its turn. A run that has
    entries now is no longer listed as diverged; `outdated` tells of a present entry whether it goes. Returns
    what the file holds now. ResultsFileError: the present file cannot be read (it is left as it is), or two
    new entries have the same key.
    """
    new = _sorted_unique(entries, path)
    with turn(path):
        before = read_results(path) if Path(path).exists() else Results()
        merged = {entry.key: entry for entry in before if outdated is None or not outdated(entry)}
        merged |= {entry.key: entry for entry in new}
        kept = [run for run in before.diverged if not any(run.concerns(entry) for entry in new)]
        runs = {run.key: run for run in [*kept, *diverged]}
        write_results(path, merged.values(), runs.values())
    return Results(_sorted_unique(merged.values(), path), diverged=[runs[key] for key in sorted(runs)])


def read_train_info(path: str | os.PathLike[str]) -> TrainInfo:
    """Read the `train_info.json` beside a policy's weights; ResultsFileError names a wrong field."""
    content = _read(Path(path))
    try:
        return TrainInfo.from_dict(content)
    except ValueError as error:
        raise ResultsFileError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError as error:
        raise ResultsFileError(str(error)) from error


def _read_checked(path: Path) -> dict[str, Any]:
    """The content of a results file of a known version, with lists where there must be some."""
    content = _read(path)
    if "format_version" not in content:
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
    for name, value in (("entries", content.get("entries")), ("diverged", content.get("diverged", []))):
        if not isinstance(value, list):
            raise ResultsFileError(f"{path}: {name!r} must be a list, got {value!r}")
    unknown = sorted(set(content) - {"format_version", "entries", "diverged"})
    if unknown:
        raise ResultsFileError(f"{path}: unknown field {unknown[0]!r} beside 'entries'")
    return content


def _sorted_unique(entries: Iterable[EvaluationEntry], path: str | os.PathLike[str]) -> list[EvaluationEntry]:
    ordered = sorted(entries, key=lambda entry: entry.key)
    for first, second in itertools.pairwise(ordered):
        if first.key == second.key:
            raise ResultsFileError(f"{path}: two entries have the key {describe_key(first.key)}")
    return ordered


# ---- how a value must look, in words and as a check


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


def _is_seeds(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(map(_is_count, value))


def _is_strings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(x, str) for pair in value.items() for x in pair)


def _is_source(value: Any) -> bool:
    return _is_strings(value) and "id" in value and ("revision" in value or "sha256" in value)


_NAME = ("a non-empty string", lambda value: isinstance(value, str) and value != "")
_NUMBER = ("a finite number", _is_number)
_NOT_NEGATIVE = ("a finite number of at least 0", lambda value: _is_number(value) and value >= 0)
_COUNT = ("an integer of at least 0", _is_count)
_FIELD_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "task": ("the full name of a DSRL task", lambda value: isinstance(value, str) and value in TASKS),
    "algorithm": _NAME,
    "extraction": _NAME,
    "message": _NAME,
    "cost_limit": _NOT_NEGATIVE,
    "feedback": ("true or false", lambda value: isinstance(value, bool)),
    "train_seed": _COUNT,
    "eval_seeds": ("a non-empty list of seeds (integers of at least 0)", _is_seeds),
    "episodes": ("an integer of at least 1", lambda value: _is_count(value) and value > 0),
    "updates": _COUNT,
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
