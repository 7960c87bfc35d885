"""The results file: `{"format_version": 1, "entries": [...]}`, merged by key and written atomically.

Where training runs diverged, there is a list of them beside the entries, as "diverged".
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from spi_diffusers.evaluation.diverged import DivergedRun
from spi_diffusers.evaluation.metrics import EvaluationEntry, TrainInfo, describe_key
from spi_diffusers.files import turn, written_aside

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
