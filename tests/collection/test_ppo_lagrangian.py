import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.collection.config import CollectConfig
from spi_diffusers.collection.ppo_lagrangian import (
    BudgetNetworks,
    RunningMoments,
    Segment,
    advantages,
    combined_advantage,
    ppo_loss,
    ppo_update,
    update_multiplier,
)

CONFIG = CollectConfig(multiplier_rate=0.1, max_multiplier=5.0)


def segment(terminated, ended):
    unused = torch.zeros(len(ended), 1)
    return Segment(
        observation=unused,
        next_observation=unused,
        action=unused,
        budget=unused.long(),
        signals=unused,
        terminated=torch.tensor(terminated)[:, None],
        ended=torch.tensor(ended)[:, None],
    )


@pytest.mark.parametrize(
    ("terminated", "ended", "expected"),
    [
        # delta = 1 + 0.9 * 1 - 0.5 = 1.4; 2 + 0.9 * 1.5 - 1 = 2.35; 3 + 0.9 * 2 - 1.5 = 3.3; lambda 0.95
        ([0, 0, 0], [0, 0, 0], [1.4 + 0.855 * 5.1715, 2.35 + 0.855 * 3.3, 3.3]),
        # A time limit: the next value still counts, the next step's advantage does not.
        ([0, 0, 0], [0, 1, 0], [1.4 + 0.855 * 2.35, 2.35, 3.3]),
        # A termination: the next value does not count either; 2 - 1 = 1.
        ([0, 1, 0], [0, 1, 0], [1.4 + 0.855 * 1.0, 1.0, 3.3]),
        ([0, 0, 1], [0, 0, 1], [1.4 + 0.855 * (2.35 + 0.855 * 1.5), 2.35 + 0.855 * 1.5, 1.5]),
    ],
)
def test_advantages_by_hand(terminated, ended, expected):
    signal, value = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.5], [1.0], [1.5]])
    next_value = torch.tensor([[1.0], [1.5], [2.0]])
    episode = segment([bool(x) for x in terminated], [bool(x) for x in ended])
    result = advantages(signal, value, next_value, episode, gamma=0.9)
    torch.testing.assert_close(result[:, 0], torch.tensor(expected))


def test_environments_do_not_mix():
    both = torch.tensor([[1.0, 5.0], [2.0, 6.0]])
    ended = torch.tensor([[False, True], [False, False]])
    ends = segment([False, False], [False, False])
    two = Segment(
        **{**vars(ends), "ended": ended, "terminated": ended}  # the second one is over after one step
    )
    result = advantages(both, torch.zeros(2, 2), torch.zeros(2, 2), two, gamma=1.0)
    torch.testing.assert_close(result, torch.tensor([[1.0 + 0.95 * 2.0, 5.0], [2.0, 6.0]]))


def test_combined_advantage_by_hand():
    # Standardised, both are (-1, 1) / sqrt(2).
    reward, cost, half = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 4.0]), 0.5**0.5
    for multiplier, expected in (
        ([0.0, 0.0], [-half, half]),
        ([0.0, 1.0], [-half, 0.0]),
        ([3.0, 3.0], [2 * half / 4, -2 * half / 4]),
    ):
        result = combined_advantage(reward, cost, torch.tensor(multiplier))
        torch.testing.assert_close(result, torch.tensor(expected))
    constant = combined_advantage(reward, torch.zeros(2), torch.ones(2))  # no cost anywhere: no NaN
    torch.testing.assert_close(constant, torch.tensor([-half / 2, half / 2]))


def test_ppo_loss_by_hand():
    ratio = torch.tensor([1.5, 0.5, 1.1, 0.5, 1.5])
    advantage = torch.tensor([1.0, 1.0, -2.0, -1.0, -1.0])
    # 1.2 (clipped), 0.5, -2.2, -0.8 (clipped), -1.5: the smaller of both, clipped or not
    expected = -(1.2 + 0.5 - 2.2 - 0.8 - 1.5) / 5
    torch.testing.assert_close(ppo_loss(ratio, advantage), torch.tensor(expected))


