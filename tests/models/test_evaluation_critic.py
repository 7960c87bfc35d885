"""The evaluation critic: what it sees, its units and bounds, and what it refuses."""

import math

import pytest
import torch

from spi_diffusers.models import EvaluationCritic


def make_critic(**options) -> EvaluationCritic:
    settings = {
        "observation_dim": 3,
        "action_dim": 2,
        "max_episode_steps": 100,
        "reward_range": [-1.0, 4.0],
        "cost_high": 2.0,
        "num_quantiles": 2,
        "hidden_dims": [],
    }
    return EvaluationCritic(**(settings | options))


def inputs(steps: float, count: int = 1):
    parts = (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, -0.5]))
    rows = [part.expand(count, -1) for part in parts]
    return (*rows, torch.full((count,), 0.75), torch.full((count,), steps))


def test_what_the_network_sees_by_hand():
    """s, a, 2 w - 1, then h / T, log h / log T and 1 / h, here for h = 10 of T = 100."""
    critic = make_critic(reward_range=[-100.0, 100.0], reward_unit=2.0)
    features = torch.tensor([1.0, 2.0, 3.0, 0.5, -0.5, 0.5, 0.1, 0.5, 0.1])
    for index, feature in enumerate(features):
        with torch.no_grad():
            critic.net[0].weight.zero_()[0, index] = 1.0
            critic.net[0].bias.zero_()
        reward_rate, _ = critic(*inputs(10.0), return_dict=False)
        torch.testing.assert_close(reward_rate, 2.0 * feature.unsqueeze(0))


def test_units_and_bounds_by_hand():
    critic = make_critic(reward_unit=3.0, cost_unit=0.5)
    with torch.no_grad():
        critic.net[0].weight.zero_()
        for bias, reward, costs in (
            ([1.0, 0.0, -50.0], 3.0, [0.5 * math.log(2.0), 0.0]),
            ([9.0, 90.0, 1.0], 4.0, [2.0, 0.5 * math.log(1 + math.e)]),
            ([-9.0, 0.0, 0.0], -1.0, [0.5 * math.log(2.0)] * 2),
        ):
            critic.net[0].bias.copy_(torch.tensor(bias))
            output = critic(*inputs(7.0))
            assert output.reward_rate.tolist() == pytest.approx([reward])
            assert output.cost_rates[0].tolist() == pytest.approx(costs, abs=1e-6)
        assert float(critic.unbounded(*inputs(7.0))[0]) == pytest.approx(-27.0)


def test_no_cost_is_ever_negative():
    torch.manual_seed(0)
    critic = make_critic(hidden_dims=[16])
    rates = critic(torch.randn(500, 3) * 10, torch.randn(500, 2), torch.rand(500), torch.rand(500) * 99 + 1)
    assert (rates.cost_rates >= 0).all()
    assert (rates.cost_rates <= 2.0).all()


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_episodes(steps):
    critic = make_critic(max_episode_steps=1, hidden_dims=[4])
    assert all(part.isfinite().all() for part in critic(*inputs(float(steps)), return_dict=False))


def test_save_and_load(tmp_path):
    critic = make_critic(hidden_dims=[8])
    critic.save_pretrained(str(tmp_path))
    loaded = EvaluationCritic.from_pretrained(str(tmp_path))
    arguments = inputs(20.0, count=4)
    for name, value in critic(*arguments).items():
        assert torch.equal(loaded(*arguments)[name], value), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation_dim": 0}, "Sizes must be at least 1"),
        ({"num_quantiles": 0}, "Sizes must be at least 1"),
        ({"max_episode_steps": 0}, "Sizes must be at least 1"),
        ({"reward_range": [1.0, 2.0]}, "a reward_range about 0"),
        ({"reward_range": [2.0, 1.0]}, "a reward_range about 0"),
        ({"reward_range": [0.0]}, "a reward_range about 0"),
        ({"reward_range": [-math.inf, 0.0]}, "all finite"),
        ({"cost_high": -1.0}, "a cost_high that is not negative"),
        ({"cost_unit": 0.0}, "Units must be positive, got 1.0 and 0.0"),
        ({"reward_unit": -2.0}, "Units must be positive"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        make_critic(**options)
