"""The policy as a diffusers pipeline: candidates, extraction, output."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spi_diffusers.pipelines.baseline_policy import BaselinePolicyPipeline
    from spi_diffusers.pipelines.controller import InfeasibleError, SafeController
    from spi_diffusers.pipelines.hub_policy import SPIPolicyPipeline
    from spi_diffusers.pipelines.spi_policy import SPIPolicyOutput

_MODULES = {
    "BaselinePolicyPipeline": "spi_diffusers.pipelines.baseline_policy",
    "InfeasibleError": "spi_diffusers.pipelines.controller",
    "SPIPolicyOutput": "spi_diffusers.pipelines.spi_policy",
    "SPIPolicyPipeline": "spi_diffusers.pipelines.hub_policy",
    "SafeController": "spi_diffusers.pipelines.controller",
}

__all__ = [
    "BaselinePolicyPipeline",
    "InfeasibleError",
    "SPIPolicyOutput",
    "SPIPolicyPipeline",
    "SafeController",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the controller must not bring torch with it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
