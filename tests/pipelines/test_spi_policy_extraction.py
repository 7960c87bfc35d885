"""Which candidate the pipeline takes: extraction, limits, budgets and risk."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipeline_factory import pipeline_by_hand, seeded

from spi_diffusers.pipelines.extraction import extract_reward, extract_safe, quantile_at

#: At this risk the last of four quantiles counts, a cost rate of 1.5 - w.
LAST = 0.125
SIZE = 4  # candidates of each of the 11 weights, of 50


@pytest.fixture(scope="module")
def by_hand():
    return pipeline_by_hand()


def weight_of(output):
    """The safety weight of the chosen candidates, (B,)."""
    return output.safety_weights.gather(1, output.chosen.unsqueeze(1)).squeeze(1).numpy()


# ---- pure functions


def test_extract_reward_by_hand():
    assert extract_reward(torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]])).tolist() == [1, 0]


def test_extract_safe_by_hand():
    returns, costs = torch.tensor([[1.0, 3.0, 2.0]] * 4), torch.tensor([[5.0, 9.0, 4.0]] * 4)
    chosen, feasible = extract_safe(returns, costs, torch.tensor([5.0, 3.0, 9.0, -1.0]))
    # The best that fits; the cheapest where nothing does; the best of all; the cheapest.
    assert chosen.tolist() == [2, 2, 1, 2]
    assert feasible.tolist() == [[True, False, True], [False] * 3, [True] * 3, [False] * 3]


def test_nothing_fits_into_a_spent_budget_not_even_what_costs_nothing():
    chosen, feasible = extract_safe(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.2, 0.0]]), torch.zeros(1))
    assert chosen.tolist() == [1]
    assert not feasible.any()


rows = st.lists(st.tuples(st.floats(-10, 10), st.floats(0, 10)), min_size=1, max_size=12)


@given(rows, st.floats(-5, 10, width=32))
def test_extract_safe_never_leaves_the_feasible_set_and_takes_the_best_of_it(policies, budget):
    returns, costs = (torch.tensor([column]) for column in zip(*policies, strict=True))
    chosen, feasible = extract_safe(returns, costs, torch.tensor([budget]))
    if feasible.any():
        assert costs[0, chosen] <= budget
        assert returns[0, chosen] == returns[0][feasible[0]].max()
    else:
        assert costs[0, chosen] == costs.min()


def test_quantile_at_by_hand():
    """Four quantiles, at the levels 1/8, 3/8, 5/8 and 7/8, in any order."""
    quantiles = torch.tensor([[4.0, 1.0, 2.0, 8.0]])
    levels = {0.01: 1.0, 0.125: 1.0, 0.25: 1.5, 0.5: 3.0, 0.75: 6.0, 0.875: 8.0, 0.99: 8.0}
    assert {level: float(quantile_at(quantiles, level)) for level in levels} == pytest.approx(levels)
    assert float(quantile_at(torch.tensor([7.0]), 0.3)) == 7.0


levels = st.floats(0.01, 0.99)


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=40), levels, levels)
def test_a_higher_level_is_never_a_smaller_quantile(values, first, second):
    low, high = (float(quantile_at(torch.tensor(values), level)) for level in sorted((first, second)))
    assert min(values) - 1e-4 <= low <= high + 1e-4 <= max(values) + 2e-4


# ---- which candidate


def test_reward_extraction_takes_the_best_reward(by_hand):
    output = by_hand(torch.zeros(5, 3), generator=seeded())
    x = output.candidates[..., 0]
    torch.testing.assert_close(output.reward_values, x)
    torch.testing.assert_close(output.safety_values, -x)
    assert torch.equal(output.chosen, x.argmax(1))
    assert output.expected_costs is output.feasible is None


def test_the_lower_twin_values():
    pipe = pipeline_by_hand(twin_gap=-2.0)
    output = pipe(torch.zeros(3), generator=seeded())
    torch.testing.assert_close(output.reward_values, output.candidates[..., 0] - 2.0)


@pytest.mark.parametrize(("limit", "weight"), [(150, 0.0), (110, 0.4), (75, 0.8), (50, 1.0)])
def test_a_limit_alone_takes_the_best_policy_that_keeps_it_over_an_episode(by_hand, limit, weight):
    """100 steps at 1.5 - w: a limit of 75 leaves w >= 0.75."""
    output = by_hand(torch.zeros(3, 3), cost_limit=limit, risk=LAST, generator=seeded())
    assert weight_of(output) == pytest.approx([weight] * 3)
    assert (output.chosen % SIZE == 0).all(), "the first candidate of its weight"
    w = output.safety_weights
    torch.testing.assert_close(output.cost_bounds, 100 * (1.5 - w))
    torch.testing.assert_close(output.expected_costs, 100 * (1.35 - w))
    torch.testing.assert_close(output.expected_returns, 100 * (1.0 - w))
    assert torch.equal(output.feasible, output.cost_bounds <= limit)


def test_less_risk_allows_less(by_hand):
    """Over 100 steps, limit 95: the quantiles at 0.5 and at 0.875 are 1.35 - w and 1.5 - w."""
    chosen = [
        weight_of(by_hand(torch.zeros(1, 3), cost_limit=95, risk=risk, generator=seeded()))[0]
        for risk in (0.5, LAST, 0.01)
    ]
    assert chosen == pytest.approx([0.4, 0.6, 0.6])


def test_where_nothing_fits_the_least_costly_policy_acts(by_hand):
    for told in ({"cost_limit": 20}, *({"cost_budget": left, "steps_left": 5} for left in (0.0, -3.0))):
        output = by_hand(torch.zeros(2, 3), risk=LAST, generator=seeded(), **told)
        assert weight_of(output).tolist() == [1.0, 1.0]
        assert not output.feasible.any()


def test_a_budget_counts_over_the_steps_left(by_hand):
    """20 over 25 steps is a rate of 0.8, whatever the episode's length."""
    output = by_hand(torch.zeros(2, 3), cost_budget=20.1, steps_left=25, risk=LAST, generator=seeded())
    assert weight_of(output) == pytest.approx([0.7] * 2)
    longer = by_hand(torch.zeros(2, 3), cost_budget=320.1, steps_left=400, risk=LAST, generator=seeded())
    assert weight_of(longer) == pytest.approx([0.7] * 2), "more steps than an episode has"


