"""Which candidate the pipeline takes: extraction, limits, budgets and risk."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipeline_factory import make_pipeline, pipeline_by_hand, seeded

from spi_diffusers.pipelines.extraction import SAFETY_WEIGHT_GRID, extract_reward, extract_safe, policy_action

#: At this risk, of which a decision has half, the cost c counts as c + sqrt(c + 1).
RISK = 0.5


@pytest.fixture(scope="module")
def by_hand():
    return pipeline_by_hand()


def weight_of(output):
    """The safety weight of the chosen candidates, (B,)."""
    return output.safety_weights.gather(1, output.chosen.unsqueeze(1)).squeeze(1).numpy()


# ---- pure functions


def test_extract_reward_by_hand():
    assert extract_reward(torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("budget", "chosen", "feasible"),
    [
        (9.0, 1, [True, True, True]),  # the best of all
        (8.0, 2, [False, False, True]),  # the first fits, but a safer one does not
        (4.0, 2, [False, False, True]),
        (3.0, 2, [False, False, False]),  # the safest where nothing fits
        (0.0, 2, [False, False, False]),
        (-1.0, 2, [False, False, False]),
    ],
)
def test_extract_safe_by_hand(budget, chosen, feasible):
    returns, costs = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[7.0, 9.0, 4.0]])
    found, fits = extract_safe(returns, costs.unsqueeze(-1), torch.tensor([[budget]]))
    assert (found.tolist(), fits.tolist()) == ([chosen], [feasible])


def test_the_safest_acts_where_it_does_not_fit_whatever_the_others_are_predicted_to_cost():
    chosen, feasible = extract_safe(
        torch.tensor([[9.0, 8.0, 1.0]]), torch.tensor([[[0.0], [1.0], [5.0]]]), torch.tensor([[4.0]])
    )
    assert chosen.tolist() == [2]
    assert not feasible.any()


def test_nothing_fits_into_a_spent_budget_not_even_what_costs_nothing():
    chosen, feasible = extract_safe(torch.tensor([[2.0, 1.0]]), torch.zeros(1, 2, 1), torch.zeros(1, 1))
    assert chosen.tolist() == [1]
    assert not feasible.any()


@pytest.mark.parametrize(
    ("budget", "chosen", "feasible"),
    [
        ([9.0, 90.0], 0, [True, True]),
        ([9.0, 60.0], 1, [False, True]),  # the second cost of the bolder one does not fit
        ([5.0, 90.0], 1, [False, True]),
        ([9.0, 0.0], 1, [False, False]),  # one of the budgets is spent
    ],
)
def test_all_of_several_costs_must_fit(budget, chosen, feasible):
    costs = torch.tensor([[[7.0, 80.0], [4.0, 50.0]]])
    found, fits = extract_safe(torch.tensor([[2.0, 1.0]]), costs, torch.tensor([budget]))
    assert (found.tolist(), fits.tolist()) == ([chosen], [feasible])


rows = st.lists(st.tuples(st.floats(-10, 10), st.floats(0, 10)), min_size=1, max_size=12)


@given(rows, st.floats(-5, 10, width=32))
def test_extract_safe_takes_the_best_of_those_that_fit_with_all_safer_ones(policies, budget):
    returns, costs = (torch.tensor([column]) for column in zip(*policies, strict=True))
    chosen, feasible = extract_safe(returns, costs.unsqueeze(-1), torch.tensor([[budget]]))
    known = costs[0].tolist()
    fits = [budget > 0 and all(cost <= budget for cost in known[k:]) for k in range(len(known))]
    assert feasible[0].tolist() == fits
    if any(fits):
        assert fits[chosen]
        assert returns[0, chosen] == returns[0][feasible[0]].max()
    else:
        assert chosen == len(known) - 1


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


@pytest.mark.parametrize(("limit", "weight"), [(150, 0.0), (110, 0.4), (75, 0.7), (41.1, 1.0)])
def test_a_limit_alone_takes_the_best_policy_that_keeps_it_over_an_episode(by_hand, limit, weight):
    """100 steps at 1.35 - w: a limit of 75 leaves 65 + sqrt(66) = 73.1, of w = 0.7, but not 83.7."""
    output = by_hand(torch.zeros(3, 3), cost_limit=limit, risk=RISK)
    assert weight_of(output) == pytest.approx([weight] * 3)
    w = output.safety_weights
    torch.testing.assert_close(w, torch.tensor([SAFETY_WEIGHT_GRID] * 3))
    costs = 100 * (1.35 - w)
    torch.testing.assert_close(output.expected_costs, costs)
    torch.testing.assert_close(output.cost_bounds, costs + (costs + 1).sqrt(), rtol=1e-5, atol=0)
    torch.testing.assert_close(output.expected_returns, 100 * (1.0 - w))
    assert torch.equal(output.feasible, output.cost_bounds <= limit)


def test_less_risk_allows_less(by_hand):
    """95.2 fits at (nearly) even odds, 85 + sqrt(86) = 94.3 at a quarter, 75 + 1.97 sqrt(76) at 0.005."""
    chosen = [
        weight_of(by_hand(torch.zeros(1, 3), cost_limit=95.3, risk=risk))[0] for risk in (0.99, RISK, 0.01)
    ]
    assert chosen == pytest.approx([0.4, 0.5, 0.6])


def test_where_nothing_fits_the_safest_policy_acts(by_hand):
    for told in ({"cost_limit": 20}, *({"cost_budget": left, "steps_left": 5} for left in (0.0, -3.0))):
        output = by_hand(torch.zeros(2, 3), risk=RISK, **told)
        assert weight_of(output).tolist() == [1.0, 1.0]
        assert not output.feasible.any()


def test_a_policy_fits_only_if_all_safer_ones_fit():
    """Where w = 0.8 has cost much more than expected, a limit for all others leaves the two above it."""
    pipe = pipeline_by_hand()
    pipe.evaluation_critic.residuals[8] += 100.0
    output = pipe(torch.zeros(1, 3), cost_limit=200, risk=RISK)
    assert (output.cost_bounds <= 200).tolist() == [[True] * 8 + [False, True, True]]
    assert output.feasible.tolist() == [[False] * 9 + [True] * 2]
    assert weight_of(output) == pytest.approx([0.9])
    pipe.evaluation_critic.residuals[10] += 100.0
    output = pipe(torch.zeros(1, 3), cost_limit=200, risk=RISK)
    assert not output.feasible.any()
    assert weight_of(output) == pytest.approx([1.0])


def test_what_must_fit_is_multiplied_by_the_policys_margin(by_hand):
    """Twice 65 + sqrt(66) = 73.1, of w = 0.7, fits into 150; a half of 135 + sqrt(136), of w = 0, into 75."""
    output = pipeline_by_hand(cost_margin=2.0)(torch.zeros(1, 3), cost_limit=150, risk=RISK)
    assert weight_of(output) == pytest.approx([0.7])
    usual = by_hand(torch.zeros(1, 3), cost_limit=150, risk=RISK)
    assert torch.equal(output.cost_bounds, 2 * usual.cost_bounds)
    assert torch.equal(output.expected_costs, usual.expected_costs)
    bold = pipeline_by_hand(cost_margin=0.5)(torch.zeros(1, 3), cost_budget=75, steps_left=100, risk=RISK)
    assert weight_of(bold).tolist() == [0.0]


def test_a_budget_counts_over_the_steps_left(by_hand):
    """25 steps cost 13.75 + sqrt(14.75) = 17.6 at w = 0.8, but 20.4 at 0.7, whatever the episode's length."""
    output = by_hand(torch.zeros(2, 3), cost_budget=18, steps_left=25, risk=RISK)
    assert weight_of(output) == pytest.approx([0.8] * 2)
    longer = by_hand(torch.zeros(2, 3), cost_budget=250, steps_left=400, risk=RISK)
    assert weight_of(longer) == pytest.approx([0.8] * 2), "more steps than an episode has"
    torch.testing.assert_close(longer.expected_costs, 400 * (1.35 - longer.safety_weights))


