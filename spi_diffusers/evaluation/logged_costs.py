"""Costs of episodes that were played elsewhere, from a table with a row per episode."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from spi_diffusers.data.columns import DatasetError, list_names
from spi_diffusers.data.costs import COST
from spi_diffusers.data.tables import is_csv, is_table, open_table
from spi_diffusers.documents import DocumentError, parse_json
from spi_diffusers.files import check_is_content, did_you_mean, read_file
from spi_diffusers.messages import shown


def read_logged_costs(path: Path, cost_names: Sequence[str] = (COST,)) -> dict[float | None, np.ndarray]:
    """Read a .csv, .parquet or .json file with a row per episode: columns episode, cost, and limit or not.

    JSON is a list of objects. `episode` is any number or text that is there once per limit. Other columns are
    left alone.

    Args:
        path: The file.
        cost_names: The columns of the costs. Of several, all episodes were told the same limits.

    Returns:
        Costs of the episodes, float64, (N,), or of K costs (N, K), by limit; where there is no such column,
        by None.

    Raises:
        ValueError: It is no such file, lacks a column, has no rows, a cost or limit is missing, NaN, infinite
            or negative, or an episode is there twice; the message names the line and the column.
        FileNotFoundError: There is no such file.
    """
    needed, is_one = ("episode", *cost_names), len(cost_names) == 1
    columns = _columns(path, needed)
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(
            f"{path}: has no column {missing[0]!r}, but {list_names(list(columns))}; it takes a row per "
            f"episode with the columns {', '.join(needed[:-1])} and {needed[-1]}"
            + (", and limit where there are several" if is_one else "")
        )
    if "limit" in columns and not is_one:
        raise ValueError(
            f"{path}: has a column 'limit', but of several costs all its episodes must have been told the "
            "same limits: leave the column out, and certify each limit by a file of its own"
        )
    costs: dict[float | None, list[Any]] = {}
    seen: dict[tuple[float | None, Any], int] = {}
    for row, (episode, *spent) in enumerate(zip(*(columns[name] for name in needed), strict=True)):
        limit = None if "limit" not in columns else _number(path, "limit", columns["limit"][row], row)
        if not isinstance(episode, Real | str) or episode == "" or episode != episode:
            raise ValueError(f"{_place(path, row)}: episode must be a number or a name, got {shown(episode)}")
        if (first := seen.setdefault((limit, episode), row)) != row:
            at = "" if limit is None else f" of limit {limit:g}"
            raise ValueError(
                f"{_place(path, row)}: episode {shown(episode)}{at} is there twice, before in "
                f"{_place(path, first, short=True)}"
            )
        found = [_number(path, name, cost, row) for name, cost in zip(cost_names, spent, strict=True)]
        costs.setdefault(limit, []).append(found[0] if is_one else found)
    if not costs:
        raise ValueError(f"{path}: holds no episode")
    return {limit: np.array(values) for limit, values in costs.items()}


def _columns(path: Path, needed: Sequence[str]) -> Mapping[str, Sequence[Any]]:
    """The columns of a file by name; of those that are not needed, nothing but the name."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file{did_you_mean(path)}")
    if path.suffix.lower() == ".json":
        return _json_columns(path, needed)
    if not is_table(path):
        raise ValueError(f"{path}: must be a .csv, .parquet or .json file")
    check_is_content(path)
    try:
        table = open_table(path)
    except DatasetError as error:
        if "--" not in str(error):
            raise
        advice = (
            "that is an option of `spi data convert`; here, save it as UTF-8, with commas and decimal points"
        )
        raise ValueError(f"{error}: {advice}") from error
    wanted = [name for name in (*needed, "limit") if name in table.names]
    content: Mapping[str, Any] = table.read(wanted)
    return {name: content[name].to_pylist() if name in wanted else () for name in table.names}


def _json_columns(path: Path, needed: Sequence[str]) -> dict[str, list[Any]]:
    check_is_content(path)
    try:
        content = parse_json(read_file(path))
    except DocumentError as error:
        raise ValueError(f"{path} is not complete JSON: {error}") from error
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(f'{path}: must hold a list of objects, [{{"episode": 0, "cost": 3.5}}, ...]')
    names = list(dict.fromkeys(name for row in content for name in row)) or list(needed)
    return {name: [row.get(name) for row in content] for name in names}


def _number(path: Path, name: str, value: Any, row: int) -> float:
    """A cost or a limit."""
    number = math.nan
    if isinstance(value, Real | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number) or number < 0:
        said = "nothing, or NaN" if value is None else shown(value)
        raise ValueError(f"{_place(path, row)}: {name} must be a finite number of at least 0, got {said}")
    return number


def _place(path: Path, row: int, *, short: bool = False) -> str:
    """Where a row is, in words: lines of a text are counted from 1, with its header and its blank lines."""
    if is_csv(path) and path.suffix.lower() != ".gz":
        lines = read_file(path).splitlines()
        filled = [number for number, line in enumerate(lines, 1) if line.strip(b"\0 \t\r")]
        first = 2 if lines[0].lstrip(b"\xef\xbb\xbf").startswith(b"sep=") else 1  # a line for Excel
        place = f"line {filled[row + first]}"
    else:
        place = f"row {row + 1}"
    return place if short else f"{path}: {place}"