@pytest.mark.parametrize(
    ("cost_return", "target", "expected"),
    [
        (30.0, 20.0, 0.55),  # half of the target too much
        (20.0, 20.0, 0.5),
        (0.0, 20.0, 0.4),
        (5.0, 0.0, 0.55),  # shares of 10 where the target is less
        (500.0, 20.0, 0.7),  # at most twice
    ],
)
def test_update_multiplier_by_hand(cost_return, target, expected):
    result = update_multiplier(0.5, cost_return, target, CONFIG)
    assert result == pytest.approx(expected)


def test_multiplier_stays_in_its_range():
    assert update_multiplier(4.95, 100.0, 0.0, CONFIG) == 5.0
    assert update_multiplier(0.05, 0.0, 40.0, CONFIG) == 0.0


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    seed=st.integers(0, 100),
    offset=st.floats(-100, 100),
)
def test_running_moments_agree_with_numpy(sizes, seed, offset):
    rows = np.random.default_rng(seed).normal(offset, [0.5, 2.0, 30.0], size=(sum(sizes) + 200, 3))
    moments = RunningMoments(3)
    for part in np.split(rows, np.cumsum(sizes)):
        moments.add(torch.from_numpy(part))
    # What they start from (mean 0, variance 1) weighs 1e-4 of a row.
    assert float(moments.count) == pytest.approx(len(rows) + 1e-4)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moments.deviation, rows.std(0), rtol=0.02)


def test_running_moments_take_any_leading_dimensions_and_never_divide_by_zero():
    rows = torch.arange(24.0).reshape(2, 4, 3)
    flat, stacked = RunningMoments(3), RunningMoments(3)
    flat.add(rows.reshape(8, 3))
    stacked.add(rows)
    assert torch.equal(flat.mean, stacked.mean)
    assert torch.equal(flat.variance, stacked.variance)
    constant = RunningMoments(1)
    constant.add(torch.zeros(10**6, 1))
    assert float(constant.deviation) >= 1e-4


def updated_mean(multiplier):
    """Where one update moves the policy, which begins at 0, if reward and cost both are the action."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    networks = BudgetNetworks(3, 1, 2, (16,))
    optimizer = torch.optim.Adam(networks.parameters(), lr=0.01)
    shape = (50, 4)
    observation = torch.randn(*shape, 3, generator=generator)
    action = 0.6 * torch.randn(*shape, 1, generator=generator)
    ended = torch.ones(shape, dtype=torch.bool)
    played = Segment(
        observation=observation,
        next_observation=observation,
        action=action,
        budget=torch.zeros(shape, dtype=torch.int64),
        signals=torch.cat([action, action + 0.01 * torch.randn(action.shape, generator=generator)], dim=-1),
        terminated=ended,
        ended=ended,
    )
    ppo_update(
        networks,
        optimizer,
        played,
        torch.tensor([multiplier, 0.0]),
        CollectConfig(gamma=0.9, epochs=4, minibatch_size=50, entropy_weight=0.0),
        generator,
    )
    budget = torch.zeros(shape, dtype=torch.int64)
    return networks.distribution(networks.inputs(observation, budget), budget).mean.mean().item()


def test_update_follows_the_reward_and_with_a_large_multiplier_flees_the_cost():
    assert updated_mean(0.0) > 0.02
    assert updated_mean(5.0) < -0.02


def test_networks_see_the_budget():
    networks = BudgetNetworks(3, 2, 4, (8, 8))
    inputs = networks.inputs(torch.ones(5, 3), torch.tensor([0, 1, 2, 3, 3]))
    assert inputs[:, 3:].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    assert networks.values(inputs).shape == (2, 5)
    policy = networks.distribution(inputs, torch.tensor([0, 1, 2, 3, 3]))
    assert policy.mean.shape == policy.stddev.shape == (5, 2)
    assert not torch.equal(policy.mean[2], policy.mean[3])
    assert torch.equal(policy.mean[3], policy.mean[4])
