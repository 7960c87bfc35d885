"""Noise model, critics, evaluation critic, normalizer and student: what a policy folder holds."""

from spi_diffusers.models.actors import (
    BatchConstrainedActor,
    DeterministicActor,
    DiffusionActor,
    GaussianActor,
)
from spi_diffusers.models.critics import TwinCritic, TwinCriticOutput
from spi_diffusers.models.decision_transformer import DecisionTransformer
from spi_diffusers.models.evaluation_critic import EvaluationCritic, EvaluationCriticOutput
from spi_diffusers.models.noise_model import MLPNoiseModel, MLPNoiseModelOutput
from spi_diffusers.models.normalizer import ObservationNormalizer
from spi_diffusers.models.student import Student, StudentOutput
from spi_diffusers.models.switching_actor import SwitchingActor

__all__ = [
    "BatchConstrainedActor",
    "DecisionTransformer",
    "DeterministicActor",
    "DiffusionActor",
    "EvaluationCritic",
    "EvaluationCriticOutput",
    "GaussianActor",
    "MLPNoiseModel",
    "MLPNoiseModelOutput",
    "ObservationNormalizer",
    "Student",
    "StudentOutput",
    "SwitchingActor",
    "TwinCritic",
    "TwinCriticOutput",
]
