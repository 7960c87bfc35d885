"""Noise model, critics and observation normalizer: the components a policy folder holds."""

from spi_diffusers.models.critics import TwinCritic, TwinCriticOutput
from spi_diffusers.models.noise_model import MLPNoiseModel, MLPNoiseModelOutput
from spi_diffusers.models.normalizer import ObservationNormalizer

__all__ = [
    "MLPNoiseModel",
    "MLPNoiseModelOutput",
    "ObservationNormalizer",
    "TwinCritic",
    "TwinCriticOutput",
]
