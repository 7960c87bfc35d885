"""The policy as a diffusers pipeline: candidates, extraction, output."""

# Loading looks component classes up in sys.modules, so the import must stay although nothing uses it.
import spi_diffusers.models  # noqa: F401
from spi_diffusers.pipelines.baseline_policy import BaselinePolicyPipeline
from spi_diffusers.pipelines.controller import InfeasibleError, SafeController
from spi_diffusers.pipelines.hub_policy import SPIPolicyPipeline
from spi_diffusers.pipelines.spi_policy import SPIPolicyOutput

__all__ = [
    "BaselinePolicyPipeline",
    "InfeasibleError",
    "SPIPolicyOutput",
    "SPIPolicyPipeline",
    "SafeController",
]
