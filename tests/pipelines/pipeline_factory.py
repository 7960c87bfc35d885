"""Small real pipelines, some with critics whose values can be worked out by hand."""

import torch
from diffusers.utils import logging as diffusers_logging
from exact_noise_model import exact_noise_model

from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.models import CostCalibration, MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.pipelines import SPIPolicyPipeline

diffusers_logging.disable_progress_bar()

GAMMA, STEPS = 0.9, 100


def make_normalizer(size: int = 3) -> ObservationNormalizer:
    normalizer = ObservationNormalizer(observation_dim=size)
    normalizer.set_statistics(torch.zeros(size), torch.ones(size))
    return normalizer


def make_pipeline(seed=0, conditioned=True, heads=2, noise_options=None, **options) -> SPIPolicyPipeline:
    """Untrained networks: observations of 3 numbers, actions of 2."""
    torch.manual_seed(seed)
    shared = {
        "observation_dim": 3,
        "action_dim": 2,
        "hidden_dims": [16, 16],
        "use_safety_weight": conditioned,
    }
    components = {
        "noise_model": MLPNoiseModel(**shared, **(noise_options or {})),
        "reward_critic": TwinCritic(**shared),
        "safety_critic": TwinCritic(**shared, num_heads=heads),
        "scheduler": make_scheduler(SPIConfig()),
        "normalizer": make_normalizer(),
    }
    settings = {"max_episode_steps": STEPS, "gamma": GAMMA, "budget_reserve": 0.0}
    return SPIPolicyPipeline(**(components | settings | options))


def full_pipeline() -> SPIPolicyPipeline:
    """All components, and settings that are no defaults."""
    calibration = CostCalibration(num_knots=2)
    calibration.set_curve(torch.tensor([0.1, 0.5]), torch.tensor([0.2, 0.3]))
    return make_pipeline(
        calibration=calibration,
        task="OfflineBallCircle-v0",
        budget_reserve=2.0,
        reward_unit=2.5,
        cost_unit=0.5,
        noise_options={"action_low": [-1.0, -2.0], "action_high": [1.0, 2.0]},
    )


def linear_critic(conditioned: bool, *heads: dict[str, float], twin_gap: float = 0.0) -> TwinCritic:
    """A critic without hidden layers, every head a weighted sum of: x (first action), w, s and one.

    The second twin lies `twin_gap` above the first.
    """
    critic = TwinCritic(
        observation_dim=3,
        action_dim=2,
        hidden_dims=[],
        use_safety_weight=conditioned,
        num_heads=len(heads),
    )
    with torch.no_grad():
        weight, bias = critic.net[0].weight.zero_(), critic.net[0].bias.zero_()
        for index, head in enumerate(heads):
            weight[:, 0, index] = head.get("s", 0.0)
            weight[:, 3, index] = head.get("x", 0.0)
            if conditioned:
                weight[:, 5, index] = head.get("w", 0.0)
            bias[:, 0, index] = head.get("one", 0.0)
            bias[1, 0, index] += twin_gap
    return critic


def pipeline_by_hand(conditioned=True, weight_share=0.0, twin_gap=0.0, heads=2, **options):
    """Q^r = x, Q^c = 5 + 5 x + weight_share (1 - w), Q^c' = 10 - Q^c, for the action's first number x.

    With gamma = 0.9 the predicted cost rate is Q^c / 10: 0 at x = -1 and 1 at x = 1.
    """
    cost = {"x": 5.0, "one": 5.0 + weight_share, "w": -weight_share}
    safety = {"x": -5.0, "one": 5.0 - weight_share, "w": weight_share}
    return make_pipeline(
        conditioned=conditioned,
        reward_critic=linear_critic(conditioned, {"x": 1.0}, twin_gap=twin_gap),
        safety_critic=linear_critic(conditioned, *[safety, cost][:heads], twin_gap=twin_gap),
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
