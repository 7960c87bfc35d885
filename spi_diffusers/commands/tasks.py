"""`spi tasks`: list the tasks and what each needs."""

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """\
examples:
  spi tasks --paper                 the eight tasks of the SPI paper
  spi tasks --wide                  also full names, sizes, reference returns and costs, data files
  spi tasks --installed --json      what can be simulated here, for scripts
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi tasks`."""
    parser.add_argument("--paper", action="store_true", help="only the eight tasks of the SPI paper")
    parser.add_argument(
        "--simulator",
        help="only the tasks of one simulator: bullet, velocity, safety_gymnasium or metadrive",
    )
    parser.add_argument("--installed", action="store_true", help="only the tasks that can be simulated here")
    parser.add_argument("--wide", action="store_true", help="all columns; needs 160 characters a line")
    parser.add_argument("--json", action="store_true", help="print everything that is known as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    from spi_diffusers.commands.output import print_tables
    from spi_diffusers.data.simulators import list_tasks, tasks_notes

    rows = list_tasks(simulator=args.simulator, paper=args.paper, installed=args.installed)
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        print("No task fits: spi tasks lists all of them, and what is missing to simulate them.")
        return 0
    if args.wide:
        print_tables(_wide_table(rows), _references_table(rows), width=160)
    else:
        print_tables(_table(rows), width=80)
    for note in tasks_notes(rows):
        lines = textwrap.wrap(note, 80, break_long_words=False, break_on_hyphens=False)
        print("\n".join([note] if args.wide else lines))
    return 0


def _table(rows: list[dict[str, Any]]) -> "Table":
    """What one needs to choose a task; it fits into 80 columns."""
    from rich.table import Table

    table = Table(title="Tasks of DSRL", show_edge=False, pad_edge=False)
    for column in ("task", "simulator", "steps", "cost limits", "installed", "data"):
        table.add_column(column, justify="right" if column == "steps" else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            row["short_name"], row["simulator"], str(row["max_episode_steps"]), _limits(row), *_here(row)
        )
    return table


def _wide_table(rows: list[dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table(title="Tasks of DSRL")
    table.add_column("task", no_wrap=True)
    table.add_column("name", overflow="fold")  # cut off, it would be of no use
    for column in ("simulator", "steps", "obs/act", "return 0..1"):
        table.add_column(column, justify="right" if column in ("steps", "obs/act") else "left")
    for column in ("cost limits", "paper's", "installed", "data"):
        table.add_column(column)
    for row in rows:
        paper_limit = row["paper_cost_limit"]
        table.add_row(
            *(row["short_name"], row["name"], row["simulator"], str(row["max_episode_steps"])),
            f"{row['observation_dim']}/{row['action_dim']}",
            f"{row['reward_min']:.0f}..{row['reward_max']:.0f}",
            *(_limits(row), "" if paper_limit is None else f"{paper_limit:g}", *_here(row)),
        )
    return table


def _references_table(rows: list[dict[str, Any]]) -> "Table":
    """DSRL's reference costs and data files; it fits into 100 columns."""
    from rich.table import Table

    table = Table(title=f"DSRL's reference costs, and its files in {rows[0]['dataset_repo']} on the Hub")
    table.add_column("task", no_wrap=True)
    table.add_column("cost min..max", justify="right", no_wrap=True)
    table.add_column("file", overflow="fold")
    for row in rows:
        table.add_row(row["short_name"], f"{row['cost_min']:.0f}..{row['cost_max']:.0f}", row["dataset_file"])
    return table


def _limits(row: dict[str, Any]) -> str:
    return " ".join(f"{limit:g}" for limit in row["cost_limits"])


def _here(row: dict[str, Any]) -> tuple[str, str]:
    return "yes" if row["simulator_installed"] else "no", "yes" if row["data_in_package"] else ""
