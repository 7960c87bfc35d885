"""COptiDICE: its losses by hand, and that it finds the best policy within a limit where that is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_state_task import one_state_batch
from random_inputs import SIZES, assert_same_loss, random_inputs
from scipy.optimize import linprog, minimize

from spi_diffusers.algorithms import coptidice
from spi_diffusers.algorithms.base import Batch, PolicySizes
from spi_diffusers.algorithms.coptidice import COptiDICE
from spi_diffusers.algorithms.networks import Compute
from spi_diffusers.config.algorithm_settings import COptiDICEConfig

SMALL = {"hidden_dims": [32, 32], "reward_scale": 1.0, "learning_rate": 3e-3, "actor_learning_rate": 3e-3}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_divergence_its_optimum_and_its_conjugate_by_hand():
    assert coptidice.divergence(tensor(0.0, 1.0, 3.0)).tolist() == [1.0, 0.0, 2.0]
    assert coptidice.divergence(tensor(0.5)).item() == pytest.approx(0.5 * math.log(0.5) + 0.5)
    assert coptidice.optimal_ratio(tensor(-1.0, 0.0, 2.0)).tolist() == [math.exp(-1), 1.0, 3.0]
    assert coptidice.conjugate(tensor(-1.0, 0.0, 2.0)).tolist() == [math.exp(-1) - 1.0, 0.0, 4.0]


@settings(deadline=None, max_examples=50)
@given(st.floats(-8.0, 8.0))
def test_the_ratio_inverts_the_derivative_and_the_conjugate_is_the_maximum(score):
    y, h = tensor(score), 1e-5
    w = coptidice.optimal_ratio(y)
    slope = (coptidice.divergence(w * (1 + h)) - coptidice.divergence(w * (1 - h))) / (2 * h * w)
    assert slope.item() == pytest.approx(score, abs=1e-4)
    assert coptidice.conjugate(y).item() == pytest.approx((w * y - coptidice.divergence(w)).item(), abs=1e-9)
    rise = (coptidice.conjugate(y + h) - coptidice.conjugate(y - h)) / (2 * h)
    assert rise.item() == pytest.approx(w.item(), rel=1e-4)


def test_nothing_overflows():
    score = torch.tensor([-1e4, -1e30, 1e4], requires_grad=True)
    (coptidice.conjugate(score).sum() + coptidice.optimal_ratio(score).sum()).backward()
    assert score.grad is not None
    assert score.grad.isfinite().all()
    mean, log_std = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    density = coptidice.squashed_log_density(mean, log_std, torch.tensor([[1.0, -1.0], [0.0, 1.0]]), 1e-3)
    density.sum().backward()
    for value in (density, mean.grad, log_std.grad):
        assert value.isfinite().all()
    terms = torch.tensor([1.0, 1e4, -1e4])
    weights, kl = coptidice.worst_weights(terms, coptidice.MIN_TEMPERATURE)
    assert weights.tolist() == [0.0, 3.0, 0.0]
    assert kl.item() == pytest.approx(math.log(3.0))
    assert coptidice.bound_loss(terms, coptidice.MIN_TEMPERATURE).item() == pytest.approx(1e4)
    assert coptidice.imitation_loss(torch.tensor([1.0, 2.0]), torch.zeros(2)).item() == 0.0


def test_losses_by_hand():
    initial, residual = tensor(1.0, 3.0), tensor(1.0, -0.5)
    # Scores 2 and -1, ratios 3 and 1/e.
    ratio = tensor(3.0, math.exp(-1))
    loss = coptidice.nu_loss(initial, residual, 0.5, 0.9)
    assert loss.item() == pytest.approx(0.1 * 2.0 + 0.5 * (4.0 + math.exp(-1) - 1.0) / 2)
    direct = (ratio * residual - 0.5 * coptidice.divergence(ratio)).mean()
    assert loss.item() == pytest.approx(0.1 * 2.0 + direct.item())
    terms = coptidice.bound_terms(initial, tensor(2.0, 0.5), tensor(0.3, -1.0), 0.9)
    assert terms.tolist() == pytest.approx([0.1 + 0.6, 0.3 - 0.5])
    terms = tensor(2.0 * math.log(3.0), 0.0)
    assert coptidice.bound_loss(terms, 2.0).item() == pytest.approx(2.0 * math.log(2.0))
    weights, kl = coptidice.worst_weights(terms, 2.0)
    assert weights.tolist() == pytest.approx([1.5, 0.5])
    assert kl.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    density = tensor(-1.0, -3.0)
    assert coptidice.imitation_loss(density, tensor(3.0, 1.0)).item() == pytest.approx((3.0 + 3.0) / 4)


def test_multipliers_rise_while_their_constraint_is_broken():
    both = [torch.tensor(1.0, requires_grad=True) for _ in range(2)]
    coptidice.multiplier_loss(*both, tensor(0.5), tensor(0.01), 0.2, 0.03).sum().backward()
    assert [value.grad.item() for value in both] == pytest.approx([-0.3, 0.02])


def test_log_density_is_that_of_a_squashed_gaussian():
    generator = torch.Generator().manual_seed(0)
    mean, log_std = torch.randn(5, 2, generator=generator), 0.3 * torch.randn(5, 2, generator=generator)
    action = torch.randn(5, 2, generator=generator).tanh().clamp(-0.98, 0.98)
    squashed = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, log_std.exp()), torch.distributions.TanhTransform()
    )
    density = coptidice.squashed_log_density(mean, log_std, action, 0.01)
    assert density.tolist() == pytest.approx(squashed.log_prob(action).sum(dim=-1).tolist(), rel=1e-4)
    # Noise on the value, in closed form: the mean over the noise's two points of deviation 1.
    moved = [coptidice.gaussian_log_density(mean, log_std, action + sign * 0.3) for sign in (-1, 1)]
    noisy = coptidice.gaussian_log_density(mean, log_std, action, 0.3)
    assert noisy.tolist() == pytest.approx(((moved[0] + moved[1]) / 2).tolist(), rel=1e-4)


def test_the_bound_is_the_cost_under_the_costliest_distribution_near_the_data():
    """One state: the dual over (chi, tau), and the primal over all q with KL(q, data) <= epsilon."""
    ratio, cost, epsilon = np.array([1.4, 0.9, 0.9, 0.8]), np.array([1.0, 0.0, 1.0, 0.0]), 0.02

    def dual(point):
        chi, tau = point[0], math.exp(point[1])
        terms = coptidice.bound_terms(tensor(chi), tensor(*ratio), tensor(*cost) - chi, 0.0)
        return coptidice.bound_loss(terms, tau).item() + tau * epsilon

    primal = minimize(
        lambda q: -(q * ratio * cost).sum(),
        np.full(4, 0.25),
        bounds=[(1e-9, 1.0)] * 4,
        constraints=[
            {"type": "eq", "fun": lambda q: q.sum() - 1.0},
            {"type": "eq", "fun": lambda q: (q * ratio).sum() - 1.0},  # w is a policy's under q too
            {"type": "ineq", "fun": lambda q: epsilon - (q * np.log(4.0 * q)).sum()},
        ],
    )
    found = minimize(dual, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
    assert found.fun == pytest.approx(-primal.fun, abs=1e-4)
    assert found.fun > (ratio * cost).mean() + 0.03
    terms = coptidice.bound_terms(tensor(found.x[0]), tensor(*ratio), tensor(*cost) - found.x[0], 0.0)
    weights, kl = coptidice.worst_weights(terms, math.exp(found.x[1]))
    assert (weights * tensor(*ratio) * tensor(*cost)).mean().item() == pytest.approx(found.fun, abs=1e-3)
    assert kl.item() == pytest.approx(epsilon, abs=1e-4)


def make(cost_limit=0.3, steps=1, dtype=torch.float32, **overrides):
    torch.manual_seed(0)
    return COptiDICE(
        COptiDICEConfig(**SMALL | overrides), PolicySizes(2, 1, steps, cost_limit), Compute(dtype)
    )


def test_gradients_reach_only_what_they_should():
    batch = one_state_batch(0)
    plain, other_actor, other_chi = make(gamma=0.5), make(gamma=0.5), make(gamma=0.5)
    with torch.no_grad():
        for parameter in other_actor.actor.parameters():
            parameter.mul_(2.0)
        for parameter in other_chi.modules()["values"].parameters():
            parameter[1].mul_(2.0)  # nu is the first network of the stack, chi the second
    for algorithm in (plain, other_actor, other_chi):
        algorithm.learn(batch, {})
    for name, value in plain.modules()["values"].state_dict().items():
        assert torch.equal(value, other_actor.modules()["values"].state_dict()[name])
        assert torch.equal(value[0], other_chi.modules()["values"].state_dict()[name][0])
        assert not torch.equal(value[1], other_chi.modules()["values"].state_dict()[name][1])
    for name, value in plain.actor.state_dict().items():
        assert torch.equal(value, other_chi.actor.state_dict()[name])


def test_thresholds_are_costs_per_step_and_the_benchmarks_is_a_discounted_sum():
    assert make(10.0, 200, gamma=0.99).threshold == pytest.approx(0.05)
    assert make(10.0, 200, gamma=0.99, benchmark_targets=True).threshold == pytest.approx(
        0.05 * (1 - 0.99**200) / 0.01
    )


def test_an_end_cuts_what_follows_and_a_time_limit_does_not():
    end = one_state_batch(0)
    limit = Batch(**{**vars(end), "terminated": end.truncated, "truncated": end.terminated})
    losses = [make(gamma=0.9).learn(batch, {})["critic/nu_loss"].item() for batch in (end, limit)]
    assert losses[0] != losses[1]
    cut = [
        make(gamma=0.9, benchmark_targets=True).learn(b, {})["critic/nu_loss"].item() for b in (end, limit)
    ]
    assert cut == [losses[0], losses[0]]


@pytest.mark.parametrize("benchmark_targets", [False, True])
def test_the_policy_imitates_each_action_by_its_weight(monkeypatch, benchmark_targets):
    """The benchmark's policy is to reach a recorded action before the tanh, ours after it."""
    options = {"action_margin": 0.1, "action_noise": 0.2, "num_networks": 2, "reward_scale": 2.0}
    config = COptiDICEConfig(
        hidden_dims=[4], gamma=0.5, alpha=0.8, **options, benchmark_targets=benchmark_targets
    )
    torch.manual_seed(0)
    algorithm = COptiDICE(config, SIZES, Compute())
    batch, _ = random_inputs(algorithm)
    algorithm.multipliers.cost.data.fill_(0.6)
    weights = algorithm.modules()["values"].state_dict()

    def nu_of(states):
        """The lower one of the first two networks; the other two are chi's."""
        hidden = [
            (states @ weights["net.0.weight"][i] + weights["net.0.bias"][i]).clamp_min(0.0) for i in range(2)
        ]
        both = [
            h @ weights["head.weight"][i, :, 0] + weights["head.bias"][i, 0, 0] for i, h in enumerate(hidden)
        ]
        return torch.minimum(*both)

    with torch.no_grad():
        nu, next_nu = nu_of(batch.observation), nu_of(batch.next_observation)
        goes_on = ~(batch.terminated | batch.truncated) if benchmark_targets else ~batch.terminated
        score = (2.0 * batch.reward - 0.6 * batch.cost + 0.5 * goes_on * next_nu - nu) / 0.8
        weight = torch.tensor([math.exp(y) if y < 0 else y + 1 for y in score.tolist()])
    losses = []
    monkeypatch.setattr(algorithm._actor, "step", losses.append)
    metrics = algorithm.learn(batch, {})

    mean, log_std = algorithm.actor(batch.observation)
    gaussian = torch.distributions.Normal(mean, log_std.exp())
    if benchmark_targets:
        density = gaussian.log_prob(batch.action)
    else:
        assert (batch.action.abs() > 0.9).any()
        squash = torch.distributions.TanhTransform()
        squashed = torch.distributions.TransformedDistribution(gaussian, squash)
        density = squashed.log_prob(batch.action.clamp(-0.9, 0.9))
    density = density - 0.5 * (0.2 / log_std.exp()).square()  # the mean over the noise
    expected = -(weight * density.sum(dim=1)).sum() / weight.sum()
    assert_same_loss(losses[0], expected, algorithm.actor)
    assert metrics["policy/imitation_loss"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("cost_limit", "epsilon", "lowest", "highest"),
    # Half of the data's actions are costly. Batches of 128 are the reason for tolerances of 0.02. Where the
    # bound is compared with the limit, the cost itself is lower.
    [(0.3, 0.0, 0.28, 0.32), (0.3, 0.01, 0.2, 0.28), (1.2, 0.01, 0.98, 1.02)],
)
def test_the_cost_is_at_the_limit_or_where_the_reward_wants_it(cost_limit, epsilon, lowest, highest):
    algorithm = make(cost_limit, gamma=0.0, alpha=0.1, multiplier_learning_rate=0.03, cost_ub_epsilon=epsilon)
    history = [algorithm.learn(one_state_batch(step), {}) for step in range(350)][-100:]
    mean = {name: sum(float(m[name]) for m in history) / 100 for name in history[0]}
    assert lowest < mean["policy/weighted_cost"] < highest
    assert mean["policy/cost_bound"] == pytest.approx(min(cost_limit, 1.0), abs=0.02)
    assert mean["critic/ratio"] == pytest.approx(1.0, abs=0.02)
    assert (mean["policy/multiplier"] > 0.5) == (cost_limit < 1)
    # The policy is one Gaussian where the data has two humps, so that its own cost is a little off.
    noise = torch.randn(1, 4000, 1, generator=torch.Generator().manual_seed(0))
    drawn = algorithm.actor.draw_raw(torch.zeros(1, 2), noise) > 0
    assert drawn.float().mean().item() == pytest.approx(mean["policy/weighted_cost"], abs=0.1)


