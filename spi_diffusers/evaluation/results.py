"""Results: entries that print, plot and save themselves, and the file of them.

The file is `{"format_version": 1, "entries": [...]}`, one entry per (task, algorithm, extraction, cost limit,
feedback, risk, training seed), with a list "diverged" where training runs diverged. No torch is imported.
"""

import io
import itertools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spi_diffusers.config.validation import flatten
from spi_diffusers.evaluation.entries import DivergedRun, EvaluationEntry, TrainInfo, describe_key
from spi_diffusers.files import local_path, read_json, written_aside
from spi_diffusers.locks import turn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from spi_diffusers.evaluation.certificate import Certificate
    from spi_diffusers.evaluation.summary import BehaviorRow

FORMAT_VERSION = 1


class ResultsFileError(ValueError):
    """A results file cannot be read; the message names the file, the entry and the field."""


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
        certificate: What is certified of the policy that they lie beside, for comparisons.
    """

    def __init__(
        self,
        entries: Iterable[EvaluationEntry] = (),
        *,
        diverged: Iterable[DivergedRun] = (),
        behavior: "Iterable[BehaviorRow]" = (),
        certificate: "Certificate | None" = None,
    ) -> None:
        super().__init__(entries)
        self.diverged, self.behavior = list(diverged), list(behavior)
        self.certificate = certificate

    def __getitem__(self, index: Any) -> Any:
        """An entry, or several by a slice, as results."""
        found = super().__getitem__(index)
        if not isinstance(index, slice):
            return found
        return Results(found, behavior=self.behavior, certificate=self.certificate)

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw reward and cost against the cost limit, with spread.

        Args:
            path: Where to save the picture; its suffix gives the format (.png, .pdf, .svg). None saves none.

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: No entries, entries of several tasks, or a suffix that names no format.
            OSError: The picture cannot be written.
        """
        from spi_diffusers.evaluation.plots import plot_limits

        return plot_limits(self, path, self.behavior)

    def to_frame(self) -> Any:
        """A pandas DataFrame: one row per entry, one column per field of `EvaluationEntry`.

        Columns of fields within fields have dotted names, such as `dataset.sha256` and `versions.torch`.
        """
        import pandas as pd  # type: ignore[import-untyped]

        last = ("risk", "cost_margin", "cost_p90", "cost_worst")  # of which an entry's dict may lack some
        rows = []
        for entry in self:
            values = entry.to_dict()
            ends = {name: values.pop(name, getattr(entry, name)) for name in last}
            rows.append(flatten(values | ends))
        not_always = ("dataset", "versions", "cost_names", "within_each")
        names = [field.name for field in fields(EvaluationEntry) if field.name not in not_always]
        return pd.DataFrame(rows, columns=None if rows else names)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a results file, which `spi compare` and `read_results` read; one that is there is replaced.

        Raises:
            OSError: It cannot be written; what was there before is untouched.
        """
        return write_results(path, self, self.diverged)

    def __repr__(self) -> str:
        if not self and not self.behavior:
            return "Results: no entries"
        try:
            return "\n".join(line.rstrip() for line in self._printed().export_text().splitlines())
        except (ValueError, AttributeError) as error:  # entries of the same key, or what is no entry
            return f"Results: {len(self)} entries that make no table: {error}"

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
    path = local_path(path)
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
    path = local_path(path)
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

    Processes that merge into the same file at once wait for their turn; of `evaluate_to_folder`, which writes
    more than this file, one at a time works in a folder. A run that has entries now is no longer listed as
    diverged; `outdated` tells of a present entry whether it goes. Returns what the file holds now.
    ResultsFileError: the present file cannot be read (it is left as it is), two new
    entries have the same key, or the present ones were simulated by another mujoco.
    """
    new = _sorted_unique(entries, path)
    with turn(path):
        before = read_results(path) if local_path(path).exists() else Results()
        for task, dynamics in {(entry.task, entry.dynamics) for entry in new}:
            check_dynamics(path, task, dynamics, before)
        merged = {entry.key: entry for entry in before if outdated is None or not outdated(entry)}
        merged |= {entry.key: entry for entry in new}
        kept = [run for run in before.diverged if not any(run.concerns(entry) for entry in new)]
        runs = {run.key: run for run in [*kept, *diverged]}
        write_results(path, merged.values(), runs.values())
    return Results(_sorted_unique(merged.values(), path), diverged=[runs[key] for key in sorted(runs)])


def check_dynamics(path: str | os.PathLike[str], task: str, dynamics: str, there: Results) -> None:
    """ResultsFileError: what is in a file on a task was simulated otherwise than by `dynamics`."""
    names = {entry.dynamics for entry in there if entry.task == task} - {dynamics}
    if names:
        other, ours = (name or "mujoco 2.3" for name in (names.pop(), dynamics))
        raise ResultsFileError(
            f"{path}: holds results of {task} by {other}, which moves otherwise than {ours}: name another "
            "folder or file for the new ones"
        )


def read_train_info(path: str | os.PathLike[str]) -> TrainInfo:
    """Read the `train_info.json` beside a policy's weights; ResultsFileError names a wrong field."""
    content = _read(local_path(path))
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
