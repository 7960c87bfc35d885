"""`spi tasks`: list the tasks and what each needs."""

import argparse
import sys

EXAMPLES = """\
examples:
  spi tasks --paper                 the eight tasks of the SPI paper
  spi tasks --verbose               also DSRL's reference costs and data files
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
    parser.add_argument("--verbose", action="store_true", help="also DSRL's reference costs and data files")
    parser.add_argument("--json", action="store_true", help="print everything that is known as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list."""
    from spi_diffusers.data.simulators import list_tasks, references_table, tasks_notes, tasks_table

    rows = list_tasks(simulator=args.simulator, paper=args.paper, installed=args.installed)
    if args.json:
        import json

        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        print("No task fits: spi tasks lists all of them, and what is missing to simulate them.")
        return 0
    from rich.console import Console

    # Piped output has no width; do not fold names there.
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(tasks_table(rows))
    if args.verbose:
        console.print(references_table(rows))
    print("\n".join(tasks_notes(rows)))
    return 0