def test_limit_and_budget_agree_at_the_first_step(by_hand):
    limit = by_hand(torch.zeros(4, 3), cost_limit=77.0, generator=seeded())
    budget = by_hand(torch.zeros(4, 3), cost_budget=77.0, steps_left=100, generator=seeded())
    assert torch.equal(limit.actions, budget.actions)
    assert torch.equal(limit.cost_bounds, budget.cost_bounds)


def test_limits_budgets_and_steps_per_observation(by_hand):
    limits = by_hand(torch.zeros(3, 3), cost_limit=[0.0, 75.0, 200.0], risk=LAST, generator=seeded())
    assert weight_of(limits) == pytest.approx([1.0, 0.8, 0.0])
    output = by_hand(
        torch.zeros(2, 3),
        cost_budget=torch.tensor([30.1, 30.1]),
        steps_left=np.array([50, 25]),
        risk=LAST,
        generator=seeded(),
    )
    assert weight_of(output) == pytest.approx([0.9, 0.3])


def test_a_policy_is_valued_by_all_of_its_candidates():
    """With 3 x on the reward, a weight's mean decides, not its luckiest candidate."""
    output = pipeline_by_hand(x=3.0)(torch.zeros(6, 3), cost_limit=200, generator=seeded())
    means = (1.0 - output.safety_weights + 3.0 * output.candidates[..., 0]).unflatten(1, (11, SIZE)).mean(2)
    assert torch.equal(output.chosen, means.argmax(1) * SIZE)
    assert not torch.equal(output.chosen, output.expected_returns.argmax(1))


def test_a_given_safety_weight_is_the_only_policy(by_hand):
    output = by_hand(torch.zeros(2, 3), cost_limit=75, safety_weight=0.3, risk=LAST, generator=seeded())
    assert torch.equal(output.safety_weights, torch.full((2, 50), 0.3))
    assert output.chosen.tolist() == [0, 0]
    assert not output.feasible.any()


@given(st.floats(0, 200), st.floats(0, 200))
def test_a_larger_limit_never_rules_out_what_a_smaller_one_allowed(first, second):
    small, large = sorted([first, second])
    pipe = pipeline_by_hand()
    tight, loose = (pipe(torch.zeros(2, 3), cost_limit=limit, generator=seeded()) for limit in (small, large))
    assert torch.equal(tight.candidates, loose.candidates)
    assert (loose.feasible | ~tight.feasible).all()


def test_extraction_is_safe_if_and_only_if_a_limit_is_given(by_hand):
    observation = torch.zeros(5, 3)
    assert by_hand(observation, generator=seeded()).feasible is None
    for options in ({"cost_limit": 5.0}, {"cost_budget": 5.0, "steps_left": 100}):
        assert by_hand(observation, generator=seeded(), **options).feasible is not None
        chosen = by_hand(observation, generator=seeded(), extraction="reward", **options)
        assert torch.equal(chosen.chosen, chosen.candidates[..., 0].argmax(1))


def test_the_reward_critics_values_are_in_the_units_of_the_data(by_hand):
    expected = by_hand(torch.zeros(5, 3), generator=seeded())
    output = pipeline_by_hand(reward_unit=7.0)(torch.zeros(5, 3), generator=seeded())
    torch.testing.assert_close(output.reward_values, expected.reward_values * 7.0)
    assert torch.equal(output.safety_values, expected.safety_values)
    assert torch.equal(output.chosen, expected.chosen)
