"""What the constrained baselines share, by hand: multiplier, threshold, values, discrepancy, VAE."""

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.algorithms.base import Batch, PolicySizes
from spi_diffusers.algorithms.constrained import (
    _ROWS_PER_PASS,
    ConstrainedCritics,
    PIDLagrangian,
    batch_vae_loss,
    cost_threshold,
    make_critics,
    mmd,
    soft_clipped_value,
    vae_loss,
)
from spi_diffusers.algorithms.networks import Compute, Learner
from spi_diffusers.config.algorithm_settings import BCQLagConfig, BEARLagConfig, LagrangianConfig
from spi_diffusers.models.action_vae import ActionVAE


def task_of(cost_limit, steps):
    return PolicySizes(3, 2, steps, cost_limit)


def test_threshold_by_hand():
    assert cost_threshold(task_of(10.0, 200), 0.99) == pytest.approx(0.05 / 0.01)
    finite = cost_threshold(task_of(10.0, 200), 0.99, finite=True)
    assert finite == pytest.approx(0.05 * (1 - 0.99**200) / 0.01)
    assert cost_threshold(task_of(10.0, 200), 0.0) == pytest.approx(0.05)


@given(st.floats(0, 1000), st.integers(1, 2000), st.floats(0, 0.999))
def test_a_finite_horizons_threshold_is_the_lower_one(limit, steps, gamma):
    task = task_of(limit, steps)
    assert cost_threshold(task, gamma, finite=True) <= cost_threshold(task, gamma) + 1e-9


def controller(proportional, integral, derivative):
    gains = {"proportional": proportional, "integral": integral, "derivative": derivative}
    return PIDLagrangian(LagrangianConfig(**gains), Compute())


@pytest.mark.parametrize(
    ("error", "previous_error", "integral", "multiplier"),
    [(2.0, 0.5, 3.0, 0.1 * 2.0 + 0.01 * 3.0 + 1.5), (-5.0, 2.0, 0.0, 0.0)],
)
def test_the_controller_by_hand(error, previous_error, integral, multiplier):
    lagrangian = controller(0.1, 0.01, 1.0)
    lagrangian.integral.fill_(1.0)
    lagrangian.previous_error.fill_(previous_error)
    assert lagrangian.update(torch.tensor(error)).item() == pytest.approx(multiplier)
    assert lagrangian.integral.item() == pytest.approx(integral)
    assert lagrangian.previous_error.item() == error


def test_the_multiplier_rises_while_the_cost_is_too_high_and_falls_after():
    lagrangian = controller(0.1, 0.01, 0.0)
    high = [float(lagrangian.update(torch.tensor(1.0))) for _ in range(20)]
    low = [float(lagrangian.update(torch.tensor(-1.0))) for _ in range(30)]
    assert high == sorted(high)
    assert low[-1] == 0.0
    assert set(lagrangian.state_dict()) == {"integral", "previous_error", "multiplier"}


def test_soft_clipping_by_hand_for_reward_and_cost():
    values = torch.tensor([[[1.0], [3.0]], [[2.0], [0.0]]])  # two pairs of twins, one sample
    # Over the pairs: the lower of each twin is (1, 0), the higher (2, 3).
    assert soft_clipped_value(values, 0.75).item() == pytest.approx(0.75 * 0.0 + 0.25 * 1.0)
    assert soft_clipped_value(values, 0.75, pessimistic="high").item() == pytest.approx(0.75 * 3 + 0.25 * 2)


@pytest.mark.parametrize(("kernel", "distance"), [("gaussian", 4.0), ("laplacian", 2.0)])
def test_mmd_by_hand(kernel, distance):
    first, second = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 2.0)
    similarity = math.exp(-distance / (2 * 5.0))
    assert mmd(first, second, kernel, 5.0).item() == pytest.approx(math.sqrt(2 - 2 * similarity), abs=1e-5)


def test_mmd_of_a_sample_with_itself_is_its_floor_and_has_a_gradient():
    sample = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = mmd(sample, sample.detach(), "gaussian", 5.0)
    value.sum().backward()
    torch.testing.assert_close(value.detach(), torch.full((3,), 1e-3), atol=1e-4, rtol=0)
    assert bool(sample.grad.isfinite().all())


def test_vae_loss_by_hand():
    error, divergence = vae_loss(
        torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0]]), torch.zeros(1, 1), 0.5
    )
    assert error.item() == pytest.approx(0.5)
    assert divergence.item() == pytest.approx(0.5 * 0.5 * 4.0)  # KL(N(2, 1) || N(0, 1)) = 2


def make_batch(size=64, seed=0, terminated=False):
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(size, 3, generator=generator)
    action = (observation[:, :2] * 2).tanh()
    flags = torch.full((size,), terminated), torch.zeros(size, dtype=torch.bool)
    return Batch(observation, observation, action, torch.ones(size), torch.ones(size), *flags, observation)


def test_the_vae_learns_the_actions_of_the_data():
    torch.manual_seed(0)
    vae = ActionVAE(observation_dim=3, action_dim=2, hidden_dim=64)
    learner = Learner(vae, 1e-3, Compute())
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        noise = torch.randn(64, 4, generator=generator)
        loss, _ = batch_vae_loss(learner.module, make_batch(seed=step), noise, 0.5)
        learner.step(loss)
    held_out = make_batch(seed=999)
    drawn = vae.decode(held_out.observation, torch.randn(64, 4, generator=generator).clamp(-0.5, 0.5))
    assert (drawn - held_out.action).abs().mean() < 0.1


