"""The list of tasks with what can be done with each here: simulate it, and train without downloading."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spi_diffusers.data.simulators import SIMULATORS, simulator_status
from spi_diffusers.data.tasks import DSRL_DATASET_REPO, TASKS

if TYPE_CHECKING:
    from rich.table import Table

_EMBEDDED_FOLDER = Path(__file__).parent / "embedded"


def list_tasks(
    *, simulator: str | None = None, paper: bool = False, installed: bool = False
) -> list[dict[str, Any]]:
    """List tasks with what is installed and what is missing. Imports no simulator.

    Args:
        simulator: only the tasks of this simulator (`bullet`, `velocity`, `safety_gymnasium`, `metadrive`).
        paper: only the eight tasks of the SPI paper.
        installed: only the tasks that can be simulated in this installation.

    Returns:
        One dictionary per task, in DSRL's order, ready for JSON: the fields of `Task`, and
            `dataset_repo` (the Hub dataset that holds `dataset_file`), `simulator_installed` (bool),
            `simulator_problem` (what is missing, or empty), `install` (the command that puts it right, or
            None), `simulator_note`, `data_in_package` (bool).

    Raises:
        ValueError: there is no such simulator.
    """
    status = {name: simulator_status(name) for name in (SIMULATORS if simulator is None else [simulator])}
    return [
        {
            **dataclasses.asdict(task),
            "dataset_repo": DSRL_DATASET_REPO,
            "simulator_installed": status[task.simulator].installed,
            "simulator_problem": status[task.simulator].problem,
            "install": status[task.simulator].install,
            "simulator_note": SIMULATORS[task.simulator].note,
            "data_in_package": (_EMBEDDED_FOLDER / task.name).is_dir(),
        }
        for task in TASKS.values()
        if task.simulator in status
        and (task.paper or not paper)
        and (status[task.simulator].installed or not installed)
    ]


def tasks_table(rows: list[dict[str, Any]]) -> "Table":
    """Lay out the rows of `list_tasks` as a table for the terminal.

    Args:
        rows: from `list_tasks`.

    Returns:
        The table, one row per task.
    """
    from rich.table import Table

    table = Table(title="Tasks of DSRL")
    table.add_column("short form", no_wrap=True)
    table.add_column("name", overflow="fold")  # cut off, it would be of no use
    for column in ("simulator", "steps", "obs/act", "return 0..1"):
        table.add_column(column, justify="right" if column in ("steps", "obs/act") else "left")
    for column in ("cost limits", "paper's", "installed", "data"):
        table.add_column(column)
    for row in rows:
        paper_limit = row["paper_cost_limit"]
        table.add_row(
            row["short_name"],
            row["name"],
            row["simulator"],
            str(row["max_episode_steps"]),
            f"{row['observation_dim']}/{row['action_dim']}",
            f"{row['reward_min']:.0f}..{row['reward_max']:.0f}",
            " ".join(f"{limit:g}" for limit in row["cost_limits"]),
            "" if paper_limit is None else f"{paper_limit:g}",
            "yes" if row["simulator_installed"] else "no",
            "yes" if row["data_in_package"] else "",
        )
    return table


def references_table(rows: list[dict[str, Any]]) -> "Table":
    """Lay out what `tasks_table` has no room for: DSRL's reference cost and data file.

    Args:
        rows: from `list_tasks`.

    Returns:
        The table, one row per task; it fits into 100 columns.
    """
    from rich.table import Table

    table = Table(title=f"DSRL's reference costs, and its files in {DSRL_DATASET_REPO} on the Hub")
    table.add_column("short form", no_wrap=True)
    table.add_column("cost min..max", justify="right", no_wrap=True)
    table.add_column("file", overflow="fold")
    for row in rows:
        cost = f"{row['cost_min']:.0f}..{row['cost_max']:.0f}"
        table.add_row(row["short_name"], cost, row["dataset_file"])
    return table


def tasks_notes(rows: list[dict[str, Any]]) -> list[str]:
    """Explain the columns, and say what is missing and which command installs it.

    Args:
        rows: from `list_tasks`.

    Returns:
        Lines of text, one per simulator that cannot run among the rows, then one on the columns.
    """
    notes = []
    for name in dict.fromkeys(row["simulator"] for row in rows if not row["simulator_installed"]):
        row = next(row for row in rows if row["simulator"] == name)
        how = f"install: {row['install']}" if row["install"] else "pip cannot install it here"
        notes.append(f"{name}: {row['simulator_problem']}; {how} ({row['simulator_note']})")
    notes.append(
        "cost limits: DSRL's, which spi evaluate uses by default; paper's: the one of the SPI paper; data: "
        "yes = ships with this package, else name a --dataset"
    )
    return notes
