"""Offline calibration: least-squares policy evaluation, and the curve that is made of it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.models import CostCalibration, MLPNoiseModel, ObservationNormalizer, TwinCritic
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.training import calibration as calibration_module
from spi_diffusers.training.calibration import (
    DEFAULT_KNOTS,
    MAX_CORRECTION,
    calibrate,
    data_knots,
    solve_lstd,
)

HORIZON = 100


# ---- LSTD


def one_hot(states):
    """Tabular features: an indicator of every state but the last, and the constant."""
    features = torch.nn.functional.one_hot(torch.as_tensor(states), 3).double()
    features[:, -1] = 1.0
    return features


#: Transition counts of a Markov chain in quarters: as data, every transition occurs that often.
CHAIN = np.array([[1, 2, 1], [0, 1, 3], [2, 2, 0]])
COST = np.array([0.0, 0.5, 1.0])


def chain_data():
    state, following = np.nonzero(CHAIN)
    repeat = CHAIN[state, following]
    return np.repeat(state, repeat), np.repeat(following, repeat)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 0.995])
def test_lstd_is_exact_on_a_tabular_chain(gamma):
    state, following = chain_data()
    exact = np.linalg.solve(np.eye(3) - gamma * CHAIN / 4, COST)
    theta = solve_lstd(one_hot(state), one_hot(following), torch.tensor(COST[state]), gamma, ridge=0.0)
    np.testing.assert_allclose((one_hot([0, 1, 2]) @ theta).numpy(), exact, rtol=1e-9, atol=1e-12)


def test_lstd_by_hand():
    """State 0 goes to 1 at cost 1; state 1 stays at cost 2: V(1) = 2 / (1 - 0.5) = 4, V(0) = 1 + 0.5 * 4."""
    features = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    following = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    theta = solve_lstd(features, following, torch.tensor([1.0, 2.0]), 0.5, ridge=0.0)
    assert (features @ theta).tolist() == pytest.approx([3.0, 4.0])


def test_lstd_sees_no_value_after_an_end():
    """Every move out of state 2 ends the episode: its value is its own cost."""
    state, following = chain_data()
    ends = state == 2
    transition = CHAIN / 4
    transition[2] = 0.0
    exact = np.linalg.solve(np.eye(3) - 0.9 * transition, COST)
    next_features = one_hot(following) * torch.tensor(~ends).double().unsqueeze(1)
    theta = solve_lstd(one_hot(state), next_features, torch.tensor(COST[state]), 0.9, ridge=0.0)
    values = (one_hot([0, 1, 2]) @ theta).numpy()
    np.testing.assert_allclose(values, exact, rtol=1e-9, atol=1e-12)
    assert values[2] == pytest.approx(1.0)


def test_the_ridge_spares_the_constant():
    """With a huge ridge nothing but the mean cost is left: mean(0, .5, 1 over 4 each) / (1 - gamma)."""
    state, following = chain_data()
    features, next_features = one_hot(state), one_hot(following)
    theta = solve_lstd(features, next_features, torch.tensor(COST[state]), 0.9, ridge=1e9)
    np.testing.assert_allclose(theta[:-1].numpy(), 0, atol=1e-6)
    assert theta[-1].item() == pytest.approx(0.5 / (1 - 0.9), rel=1e-6)


@given(st.floats(0.01, 5), st.integers(0, 1000), st.floats(0.5, 0.999))
def test_a_steady_cost_is_found_whatever_the_features(cost, seed, gamma):
    """A constant solves the equations exactly, and the ridge does not touch it."""
    generator = torch.Generator().manual_seed(seed)
    features, next_features = torch.randn(2, 50, 6, generator=generator, dtype=torch.float64).unbind(0)
    features[:, -1] = next_features[:, -1] = 1.0
    theta = solve_lstd(features, next_features, torch.full((50,), cost), gamma)
    torch.testing.assert_close(
        features @ theta, torch.full((50,), cost / (1 - gamma)).double(), rtol=1e-5, atol=0
    )


# ---- calibrate


def make_pipeline(conditioned=True, bias=0.0, **options):
    """Critics by hand: Q^r = x and a predicted cost per step of (1 + x) / 2 + bias, x the first action."""
    torch.manual_seed(0)
    shared = {"observation_dim": 3, "action_dim": 2, "use_safety_weight": conditioned}
    reward_critic = TwinCritic(**shared, hidden_dims=[])
    safety_critic = TwinCritic(**shared, hidden_dims=[], num_heads=2)
    with torch.no_grad():
        for critic in (reward_critic, safety_critic):
            for parameter in critic.parameters():
                parameter.zero_()
        reward_critic.net[0].weight[:, 3, 0] = 1.0
        safety_critic.net[0].weight[:, 3, 1] = 5.0
        safety_critic.net[0].bias[:, 0, 1] = 5.0 + 10.0 * bias
    normalizer = ObservationNormalizer(observation_dim=3)
    normalizer.set_statistics(torch.zeros(3), torch.ones(3))
    return SPIPolicyPipeline(
        noise_model=MLPNoiseModel(**shared, hidden_dims=[16]),
        reward_critic=reward_critic,
        safety_critic=safety_critic,
        scheduler=make_scheduler(SPIConfig()),
        normalizer=normalizer,
        **({"gamma": 0.9, "max_episode_steps": HORIZON} | options),
    )


def make_dataset(cost_of=None, episodes=20, length=HORIZON, terminated=False, seed=0):
    """States and actions at random; the cost of a step is a function of the action's first number."""
    rng = np.random.default_rng(seed)
    walks = [rng.normal(size=(length + 1, 3)).astype(np.float32) for _ in range(episodes)]
    rows = episodes * length
    action = rng.uniform(-1, 1, size=(rows, 2)).astype(np.float32)
    ends = (np.arange(rows) + 1) % length == 0
    cost = (1 + action[:, 0]) / 2 if cost_of is None else cost_of(action[:, 0])
    return TransitionDataset.from_columns(
        {
            "observation": np.concatenate([walk[:-1] for walk in walks]),
            "next_observation": np.concatenate([walk[1:] for walk in walks]),
            "action": action,
            "reward": np.zeros(rows, np.float32),
            "cost": cost.astype(np.float32),
            "terminated": ends if terminated else np.zeros(rows, bool),
            "truncated": np.zeros(rows, bool) if terminated else ends,
        }
    )