GAMMA, LIMIT, ALPHA = 0.8, 0.2, 0.02
#: From state 0, 1 and 2: (next state, reward, cost) of two actions; None ends the episode.
MDP = (
    ((1, 0.1, 0.0), (2, 0.3, 0.0)),
    ((0, 0.4, 0.0), (2, 0.2, 1.0)),
    ((2, 1.0, 1.0), (None, 0.2, 0.0)),
)


def tabular_batch():
    rows = [(state, choice, *MDP[state][choice]) for state in range(3) for choice in (0, 1)]
    state, choice, following, reward, cost = zip(*rows, strict=True)
    one_hot = torch.eye(3)
    return Batch(
        one_hot[list(state)],
        one_hot[[0 if s is None else s for s in following]],
        torch.tensor(choice).unsqueeze(1) - 0.5,
        torch.tensor(reward),
        torch.tensor(cost),
        torch.tensor([s is None for s in following]),
        torch.zeros(6, dtype=torch.bool),
        one_hot[[0] * 6],
    )


def flow(gamma):
    """Matrix A and vector b with A d = b for the distributions d(s, a) of policies that start in state 0."""
    matrix = np.zeros((3, 6))
    for state in range(3):
        for choice in (0, 1):
            matrix[state, 2 * state + choice] += 1.0
            if MDP[state][choice][0] is not None:
                matrix[MDP[state][choice][0], 2 * state + choice] -= gamma
    return matrix, np.array([1.0 - gamma, 0.0, 0.0])


