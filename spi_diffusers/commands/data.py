"""`spi data`: convert, collect, describe, export and publish datasets."""

import argparse

from spi_diffusers.commands import data_collect, data_convert, data_describe, data_export, data_push
from spi_diffusers.commands.parser import finish

EXAMPLES = """\
examples:
  spi data convert YYY-45/DSRL datasets/dsrl --task ballcircle carcircle
  spi data collect --task ballcircle --output datasets/mine
  spi data describe datasets/dsrl --task ballcircle
  spi train --task ballcircle --dataset datasets/dsrl
  spi data push datasets/dsrl org/dsrl --dry-run

`spi data COMMAND --help` explains a command.
"""

#: Its subcommands: module and text.
COMMANDS = {
    "convert": (
        data_convert,
        "Convert DSRL files, tables, HDF5, NumPy, Minari or LeRobot datasets to the parquet layout.",
    ),
    "describe": (
        data_describe,
        "Show what a dataset holds: episodes, returns, costs, and what keeps each cost limit.",
    ),
    "collect": (data_collect, "Make a dataset in the simulator, by behavior policies of many trade-offs."),
    "export": (data_export, "Write a dataset in the format of another library: LeRobot."),
    "push": (data_push, "Publish a dataset folder to the Hub, as one verified commit."),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `spi data`."""
    commands = parser.add_subparsers(dest="data_command", title="commands", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, epilog=module.EXAMPLES)
        module.add_arguments(command)
        finish(command, module.run)