@pytest.mark.parametrize("benchmark_targets", [False, True])
@pytest.mark.parametrize("critic_pairs", [1, 2])
def test_what_ends_cuts_the_value_and_a_time_limit_does_so_in_the_benchmark_only(
    benchmark_targets, critic_pairs
):
    config = LagrangianConfig(
        hidden_dims=[8],
        critic_pairs=critic_pairs,
        gamma=0.5,
        reward_scale=1.0,
        benchmark_targets=benchmark_targets,
    )
    sizes = PolicySizes(3, 2, 100, 10.0)
    torch.manual_seed(0)
    reward, cost = make_critics(config, sizes), make_critics(config, sizes)
    critics = ConstrainedCritics(config, sizes, Compute(), reward=reward, cost=cost)
    terminated, truncated = torch.tensor([[0, 1, 0], [0, 0, 1]]).bool()
    batch = dataclasses.replace(make_batch(size=3), terminated=terminated, truncated=truncated)
    with torch.no_grad():
        reward, cost = critics.values(batch.observation, batch.action)
    _, metrics = critics.loss(batch, torch.tensor([8.0, 16.0, 32.0]), torch.tensor([8.0, 16.0, 32.0]))
    # By hand: 1 + value / 2. The rows go on, end, and are cut by the time limit.
    reward_target = torch.tensor([5.0, 1.0, 1.0 if benchmark_targets else 17.0])
    cost_target = torch.tensor([5.0, 9.0 if benchmark_targets else 1.0, 17.0])
    for name, values, target in (("reward", reward, reward_target), ("cost", cost, cost_target)):
        expected = sum((twin - target).square().mean() for pair in values for twin in pair)
        assert metrics[f"critic/{name}_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def make_trained_and_target_critics(benchmark_targets):
    """Two pairs each of reward and cost; trained ones, and their targets, are others."""
    config = LagrangianConfig(hidden_dims=[4], critic_pairs=2, benchmark_targets=benchmark_targets)
    sizes = PolicySizes(3, 2, 100, 10.0)
    torch.manual_seed(0)
    trained = make_critics(config, sizes), make_critics(config, sizes)
    target = copy.deepcopy(trained)
    critics = ConstrainedCritics(config, sizes, Compute(), reward=trained[0], cost=trained[1])
    with torch.no_grad():
        for parameter in critics.learner.master.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    return critics, trained, target


def pairs_of_twins(critics, observation, action):
    """One critic at a time, (P, 2, B)."""
    return torch.stack([critic(observation, action).values for critic in critics])


@torch.no_grad()
@pytest.mark.parametrize("benchmark_targets", [False, True])
def test_the_policy_climbs_the_worst_of_all_trained_critics_but_the_benchmarks_lowest_cost(benchmark_targets):
    critics, trained, _ = make_trained_and_target_critics(benchmark_targets)
    observation, action = 3 * torch.randn(200, 3), torch.randn(200, 2).tanh()
    reward, cost = (pairs_of_twins(c, observation, action).flatten(0, 1) for c in trained)
    reward_value, cost_value = critics.policy_values(observation, action)
    worst = {False: cost.argmax(dim=0), True: cost.argmin(dim=0)}[benchmark_targets]
    torch.testing.assert_close(reward_value, reward.sort(dim=0).values[0])
    torch.testing.assert_close(cost_value, cost[worst, torch.arange(200)])
    for index in (reward.argmin(dim=0), worst):
        assert len(set(index.tolist())) >= 3, "both pairs and both twins are the worst somewhere"


@torch.no_grad()
@pytest.mark.parametrize("benchmark_targets", [False, True])
def test_candidates_are_valued_by_the_targets_in_passes_that_change_nothing(benchmark_targets):
    critics, _, target = make_trained_and_target_critics(benchmark_targets)
    size, number = 150, 7
    assert size * number > 2 * _ROWS_PER_PASS
    observation, candidates = torch.randn(size, 3), torch.randn(size, number, 2).tanh()
    found = critics.candidate_values(observation, candidates)
    for values, parts, low in zip(found, target, (True, benchmark_targets), strict=True):
        assert values.shape == (size, number)
        for index in range(number):
            pairs = pairs_of_twins(parts, observation, candidates[:, index])
            first, second = pairs.min(dim=0).values if low else pairs.max(dim=0).values
            lower, higher = torch.minimum(first, second), torch.maximum(first, second)
            worse, better = (lower, higher) if low else (higher, lower)
            torch.testing.assert_close(values[:, index], 0.75 * worse + 0.25 * better)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (BCQLagConfig, {"gamma": 1.0}, "gamma must be a number in"),
        (BCQLagConfig, {"selection": "best"}, "selection must be one of"),
        (BCQLagConfig, {"num_candidates": 0}, "num_candidates must be a whole number of at least 1"),
        (BEARLagConfig, {"kernel": "cosine"}, "kernel must be one of"),
        (BEARLagConfig, {"mmd_threshold": 0.0}, "mmd_threshold must be a positive number"),
        (BEARLagConfig, {"hidden_dims": []}, "hidden_dims must be"),
    ],
)
def test_config_refuses_what_cannot_be(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
