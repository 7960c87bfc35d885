"""The twin critic: two ordinary MLPs, computed in one pass."""

import pytest
import torch
from torch import nn

from spi_diffusers.models import (
    EvaluationCritic,
    GaussianActor,
    MLPNoiseModel,
    ObservationNormalizer,
    TwinCritic,
)


def make_critic(seed=0, **options):
    torch.manual_seed(seed)
    return TwinCritic(**({"observation_dim": 3, "action_dim": 2, "hidden_dims": [16, 8]} | options))


def as_mlps(critic):
    """Each twin as a plain nn.Sequential with the same weights."""
    mlps = []
    for twin in range(2):
        layers = []
        for part in critic.net:
            if not hasattr(part, "weight"):
                layers.append(part)
                continue
            linear = nn.Linear(part.weight.shape[1], part.weight.shape[2])
            with torch.no_grad():
                linear.weight.copy_(part.weight[twin].T)
                linear.bias.copy_(part.bias[twin, 0])
            layers.append(linear)
        mlps.append(nn.Sequential(*layers))
    return mlps


@pytest.mark.parametrize("conditioned", [True, False])
def test_twins_are_two_separate_mlps(conditioned):
    critic = make_critic(use_safety_weight=conditioned)
    observation, action = torch.randn(9, 3), torch.randn(9, 2)
    weight = torch.rand(9) if conditioned else None
    values = critic(observation, action, weight).values
    assert values.shape == (2, 9)
    parts = [observation, action, *([weight.unsqueeze(1)] if conditioned else [])]
    for twin, mlp in enumerate(as_mlps(critic)):
        torch.testing.assert_close(values[twin], mlp(torch.cat(parts, dim=1))[:, 0])
    assert not torch.allclose(values[0], values[1]), "the twins start with different weights"


def test_a_value_by_hand():
    critic = make_critic(hidden_dims=[1], activation="relu", use_safety_weight=True)
    with torch.no_grad():
        # Inputs s = (1, 2, 3), a = (4, 5), w = 0.5; twin 0 adds them up: 15.5, then 2 * 15.5 - 1 = 30.
        critic.net[0].weight[0].fill_(1.0)
        critic.net[0].bias[0].zero_()
        critic.net[2].weight[0].fill_(2.0)
        critic.net[2].bias[0].fill_(-1.0)
        # Twin 1 is cut off by the ReLU: only its bias is left.
        critic.net[0].weight[1].fill_(-1.0)
        critic.net[0].bias[1].zero_()
        critic.net[2].bias[1].fill_(0.25)
        arguments = (torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0]]), torch.tensor([0.5]))
        assert critic(*arguments).values.flatten().tolist() == [30.0, 0.25]


def test_return_dict():
    critic = make_critic()
    arguments = (torch.randn(4, 3), torch.randn(4, 2), torch.rand(4))
    assert torch.equal(critic(*arguments).values, critic(*arguments, return_dict=False)[0])


def test_a_safety_weight_is_needed_or_refused():
    with pytest.raises(ValueError, match="needs a safety weight"):
        make_critic()(torch.zeros(1, 3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="does not take a safety weight"):
        make_critic(use_safety_weight=False)(torch.zeros(1, 3), torch.zeros(1, 2), torch.zeros(1))


@pytest.mark.parametrize("options", [{"observation_dim": 0}, {"action_dim": -1}, {"hidden_dims": [0]}])
def test_bad_sizes(options):
    with pytest.raises(ValueError, match="Sizes must be at least 1"):
        make_critic(**options)


def test_save_and_load(tmp_path):
    critic = make_critic()
    critic.save_pretrained(str(tmp_path))
    loaded = TwinCritic.from_pretrained(str(tmp_path))
    arguments = (torch.randn(4, 3), torch.randn(4, 2), torch.rand(4))
    assert torch.equal(loaded(*arguments).values, critic(*arguments).values)


@pytest.mark.parametrize(
    "component",
    [
        TwinCritic(3, 2, hidden_dims=[4]),
        MLPNoiseModel(3, 2, hidden_dims=[4]),
        GaussianActor(3, 2, hidden_dims=[4]),
        ObservationNormalizer(3),
        EvaluationCritic(3, 2, 10, [0.0, 1.0], 1.0, hidden_dims=[4]),
    ],
    ids=lambda component: type(component).__name__,
)
def test_no_component_is_loaded_from_a_pickle(component, tmp_path, monkeypatch):
    component.save_pretrained(tmp_path, safe_serialization=False)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    for options in ({}, {"use_safetensors": False}):
        with pytest.raises(OSError, match="safetensors"):
            type(component).from_pretrained(tmp_path, **options)
