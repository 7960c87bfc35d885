"""Bounds against formulas and by how often they fail in simulation; what Learn-then-Test guarantees."""

import numpy as np
import pytest
from scipy.stats import beta, binom

from spi_diffusers.evaluation.bounds import fewest_episodes, least_careful, mean_bound, share_bound
from spi_diffusers.evaluation.certificate import LimitCertificate

REPETITIONS = 200


@pytest.mark.parametrize(("over", "episodes"), [(0, 60), (1, 60), (7, 100), (99, 100)])
def test_the_bound_on_a_share_is_clopper_pearsons(over, episodes):
    assert share_bound(over, episodes, 0.95) == pytest.approx(beta.ppf(0.95, over + 1, episodes - over))
    if over == 0:
        assert share_bound(over, episodes, 0.95) == pytest.approx(1 - 0.05 ** (1 / episodes))


def test_where_all_are_over_the_bound_is_all():
    assert share_bound(3, 3, 0.95) == 1.0


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5])
def test_the_bound_on_a_share_fails_as_often_as_it_may_by_the_exact_probability(share):
    counts = np.arange(101)
    bounds = np.array([share_bound(int(count), 100, 0.95) for count in counts])
    assert binom.pmf(counts[bounds < share], 100, share).sum() <= 0.05


@pytest.mark.parametrize(("risk", "confidence", "least"), [(0.05, 0.95, 59), (0.2, 0.95, 14), (0.9, 0.5, 1)])
def test_the_fewest_episodes_that_can_show_a_risk(risk, confidence, least):
    assert fewest_episodes(risk, confidence) == least
    assert share_bound(0, least, confidence) <= risk
    assert least == 1 or share_bound(0, least - 1, confidence) > risk


# ---- how often they fail


def rare_disasters(rng, episodes):
    """4% of the episodes cost 200, the others 0 to 20: mean 17.6, and so many over a limit of 20."""
    return np.where(rng.random(episodes) < 0.04, 200.0, rng.uniform(0, 20, episodes)), 0.04, 17.6


def many_small_costs(rng, episodes):
    """Of 200 steps each costs 1 with a probability of 0.075; more than 20 in all: 6.3%."""
    return rng.binomial(200, 0.075, episodes).astype(float), binom.sf(20, 200, 0.075), 15.0


def coin(rng, episodes):
    """All that is possible or nothing, at even odds."""
    return 200.0 * rng.integers(0, 2, episodes), 0.5, 100.0


@pytest.mark.parametrize("episodes", [30, 100])
@pytest.mark.parametrize("policy", [rare_disasters, many_small_costs, coin])
@pytest.mark.parametrize("order", ["as played", "sorted"])
def test_certificates_of_a_policy_whose_failure_rate_is_known(policy, episodes, order):
    rng = np.random.default_rng(0)
    failed = np.zeros(2)
    for _ in range(REPETITIONS):
        costs, share, mean = policy(rng, episodes)
        costs = np.sort(costs) if order == "sorted" else costs
        found = LimitCertificate.from_episodes(20.0, costs, None, highest=200.0, confidence=0.95)
        failed += (found.over_bound < share, found.cost_mean_bound < mean)
    assert (failed <= 0.05 * REPETITIONS).all(), failed


def empirical_bernstein(costs, highest, confidence):
    """Maurer and Pontil (2009), one-sided."""
    log, count = np.log(2 / (1 - confidence)), len(costs)
    spread = np.sqrt(2 * costs.var(ddof=1) * log / count)
    return costs.mean() + spread + 7 * highest * log / (3 * (count - 1))


@pytest.mark.parametrize("policy", [rare_disasters, many_small_costs, coin])
def test_betting_is_tighter_than_the_empirical_bernstein_bound(policy):
    costs, _, mean = policy(np.random.default_rng(1), 100)
    bound = mean_bound(costs, 200.0, 0.95)
    assert mean < bound < empirical_bernstein(costs, 200.0, 0.95)
    assert mean_bound(costs, 200.0, 0.99) > bound
    assert mean_bound(costs / 7, 200 / 7, 0.95) == pytest.approx(bound / 7), "in any unit"


def test_bounds_on_a_mean_at_the_ends():
    assert mean_bound(np.zeros(5), 0.0, 0.95) == 0.0
    assert mean_bound(np.full(50, 200.0), 200.0, 0.95) == 200.0
    assert 0 < mean_bound(np.zeros(1), 200.0, 0.95) <= 200.0
    assert mean_bound(np.full(3, 0.1 + 0.2), 0.3, 0.95) == pytest.approx(0.3), "the last bits of a sum"
    with pytest.raises(ValueError, match="an episode cost 201, more than the largest possible, 200"):
        mean_bound(np.array([1.0, 201.0]), 200.0, 0.95)


def test_without_a_range_the_mean_has_no_bound():
    found = LimitCertificate.from_episodes(10.0, np.array([1.0, 201.0]), None, highest=200.0, confidence=0.9)
    assert (found.cost_mean_bound, found.over, found.cost_mean) == (None, 1, 101.0)


def test_figures_of_episodes_by_hand():
    costs = np.arange(1.0, 11.0)
    found = LimitCertificate.from_episodes(8.0, costs, costs * 2, highest=20.0, confidence=0.95)
    assert (found.episodes, found.over, found.cost_mean, found.reward_mean) == (10, 2, 5.5, 11.0)
    assert (found.cost_p90, found.cost_worst) == (9.0, 10.0)
    assert LimitCertificate.from_episodes(10.0, costs, None, highest=20.0, confidence=0.95).over == 0


# ---- Learn-then-Test


def test_the_last_setting_before_the_first_that_fails():
    tried = []

    def holds(setting):
        tried.append(setting)
        return setting not in (2, 4)

    assert least_careful([5, 3, 2, 1], holds) == 3
    assert tried == [5, 3, 2], "what comes after is not played"
    assert least_careful([4, 3], holds) is None
    assert least_careful([5, 3], holds) == 3


@pytest.mark.parametrize(
    "rates",
    [
        [0.02, 0.04, 0.06, 0.08, 0.1, 0.13, 0.17, 0.25],
        [0.11, 0.02, 0.02],  # already the most careful one fails a little
        [0.05, 0.101, 0.101, 0.101, 0.101, 0.101, 0.101],  # many that are hardly wrong
    ],
)
def test_a_chosen_setting_exceeds_the_risk_as_seldom_as_promised(rates):
    """True shares over two limits, the second a little safer, from the most to the least careful margin."""
    rng, risk, episodes = np.random.default_rng(2), 0.1, 100
    passes = np.array([share_bound(count, episodes, 0.95) <= risk for count in range(episodes + 1)])
    at_limits = np.stack([rates, np.array(rates) * 0.9], axis=1)
    wrong = 0
    for _ in range(5 * REPETITIONS):
        over = rng.binomial(episodes, at_limits)
        chosen = least_careful(range(len(rates)), lambda margin, over=over: passes[over[margin]].all())
        wrong += chosen is not None and max(at_limits[chosen]) > risk
    assert wrong <= 0.05 * 5 * REPETITIONS
