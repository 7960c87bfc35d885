"""Small real pipelines, some with critics whose values can be worked out by hand."""

import torch
from diffusers.utils import logging as diffusers_logging
from exact_noise_model import exact_noise_model

from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.models import EvaluationCritic, MLPNoiseModel, ObservationNormalizer, Student, TwinCritic
from spi_diffusers.models.evaluation_critic import NUM_LEVELS
from spi_diffusers.pipelines import SPIPolicyPipeline

diffusers_logging.disable_progress_bar()

GAMMA, STEPS = 0.9, 100


def make_normalizer(size: int = 3) -> ObservationNormalizer:
    normalizer = ObservationNormalizer(observation_dim=size)
    normalizer.set_statistics(torch.zeros(size), torch.ones(size))
    return normalizer


def make_evaluation_critic(**options) -> EvaluationCritic:
    settings = {
        "observation_dim": 3,
        "action_dim": 2,
        "max_episode_steps": STEPS,
        "reward_range": [-10.0, 10.0],
        "cost_high": 10.0,
        "hidden_dims": [16],
    }
    return EvaluationCritic(**(settings | options))


def make_pipeline(seed=0, conditioned=True, noise_options=None, **options) -> SPIPolicyPipeline:
    """Untrained networks: observations of 3 numbers, actions of 2."""
    torch.manual_seed(seed)
    shared = {
        "observation_dim": 3,
        "action_dim": 2,
        "hidden_dims": [16, 16],
        "use_safety_weight": conditioned,
    }
    settings = {"max_episode_steps": STEPS, "gamma": GAMMA} | options
    components = {
        "noise_model": MLPNoiseModel(**shared, **(noise_options or {})),
        "reward_critic": TwinCritic(**shared),
        "safety_critic": TwinCritic(**shared),
        "scheduler": make_scheduler(SPIConfig()),
        "normalizer": make_normalizer(),
    }
    if conditioned and "evaluation_critic" not in options:
        horizon = settings["max_episode_steps"]
        components["evaluation_critic"] = make_evaluation_critic(max_episode_steps=horizon)
    return SPIPolicyPipeline(**(components | settings))


def make_student(**options) -> Student:
    sizes = {"observation_dim": 3, "action_dim": 2, "num_weights": 11, "hidden_dims": [16]}
    return Student(**(sizes | options))


def full_pipeline() -> SPIPolicyPipeline:
    """All components, and settings that are no defaults."""
    return make_pipeline(
        student=make_student(),
        task="OfflineBallCircle-v0",
        reward_unit=2.5,
        noise_options={"action_low": [-1.0, -2.0], "action_high": [1.0, 2.0]},
    )


def linear_critic(x: float, twin_gap: float = 0.0) -> TwinCritic:
    """A critic without hidden layers: x times the action's first number. The second twin lies above."""
    critic = TwinCritic(observation_dim=3, action_dim=2, hidden_dims=[])
    with torch.no_grad():
        critic.net[0].weight.zero_()[:, 3, 0] = x
        critic.net[0].bias.zero_()[1] = twin_gap
    return critic


def evaluation_critic_by_hand(x: float = 0.0) -> EvaluationCritic:
    """Reward per step: 1 - w + x times the action's first number. Cost: 1.35 - w.

    The quantile q of the cost is 4 (q - 1/2) sqrt(cost + 1) above what is expected: one square root at 3/4.
    """
    critic = make_evaluation_critic(hidden_dims=[])
    with torch.no_grad():
        weight, bias = critic.net[0].weight.zero_(), critic.net[0].bias.zero_()
        weight[0, 3], weight[0, 5], bias[0] = x, -0.5, 0.5  # the input is 2 w - 1
        weight[1, 5], bias[1] = -0.5, 0.85
        critic.residuals.copy_(4 * ((torch.arange(NUM_LEVELS) + 0.5) / NUM_LEVELS - 0.5))
    return critic


def pipeline_by_hand(x: float = 0.0, twin_gap: float = 0.0, **options) -> SPIPolicyPipeline:
    """Q^r is the action's first number, Q^c' its negative; the evaluation critic as above."""
    return make_pipeline(
        reward_critic=linear_critic(1.0, twin_gap),
        safety_critic=linear_critic(-1.0, twin_gap),
        evaluation_critic=evaluation_critic_by_hand(x),
        **options,
    )


def exact_pipeline(steps: int = 5) -> SPIPolicyPipeline:
    """A policy whose noise model is exact, so that every faithful sampler returns the observation."""
    config = SPIConfig(conditioned=False, mu=0.25, phi=0.25, num_train_timesteps=steps)
    shared = {"observation_dim": 2, "action_dim": 2, "use_safety_weight": False, "hidden_dims": [4]}
    return SPIPolicyPipeline(
        noise_model=exact_noise_model(config),
        reward_critic=TwinCritic(**shared),
        safety_critic=TwinCritic(**shared),
        scheduler=make_scheduler(config),
        normalizer=make_normalizer(2),
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
