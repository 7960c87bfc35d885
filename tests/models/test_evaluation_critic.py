"""The evaluation critic: what it sees, its units and bounds, what it adds for a risk, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.models import EvaluationCritic
from spi_diffusers.models.evaluation_critic import NUM_LEVELS, NUM_STEPS, NUM_WEIGHTS


def make_critic(**options) -> EvaluationCritic:
    settings = {
        "observation_dim": 3,
        "action_dim": 2,
        "max_episode_steps": 100,
        "reward_range": [-1.0, 4.0],
        "cost_high": 2.0,
        "hidden_dims": [],
    }
    return EvaluationCritic(**(settings | options))


def inputs(steps: float, count: int = 1):
    parts = (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, -0.5]))
    rows = [part.expand(count, -1) for part in parts]
    return (*rows, torch.full((count,), 0.75), torch.full((count,), steps))


def bound(critic: EvaluationCritic, cost=12.0, weight=0.5, steps=10.0, risk=0.05) -> float:
    return float(
        critic.cost_bound(torch.tensor([[cost]]), torch.tensor([weight]), torch.tensor([steps]), risk)
    )


# ---- rates


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


@pytest.mark.parametrize(
    ("bias", "rates", "unbounded"),
    [
        ([1.0, 1.0], (3.0, 0.5), (3.0, 0.5)),
        ([9.0, 90.0], (4.0, 2.0), (27.0, 45.0)),
        ([-9.0, -1.0], (-1.0, 0.0), (-27.0, -0.5)),
    ],
)
def test_units_and_bounds_by_hand(bias, rates, unbounded):
    critic = make_critic(reward_unit=3.0, cost_mean=0.5, cost_unit=7.0)
    with torch.no_grad():
        critic.net[0].weight.zero_()
        critic.net[0].bias.copy_(torch.tensor(bias))
    with torch.no_grad():
        output, raw = critic(*inputs(7.0)), critic.unbounded(*inputs(7.0))
    assert (float(output.reward_rate), float(output.cost_rate)) == pytest.approx(rates)
    assert [float(rate) for rate in raw] == pytest.approx(unbounded)


def test_no_cost_is_ever_negative():
    torch.manual_seed(0)
    critic = make_critic(hidden_dims=[16])
    rates = critic(torch.randn(500, 3) * 10, torch.randn(500, 2), torch.rand(500), torch.rand(500) * 99 + 1)
    assert rates.cost_rate.shape == (500, 1)
    assert (rates.cost_rate >= 0).all()
    assert (rates.cost_rate <= 2.0).all()


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_episodes(steps):
    critic = make_critic(max_episode_steps=1, hidden_dims=[4])
    assert all(part.isfinite().all() for part in critic(*inputs(float(steps)), return_dict=False))
    assert math.isfinite(bound(critic, steps=steps))


# ---- what is added for a risk


def test_the_scale_of_residuals_by_hand():
    """sqrt(u (cost + u)): one unit where no cost is expected."""
    scale = make_critic(cost_unit=4.0).residual_scale(torch.tensor([[0.0], [12.0], [5.0]]))
    torch.testing.assert_close(scale, torch.tensor([[4.0], [8.0], [6.0]]))


def test_positions_of_steps_by_hand():
    """By the logarithm: 10 lies in the middle of 1 and 100. What is longer counts as 100."""
    position = make_critic().step_position(torch.tensor([1, 10, 100, 1000]))
    torch.testing.assert_close(position, torch.tensor([0.0, 6.0, 12.0, 12.0]))
    short = make_critic(max_episode_steps=1).step_position(torch.tensor([1, 5]))
    torch.testing.assert_close(short, torch.tensor([0.0, 12.0]))


@pytest.mark.parametrize(
    ("weight", "steps", "risk", "margin"),
    [
        (0.3, 10, 0.5, 300 + 60 + 31.5),  # level 1/2 lies between those at 31.5 / 64 and 32.5 / 64
        (0.35, 10, 0.5, 350 + 60 + 31.5),  # between two weights
        (1.0, 100, 0.25, 1000 + 120 + 47.5),
        (0.0, 10**0.25, 0.25, 15 + 47.5),  # between two numbers of steps
        (0.0, 1, 0.0001, 63),  # no level lies beyond the last
        (0.0, 1, 0.9999, 0),
        (0.5, 400, 0.5, 500 + 120 + 31.5),
    ],
)
def test_the_bound_by_hand(weight, steps, risk, margin):
    """Residuals of 100 for each weight, 10 for each number of steps and 1 for each level; a scale of 8."""
    critic = make_critic(cost_unit=4.0)
    rows = [torch.arange(count, dtype=torch.float32) for count in (NUM_WEIGHTS, NUM_STEPS, NUM_LEVELS)]
    critic.residuals.copy_(100 * rows[0][:, None, None] + 10 * rows[1][:, None] + rows[2])
    assert bound(critic, 12.0, weight, steps, risk) == pytest.approx(12 + 8 * margin, rel=1e-5)


def test_the_bound_is_the_same_for_a_number_and_for_an_input_of_a_graph():
    critic = make_critic()
    critic.residuals.copy_(torch.rand(critic.residuals.shape, generator=torch.Generator().manual_seed(0)))
    with torch.inference_mode():
        first = bound(critic, risk=0.0625)
    assert bound(critic, risk=0.0625) == bound(critic, risk=torch.tensor(0.0625)) == first
    assert bound(critic, risk=0.125) < first


def test_without_residuals_the_bound_is_the_expected_cost():
    assert bound(make_critic()) == 12.0


def test_costs_below_what_was_expected_are_not_relied_on():
    critic = make_critic()
    critic.residuals.fill_(-50.0)
    assert bound(critic) == 12.0


risks = st.floats(0.001, 0.999)


@given(st.integers(0, 1000), risks, risks, st.floats(0, 1), st.floats(1, 200), st.floats(0, 1e4))
def test_less_risk_is_never_a_smaller_bound(seed, first, second, weight, steps, cost):
    critic = make_critic()
    noise = torch.randn(critic.residuals.shape, generator=torch.Generator().manual_seed(seed))
    critic.residuals.copy_(noise.sort(dim=-1).values)
    more, less = sorted((first, second), reverse=True)
    low, high = (bound(critic, cost, weight, steps, risk) for risk in (more, less))
    assert cost * (1 - 1e-6) - 1e-30 <= low <= high * (1 + 1e-6) + 1e-5


def test_bounds_are_row_by_row():
    critic = make_critic()
    critic.residuals.copy_(torch.rand(critic.residuals.shape, generator=torch.Generator().manual_seed(0)))
    values = torch.tensor([[0.0, 0.12, 3.0], [7.0, 0.77, 50.0], [90.0, 1.0, 100.0]])
    cost, weight, steps = values.unbind(1)
    together = critic.cost_bound(cost.unsqueeze(1), weight, steps, 0.1)
    assert together.flatten().tolist() == pytest.approx([bound(critic, *row, 0.1) for row in values.tolist()])


# ---- several costs

TWO = {"cost_high": [2.0, 900.0], "cost_mean": [0.5, 300.0], "cost_unit": [1.0, 4.0]}


def test_each_cost_has_its_own_units_and_bounds():
    critic = make_critic(**TWO, cost_names=["speed", "energy"])
    with torch.no_grad():
        critic.net[0].weight.zero_()
        critic.net[0].bias.copy_(torch.tensor([1.0, 3.0, 4.0]))
        rates = critic(*inputs(7.0)).cost_rate
    assert (critic.cost_names, rates.tolist()) == (("speed", "energy"), [[1.5, 900.0]])


def test_the_risk_is_shared_by_the_costs():
    """Levels are their own numbers: 0.5 of two costs is 0.25 each, level 47.5; scales are 3 and 8."""
    critic = make_critic(**TWO, cost_names=["speed", "energy"])
    critic.residuals.copy_(torch.arange(NUM_LEVELS).expand(2, NUM_WEIGHTS, NUM_STEPS, -1))
    critic.residuals[1] *= 10
    found = critic.cost_bound(torch.tensor([[8.0, 12.0]]), torch.tensor([0.5]), torch.tensor([10.0]), 0.5)
    assert found.tolist() == [[8 + 3 * 47.5, 12 + 8 * 475.0]]


@pytest.mark.parametrize(
    "wrong", [{"cost_unit": [1.0]}, {"cost_names": None}, {"cost_names": ["a", "a"]}, {"cost_mean": 1.0}]
)
def test_settings_of_different_numbers_of_costs_are_refused(wrong):
    with pytest.raises(ValueError, match="Several costs need a number and a name of its own for each"):
        make_critic(**(TWO | {"cost_names": ["speed", "energy"]} | wrong))


# ---- files and refusals


def test_save_and_load(tmp_path):
    critic = make_critic(hidden_dims=[8])
    critic.residuals.fill_(0.5)
    critic.save_pretrained(str(tmp_path))
    loaded = EvaluationCritic.from_pretrained(str(tmp_path))
    arguments = inputs(20.0, count=4)
    for name, value in critic(*arguments).items():
        assert torch.equal(loaded(*arguments)[name], value), name
    assert torch.equal(loaded.residuals, critic.residuals)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation_dim": 0}, "Sizes must be at least 1"),
        ({"hidden_dims": [0]}, "Sizes must be at least 1"),
        ({"max_episode_steps": 0}, "Sizes must be at least 1"),
        ({"reward_range": [1.0, 2.0]}, "a reward_range about 0"),
        ({"reward_range": [2.0, 1.0]}, "a reward_range about 0"),
        ({"reward_range": [0.0]}, "a reward_range about 0"),
        ({"reward_range": [-math.inf, 0.0]}, "all finite"),
        ({"cost_high": -1.0}, "a cost_high that is not negative"),
        ({"cost_mean": 0.0}, r"Units must be positive, got 1.0, 0.0 and 1.0\."),
        ({"cost_unit": 0.0}, r"Units must be positive, got 1.0, 1.0 and 0.0\."),
        ({"cost_unit": math.nan}, "all finite"),
        ({"reward_unit": -2.0}, "Units must be positive"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        make_critic(**options)