def test_limit_and_budget_agree_at_the_first_step(by_hand):
    limit = by_hand(torch.zeros(4, 3), cost_limit=77.0)
    budget = by_hand(torch.zeros(4, 3), cost_budget=77.0, steps_left=100)
    assert torch.equal(limit.actions, budget.actions)
    assert torch.equal(limit.cost_bounds, budget.cost_bounds)


def test_limits_budgets_and_steps_per_observation(by_hand):
    limits = by_hand(torch.zeros(3, 3), cost_limit=[0.0, 75.0, 200.0], risk=RISK)
    assert weight_of(limits) == pytest.approx([1.0, 0.7, 0.0])
    output = by_hand(
        torch.zeros(2, 3), cost_budget=torch.tensor([30.0, 30.0]), steps_left=np.array([50, 25]), risk=RISK
    )
    # 22.5 + sqrt(23.5) = 27.3 over 50 steps, 23.75 + sqrt(24.75) = 28.7 over 25.
    assert weight_of(output) == pytest.approx([0.9, 0.4])


def test_each_policy_acts_by_its_action_without_noise(by_hand):
    """What is valued, and what acts, is the same action that the critic was learned with."""
    output = by_hand(torch.randn(4, 3), cost_limit=75, risk=RISK)
    assert torch.equal(output.actions, output.candidates[torch.arange(4), output.chosen])
    pipe, observation = make_pipeline(), torch.randn(4, 3)
    output = pipe(observation, cost_limit=75)
    for index, weight in enumerate(SAFETY_WEIGHT_GRID):
        expected = policy_action(pipe, observation, torch.full((4,), weight))
        torch.testing.assert_close(output.candidates[:, index], expected.detach())


