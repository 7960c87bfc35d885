"""The figures that the paper published, to stand beside ours: on other data, so never mixed with them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        rows: By DSRL's task name and by our name of the algorithm: (normalised reward, normalised cost).
        average: The paper's own average row, by algorithm.
    """

    rows: Mapping[str, Mapping[str, tuple[float, float]]]
    average: Mapping[str, tuple[float, float]]


@cache
def paper_table(name: str) -> PaperTable:
    """One of the paper's tables.

    Args:
        name: "table1" or "table2".

    Raises:
        KeyError: There is no such table.
    """
    text = resources.files("spi_diffusers.benchmark").joinpath("paper_results.json").read_text("utf-8")
    table = json.loads(text)[name]
    return PaperTable(
        {task: _pairs(row) for task, row in table["rows"].items()},
        _pairs(table["average"]),
    )


def _pairs(row: Mapping[str, list[float]]) -> dict[str, tuple[float, float]]:
    return {algorithm: (reward, cost) for algorithm, (reward, cost) in row.items()}
