"""The class of each baseline, imported when it is asked for."""

import importlib
from typing import TYPE_CHECKING

from spi_diffusers.config.algorithms import BASELINES

if TYPE_CHECKING:
    from spi_diffusers.algorithms.base import Baseline


def baseline_class(name: str) -> "type[Baseline]":
    """The class of a baseline."""
    entry = BASELINES[name]
    return getattr(importlib.import_module(f"spi_diffusers.algorithms.{entry.module}"), entry.class_name)
