"""Bad input to the pipeline is refused by a message that says what is wrong."""

import re

import numpy as np
import pytest
import torch
from pipeline_factory import make_normalizer, make_pipeline

from spi_diffusers.models import CostCalibration, MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.pipelines import SPIPolicyPipeline

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(4), "observation has shape (4,); this policy takes (3,) or (batch, 3)"),
        (np.zeros((2, 4)), "observation has shape (2, 4)"),
        (np.zeros((1, 2, 3)), "observation has shape (1, 2, 3)"),
        (np.zeros((0, 3)), "observation has shape (0, 3)"),
        (np.float32(1.0), "observation has shape ()"),
        (torch.zeros(5), "observation has shape (5,)"),
        (torch.tensor([0.0, NAN, 0.0]), "observation is NaN or infinite at index [1]"),
        (np.array([[0, 0, 0], [0, 0, INF]]), "observation is NaN or infinite at index [1, 2]"),
        ([0.0, 1e300, 0.0], "observation is NaN or infinite at index [1]"),
    ],
)
def test_bad_observations(pipe, observation, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pipe(observation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extraction": "best"}, "extraction must be one of ('reward', 'safe'), got 'best'"),
        ({"extraction": "safe"}, "extraction='safe' needs"),
        ({"cost_limit": -1.0}, "cost_limit must not be negative, got -1.0"),
        ({"cost_limit": [1.0, -1.0]}, "cost_limit must not be negative"),
        ({"cost_limit": NAN}, "cost_limit is NaN or infinite"),
        ({"cost_limit": INF}, "cost_limit is NaN or infinite"),
        (
            {"cost_limit": [1.0, 2.0, 3.0]},
            "cost_limit has shape (3,); pass one number or one per observation",
        ),
        ({"cost_budget": 5.0}, "steps_left"),
        ({"steps_left": 5}, "cost_budget"),
        ({"cost_limit": 5.0, "steps_left": 5}, "cost_budget"),
        ({"cost_budget": 5.0, "steps_left": 0}, "steps_left must be at least 1, got 0"),
        ({"cost_budget": NAN, "steps_left": 5}, "cost_budget is NaN or infinite"),
        ({"cost_budget": 5.0, "steps_left": [[1]]}, "steps_left has shape (1, 1)"),
        ({"safety_weight": 1.5}, "safety_weight must lie in [0, 1], got 1.5"),
        ({"safety_weight": NAN}, "safety_weight must lie in [0, 1]"),
        ({"num_candidates": 0}, "num_candidates must be at least 1, got 0"),
        ({"num_candidates": -5}, "num_candidates must be at least 1"),
        # Also where it would not be needed, a limit that makes no sense is a mistake.
        ({"cost_limit": -1.0, "extraction": "reward"}, "cost_limit must not be negative"),
    ],
)
def test_bad_options(pipe, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        pipe(torch.zeros(2, 3), **options)


def test_a_safety_weight_does_not_apply_to_an_unconditioned_policy():
    with pytest.raises(ValueError, match="trained without a safety weight"):
        make_pipeline(conditioned=False)(torch.zeros(3), safety_weight=0.5)


def test_a_limit_needs_the_episodes_length_and_a_budget_does_not():
    pipe = make_pipeline(max_episode_steps=None)
    with pytest.raises(ValueError, match="does not know its task's episode length: pass cost_budget"):
        pipe(torch.zeros(3), cost_limit=5.0)
    pipe(torch.zeros(3), cost_budget=5.0, steps_left=10)


SHARED = {"observation_dim": 3, "action_dim": 2, "hidden_dims": [4]}


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (
            {"reward_critic": TwinCritic(**(SHARED | {"observation_dim": 4}))},
            "The reward_critic's observation_dim is 4, but the noise_model's is 3",
        ),
        (
            {"safety_critic": TwinCritic(**(SHARED | {"action_dim": 1}))},
            "The safety_critic's action_dim is 1, but the noise_model's is 2",
        ),
        (
            {"reward_critic": TwinCritic(**SHARED, use_safety_weight=False)},
            "The reward_critic's use_safety_weight is False, but the noise_model's is True",
        ),
        (
            {"noise_model": MLPNoiseModel(**(SHARED | {"observation_dim": 7}))},
            "The reward_critic's observation_dim is 3, but the noise_model's is 7",
        ),
        ({"normalizer": make_normalizer(5)}, "The normalizer's observation_dim is 5"),
        ({"normalizer": ObservationNormalizer(observation_dim=3)}, "Statistic 'mean'"),
        ({"calibration": CostCalibration(num_knots=2)}, "cost calibration's allowed_rates"),
    ],
)
def test_components_that_do_not_belong_together(component, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(**component)


@pytest.mark.parametrize("gamma", [1.0, -0.1, NAN, "0.9"])
def test_gamma_must_lie_below_one(gamma):
    with pytest.raises(ValueError, match="gamma must lie in"):
        make_pipeline(gamma=gamma)


def test_a_policy_of_a_newer_format_is_refused():
    with pytest.raises(ValueError, match=r"format version 2, but this code reads versions up to 1.*upgrade"):
        make_pipeline(format_version=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"budget_reserve": -1.0},
        {"reserve_decay": -0.5},
        {"reserve_decay": 0.5, "max_episode_steps": None},
        {"max_episode_steps": 0},
    ],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        make_pipeline(**settings)


def test_weights_that_are_not_finite_never_become_actions():
    pipe = make_pipeline()
    with torch.no_grad():
        pipe.noise_model.net[0].bias[0] = NAN
    with pytest.raises(ValueError, match="finite"):
        pipe(torch.zeros(3), cost_limit=5.0)


def test_a_missing_component_is_named():
    parts = make_pipeline().components
    parts.pop("safety_critic")
    with pytest.raises(TypeError, match="safety_critic"):
        SPIPolicyPipeline(**parts)