def test_safe_extraction_needs_no_generator_and_draws_from_none():
    pipe, observation, generator = make_pipeline(), torch.randn(4, 3), seeded()
    state = torch.get_rng_state(), generator.get_state()
    expected = pipe(observation, cost_limit=75)
    for source in (None, generator, 1, 2):
        output = pipe(observation, cost_limit=75, generator=source)
        assert all(torch.equal(value, output[name]) for name, value in expected.items())
    assert torch.equal(torch.get_rng_state(), state[0])
    assert torch.equal(generator.get_state(), state[1])


def test_a_reward_of_the_action_counts():
    """With 3 x on the reward, the weight whose action earns most of all."""
    output = pipeline_by_hand(x=3.0)(torch.randn(6, 3), cost_limit=200)
    returns = 100 * (1.0 - output.safety_weights + 3.0 * output.candidates[..., 0]).clamp(-10, 10)
    torch.testing.assert_close(output.expected_returns, returns)
    assert torch.equal(output.chosen, returns.argmax(1))


def test_a_given_safety_weight_is_the_only_policy(by_hand):
    for limit, fits in ((75, False), (116, True)):
        output = by_hand(torch.zeros(2, 3), cost_limit=limit, safety_weight=0.3, risk=RISK)
        assert torch.equal(output.safety_weights, torch.full((2, 1), 0.3))
        assert output.chosen.tolist() == [0, 0]
        assert output.feasible.tolist() == [[fits]] * 2
        torch.testing.assert_close(output.expected_costs, torch.full((2, 1), 105.0))


@given(st.floats(0, 200), st.floats(0, 200))
def test_a_larger_limit_never_rules_out_what_a_smaller_one_allowed(first, second):
    small, large = sorted([first, second])
    pipe = pipeline_by_hand()
    tight, loose = (pipe(torch.zeros(2, 3), cost_limit=limit) for limit in (small, large))
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