def run(pipeline, dataset, transitions=2000, **options):
    with pytest.MonkeyPatch.context() as smaller:
        smaller.setattr(calibration_module, "NUM_TRANSITIONS", transitions)
        smaller.setattr(calibration_module, "NUM_STARTS", 20)
        return calibrate(pipeline, dataset, progress=False, **options)


def true_cost(pipeline, knot):
    """What the policy held to a knot costs in 100 steps: states are independent, so the mean tells."""
    pipeline.register_modules(calibration=None)
    states = torch.randn(500, 3, generator=torch.Generator().manual_seed(7))
    actions = pipeline(states, cost_limit=knot, generator=torch.Generator().manual_seed(8)).actions
    return float(HORIZON * (1 + actions[:, 0]).mean() / 2)


def test_estimates_are_the_true_costs_of_the_policy():
    pipeline = make_pipeline()
    knots = (20.0, 40.0, 60.0)
    _, report = run(pipeline, make_dataset(), knots=knots)
    assert report.allowed_costs == list(knots)
    expected = [true_cost(pipeline, knot) for knot in knots]
    assert expected[0] < expected[1] < expected[2]
    assert report.estimated_costs == pytest.approx(expected, rel=0.1, abs=3)


def test_a_critic_that_expects_too_little_is_seen_through_and_held_to_less():
    """The critic predicts 0.1 per step too little: held to 30 it spends what the right one spends at 40."""
    knots = (15.0, 30.0, 60.0)
    biased = make_pipeline(bias=-0.1)
    calibration, report = run(biased, make_dataset(), knots=knots)
    assert report.estimated_costs == pytest.approx([true_cost(biased, k) for k in knots], rel=0.1, abs=3)
    assert all(e > k + 5 for e, k in zip(report.estimated_costs[:2], knots[:2], strict=True))
    wanted = torch.tensor([30.0 / HORIZON])
    assert calibration(wanted).item() < wanted.item() - 0.05


def test_a_critic_that_expects_too_much_is_seen_through_but_not_held_to_more_than_wanted():
    """The critic predicts 0.1 per step too much: held to 30 it spends what the right one spends at 20."""
    knots = (15.0, 30.0, 60.0)
    biased = make_pipeline(bias=0.1)
    calibration, report = run(biased, make_dataset(), knots=knots)
    assert report.estimated_costs == pytest.approx([true_cost(biased, k) for k in knots], rel=0.1, abs=3)
    assert all(e < k - 5 for e, k in zip(report.estimated_costs[1:], knots[1:], strict=True))
    wanted = torch.linspace(0.0, 0.6, 20)
    torch.testing.assert_close(calibration(wanted), wanted, atol=1e-4, rtol=0)


def test_a_steady_cost_is_estimated_exactly_and_corrections_are_bounded():
    """0.1 per step over 100 steps is 10, whatever the policy does."""
    calibration, report = run(make_pipeline(), make_dataset(lambda x: np.full_like(x, 0.1)))
    assert report.estimated_costs == pytest.approx([10.0] * 6, rel=1e-4)
    # From 1 to 4 times 2.5, 5, 10, 20, 40, 80; then never falling; then strictly rising by 0.001.
    realised = [10.001, 10.002, 10.003, 20.004, 40.005, 80.006]
    assert MAX_CORRECTION == 4.0
    assert (calibration.realised_rates * HORIZON).tolist() == pytest.approx(realised, rel=1e-4)
    assert (calibration.allowed_rates * HORIZON).tolist() == pytest.approx(DEFAULT_KNOTS)
    calibration.check()


