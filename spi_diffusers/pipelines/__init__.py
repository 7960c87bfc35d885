"""The policy as a diffusers pipeline: candidates, extraction, output."""

# Loading looks component classes up in sys.modules, so they are imported here.
import spi_diffusers.models
from spi_diffusers.pipelines.spi_policy import SPIPolicyOutput, SPIPolicyPipeline

__all__ = ["SPIPolicyOutput", "SPIPolicyPipeline"]
