"""Which algorithms there are, without importing them: a line each."""

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spi_diffusers.algorithms.base import Baseline

SPI_METHOD = "spi"


@dataclass(frozen=True)
class BaselineEntry:
    """Where a baseline is.

    Attributes:
        settings: Field of `TrainConfig` that holds its settings.
        module: Module in `spi_diffusers.algorithms`.
        class_name: Its class there.
        safe_only: Trained on the episodes within the cost limit only.
    """

    settings: str
    module: str
    class_name: str
    safe_only: bool = False


BASELINES: dict[str, BaselineEntry] = {
    "bc": BaselineEntry("bc", "bc", "BC"),
    "bc-safe": BaselineEntry("bc", "bc", "BC", safe_only=True),
    "bcq-lag": BaselineEntry("bcq_lag", "bcq_lag", "BCQLag"),
    "bear-lag": BaselineEntry("bear_lag", "bear_lag", "BEARLag"),
    "cpq": BaselineEntry("cpq", "cpq", "CPQ"),
    "coptidice": BaselineEntry("coptidice", "coptidice", "COptiDICE"),
    "diffusion-ql": BaselineEntry("diffusion_ql", "diffusion_ql", "DiffusionQL"),
}


def methods() -> list[str]:
    """Names of all algorithms."""
    return [SPI_METHOD, *BASELINES]


def check_method(name: str) -> str:
    """Let the name of an algorithm through.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in methods():
        close = difflib.get_close_matches(str(name), methods(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"method {name!r} does not exist; {hint}There are {', '.join(methods())}.")
    return name


def baseline_class(name: str) -> "type[Baseline]":
    """The class of a baseline."""
    entry = BASELINES[name]
    return getattr(importlib.import_module(f"spi_diffusers.algorithms.{entry.module}"), entry.class_name)