def test_estimates_that_fall_still_give_a_usable_curve():
    """A critic that is wrong about the sign: the more it allows, the less it costs."""
    knots = (20.0, 40.0, 60.0)
    calibration, report = run(make_pipeline(), make_dataset(lambda x: (1 - x) / 2), knots=knots)
    first, second, third = report.estimated_costs
    assert first > second + 5 > third + 10
    first = min(first, MAX_CORRECTION * knots[0])
    expected = [first + 0.001, max(first, 40.0) + 0.002, max(first, 60.0) + 0.003]
    assert (calibration.realised_rates * HORIZON).tolist() == pytest.approx(expected, rel=1e-5)


def test_an_episode_that_ends_costs_nothing_more():
    """0.1 per step until an end that comes with probability 1 / 10: 0.1 / (1 - 0.99 * 0.9)."""
    dataset = make_dataset(lambda x: np.full_like(x, 0.1), episodes=200, length=10, terminated=True)
    _, report = run(make_pipeline(), dataset)
    # States tell nothing about when the end comes, so the mean over them is what can be known.
    assert report.estimated_costs == pytest.approx([0.1 / (1 - 0.99 * 0.9)] * 6, rel=0.15)


@pytest.mark.parametrize("conditioned", [True, False])
def test_the_curve_is_monotone_and_usable(conditioned):
    pipeline = make_pipeline(conditioned)
    calibration, _ = run(pipeline, make_dataset(episodes=5), transitions=300)
    assert (calibration.allowed_rates.diff() > 0).all()
    assert (calibration.realised_rates.diff() > 0).all()
    rates = calibration(torch.linspace(0, 2, 200))
    assert (rates.diff() >= 0).all()
    # A pipeline takes it.
    pipeline.register_modules(calibration=calibration)
    pipeline(torch.zeros(2, 3), cost_limit=10)


def test_the_seed_decides_everything_and_torchs_own_random_state_nothing():
    dataset, pipeline = make_dataset(episodes=5), make_pipeline()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = run(pipeline, dataset, seed=3, transitions=200)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = run(pipeline, dataset, seed=3, transitions=200)
    assert again[1] == first[1]
    assert torch.equal(again[0].realised_rates, first[0].realised_rates)
    assert run(pipeline, dataset, seed=4, transitions=200)[1] != first[1]


def test_the_pipelines_own_calibration_is_ignored():
    dataset = make_dataset(episodes=5)
    own = CostCalibration(num_knots=1).set_curve(torch.tensor([0.5]), torch.tensor([0.01]))
    plain, calibrated = (run(make_pipeline(calibration=c), dataset)[1] for c in (None, own))
    assert plain == calibrated


def test_an_action_range_of_the_environment_changes_nothing():
    """Actions in [0, 10] and in [-1, 1] are the same policy."""
    dataset = make_dataset(episodes=5)
    columns = {name: getattr(dataset.transitions, name).numpy() for name in vars(dataset.transitions)}
    scaled = TransitionDataset.from_columns(columns | {"action": 5 * (columns["action"] + 1)})
    wide = make_pipeline()
    wide.noise_model.register_to_config(action_low=0.0, action_high=10.0)
    expected, actual = (run(p, d)[1].estimated_costs for p, d in ((make_pipeline(), dataset), (wide, scaled)))
    assert actual == pytest.approx(expected, rel=1e-3)


def test_a_pipeline_without_an_episode_length_is_refused():
    with pytest.raises(ValueError, match="max_episode_steps"):
        run(make_pipeline(max_episode_steps=None), make_dataset(episodes=1))


@pytest.mark.parametrize("knots", [(10.0, 5.0), (0.0, 5.0), (-1.0, 5.0), (5.0, 5.0)])
def test_knots_that_do_not_rise_are_refused(knots):
    with pytest.raises(ValueError, match=r"knots|allowed_rates"):
        run(make_pipeline(), make_dataset(episodes=1), transitions=20, knots=knots)


def test_knots_of_data_without_a_task_are_quantiles_of_what_its_episodes_cost():
    costs = torch.cat([torch.zeros(50), torch.arange(0, 2001, 100.0)])
    assert data_knots(costs) == pytest.approx((195.0, 290.0, 575.0, 1050.0, 1525.0, 2000.0))
    assert data_knots(torch.tensor([0.0, 0.5, 0.5])) == (0.5,)
    assert data_knots(torch.zeros(3)) == ()
