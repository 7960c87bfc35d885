"""Bad input to the pipeline is refused by a message that says what is wrong."""

import re

import numpy as np
import pytest
import torch
from pipeline_factory import make_evaluation_critic, make_normalizer, make_pipeline

from spi_diffusers.models import (
    GaussianActor,
    MLPNoiseModel,
    ObservationNormalizer,
    TwinCritic,
)
from spi_diffusers.pipelines import BaselinePolicyPipeline, SPIPolicyPipeline

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


GENERATOR = "generator must be one torch.Generator for the whole batch, or a seed"


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        *((odd, "must be a number or an array of numbers") for odd in (None, "abc", b"abc", {1.0, 2.0, 3.0})),
        ([[1, 2, 3], [1]], "must be a number or an array of numbers, in rows of one length"),
        (["1", "2", "3"], "must be a number or an array of numbers"),
        (np.array(["a", 0, 0], object), "must be a number or an array of numbers"),
        (np.zeros(3, complex), "must be a number or an array of numbers"),
        (np.zeros(3, "M8[s]"), "must be a number or an array of numbers"),
        (np.zeros(3, [("a", float)]), "must be a number or an array of numbers"),
        ([10**400, 0, 0], "must be a number or an array of numbers"),
        (
            torch.zeros(3, dtype=torch.complex64),
            "must be a number or a dense array of numbers",
        ),
        (torch.zeros(3, device="meta"), "must be a tensor with one block of numbers in memory"),
        (torch.nested.nested_tensor([torch.zeros(3)]), "must be a tensor with one block of numbers"),
        (torch.zeros(3).to_sparse(), "must be a number or a dense array of numbers"),
        (np.ma.masked_array([0.0, 1.0, 2.0], [0, 1, 0]), "has masked numbers: fill them first"),
        ([np.ma.masked_array([0.0, 1.0, 2.0], [0, 1, 0])], "has masked numbers: fill them first"),
        ({"position": [0.0, 0.0, 0.0]}, "is a dict: put its numbers into one array"),
        ((np.zeros(3), {}), "is a pair of an observation and its info: pass the observation alone"),
    ],
)
def test_observations_that_are_no_numbers(pipe, observation, message):
    baseline = BaselinePolicyPipeline(GaussianActor(3, 2, hidden_dims=[4]), make_normalizer())
    for policy in (pipe, baseline):
        with pytest.raises(ValueError, match=f"^observation {re.escape(message)}") as caught:
            policy(observation)
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"cost_limit": odd}, "cost_limit must be a number or an array")
            for odd in ("20", True, 1j, [1, "a"])
        ),
        ({"cost_limit": {"limit": 20}}, "cost_limit must name the costs cost, got"),
        ({"cost_budget": 1.0, "steps_left": "3"}, "steps_left must be a number or an array"),
        *(
            ({"num_candidates": odd}, "num_candidates must be a whole number")
            for odd in (12.0, "12", True, 10**9)
        ),
        *(({"num_inference_steps": odd}, "num_inference_steps must be a whole") for odd in (2.0, "2", True)),
        *(({"safety_weight": odd}, "safety_weight must be a finite number") for odd in ("0.5", [0.5], True)),
        *(({"generator": odd}, GENERATOR) for odd in (-1, 3.0, "3", True, [0, 1], np.random.default_rng(0))),
        ({"extraction": ["safe"]}, "extraction must be one of ('reward', 'safe'), got ['safe']"),
    ],
)
def test_arguments_of_another_type(pipe, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        pipe(torch.zeros(2, 3), **options)


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
        ({"cost_limit": 5.0, "cost_budget": 5.0, "steps_left": 9}, "not both"),
        ({"cost_limit": 5.0, "risk": 0.0}, "risk must lie above 0"),
        ({"cost_limit": 5.0, "risk": 1.0}, "risk must be a finite number in [0, 1), got 1.0"),
        ({"cost_limit": 5.0, "risk": "5%"}, "risk must be a finite number in [0, 1), got '5%'"),
        ({"risk": NAN}, "risk must be a finite number"),
        ({"cost_budget": NAN, "steps_left": 5}, "cost_budget is NaN or infinite"),
        ({"cost_budget": 5.0, "steps_left": [[1]]}, "steps_left has shape (1, 1)"),
        ({"safety_weight": 1.5}, "safety_weight must be a finite number in [0, 1], got 1.5"),
        ({"safety_weight": NAN}, "safety_weight must be a finite number in [0, 1], got nan"),
        ({"num_candidates": 0}, "num_candidates must be a whole number in [1, 100000], got 0"),
        ({"num_candidates": -5}, "num_candidates must be a whole number in [1, 100000], got -5"),
        ({"num_candidates": 50, "cost_limit": 1.0}, "num_candidates is for extraction='reward'."),
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
        (
            {"evaluation_critic": make_evaluation_critic(action_dim=1)},
            "The evaluation_critic's action_dim is 1, but the noise_model's is 2",
        ),
        (
            {"evaluation_critic": make_evaluation_critic(max_episode_steps=7)},
            "max_episode_steps is 100, but the evaluation critic's is 7",
        ),
        (
            {"conditioned": False, "evaluation_critic": make_evaluation_critic()},
            "An evaluation critic needs a noise model with a safety weight",
        ),
    ],
)
def test_components_that_do_not_belong_together(component, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(**component)


@pytest.mark.parametrize("gamma", [1.0, -0.1, NAN, "0.9", None, True])
def test_gamma_must_lie_below_one(gamma):
    with pytest.raises(ValueError, match=r"gamma must be a finite number in \[0, 1\), got"):
        make_pipeline(gamma=gamma)


@pytest.mark.parametrize(("version", "advice"), [(1, "train the policy anew"), (3, "upgrade with `pip")])
def test_a_policy_of_another_format_is_refused(version, advice):
    message = f"format version {version}, but this code reads version 2: {advice}"
    with pytest.raises(ValueError, match=message):
        make_pipeline(format_version=version)


@pytest.mark.parametrize(
    "settings",
    [
        *({"reward_unit": value} for value in (0, -1.0, None, INF, NAN)),
        *({"cost_margin": value} for value in (0, -1.0, None, INF, NAN)),
        *({"max_episode_steps": value} for value in (0, "abc", INF, 2.5, True, 10**400)),
        *({"format_version": value} for value in ("1", None, 0)),
        {"task": 3},
    ],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))} (must be|needs)") as caught:
        make_pipeline(**{"evaluation_critic": None, **settings})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "settings",
    [
        {"action_low": 1.0, "action_high": 1.0},
        {"action_low": -INF},
        {"cost_limit": "10"},
        {"max_episode_steps": 0},
        {"algorithm": 3},
        {"format_version": 0},
    ],
)
def test_settings_of_a_baseline_that_make_no_sense(settings):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))} must"):
        BaselinePolicyPipeline(GaussianActor(3, 2, hidden_dims=[4]), make_normalizer(), **settings)


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