def train_on_the_small_task(dtype=torch.float32, updates=400, **overrides):
    options = {"learning_rate": 0.01, "multiplier_learning_rate": 0.01, "gamma": GAMMA, "alpha": ALPHA}
    torch.manual_seed(0)
    sizes = PolicySizes(3, 1, 10, 10 * LIMIT)
    algorithm = COptiDICE(COptiDICEConfig(**SMALL | options | overrides), sizes, Compute(dtype))
    groups = [group for optimizer in algorithm.optimizers().values() for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    for step in range(updates):
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * (1.0 - step / updates)
        metrics = algorithm.learn(tabular_batch(), {})
    return algorithm, {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_finds_the_best_policy_within_the_limit_of_a_small_task(dtype):
    batch, (matrix, start) = tabular_batch(), flow(GAMMA)
    reward, cost = batch.reward.double().numpy(), batch.cost.double().numpy()
    best = linprog(-reward, A_ub=cost[None], b_ub=[LIMIT], A_eq=matrix, b_eq=start)
    algorithm, metrics = train_on_the_small_task(dtype, cost_ub_epsilon=0.0)
    with torch.no_grad():
        values = algorithm.modules()["values"]
        value, following = values(batch.observation)[0], values(batch.next_observation)[0]
        signal = batch.reward - metrics["policy/multiplier"] * batch.cost
        residual = signal + GAMMA * following.masked_fill(batch.terminated, 0.0) - value
        found = (coptidice.optimal_ratio(residual / ALPHA) / 6).double().numpy()
    # Rewards are at most 1 a step. bfloat16 rounds nu, about 1, by up to 0.004, a fifth of alpha.
    tolerance = 0.005 if dtype == torch.float32 else 0.02
    assert found @ cost == pytest.approx(LIMIT, abs=tolerance)
    assert found @ reward == pytest.approx(-best.fun, abs=tolerance)
    assert found == pytest.approx(best.x, abs=2 * tolerance)
    assert np.abs(matrix @ found - start).max() < tolerance  # it is a policy's distribution
    assert metrics["policy/multiplier"] == pytest.approx(-best.ineqlin.marginals[0], abs=0.1)
    # Cost and reward of the policy that the weights stand for, computed exactly.
    policy = found.reshape(3, 2) / found.reshape(3, 2).sum(axis=1, keepdims=True)
    one_policy = np.concatenate([matrix, np.zeros((3, 6))])
    for state in range(3):  # d(s, 0) pi(1|s) = d(s, 1) pi(0|s)
        one_policy[3 + state, 2 * state : 2 * state + 2] = policy[state, 1], -policy[state, 0]
    exact = np.linalg.solve(one_policy, np.concatenate([start, np.zeros(3)]))
    assert exact @ cost == pytest.approx(LIMIT, abs=tolerance)
    assert exact @ reward == pytest.approx(-best.fun, abs=tolerance)


def test_the_bound_makes_a_small_task_safer_than_the_limit():
    _, metrics = train_on_the_small_task(cost_ub_epsilon=0.02)
    assert metrics["policy/cost_bound"] == pytest.approx(LIMIT, abs=0.01)
    assert metrics["policy/bound_kl"] == pytest.approx(0.02, abs=0.006)
    assert metrics["policy/weighted_cost"] < LIMIT - 0.01


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"alpha": 0.0}, "alpha must be a positive number"),
        ({"cost_ub_epsilon": -0.1}, "cost_ub_epsilon must be a number of at least 0"),
        ({"gamma": 1.0}, "gamma must be a number in"),
        ({"action_margin": 0.0}, "action_margin must be a number in"),
        ({"num_networks": 0}, "num_networks must be a whole number of at least 1"),
        ({"hidden_dims": []}, "hidden_dims must be"),
    ],
)
def test_settings_that_cannot_be_used_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        COptiDICEConfig(**overrides)
