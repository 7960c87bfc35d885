"""Noise model, critics, observation normalizer and cost calibration: the components a policy folder holds."""

from spi_diffusers.models.actors import (
    BatchConstrainedActor,
    DeterministicActor,
    DiffusionActor,
    GaussianActor,
)
from spi_diffusers.models.cost_calibration import CostCalibration
from spi_diffusers.models.critics import TwinCritic, TwinCriticOutput
from spi_diffusers.models.noise_model import MLPNoiseModel, MLPNoiseModelOutput
from spi_diffusers.models.normalizer import ObservationNormalizer

__all__ = [
    "BatchConstrainedActor",
    "CostCalibration",
    "DeterministicActor",
    "DiffusionActor",
    "GaussianActor",
    "MLPNoiseModel",
    "MLPNoiseModelOutput",
    "ObservationNormalizer",
    "TwinCritic",
    "TwinCriticOutput",
]
