"""Which candidate the pipeline takes: extraction, limits and budgets."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipeline_factory import pipeline_by_hand, seeded

from spi_diffusers.models import CostCalibration
from spi_diffusers.pipelines.extraction import PACE_HEADROOM, extract_reward, extract_safe, group_means
from spi_diffusers.pipelines.spi_policy import SPIPolicyOutput


@pytest.fixture(scope="module")
def by_hand():
    return pipeline_by_hand()


def x_of(output: SPIPolicyOutput) -> torch.Tensor:
    """The number that the hand-made critics look at, (B, N)."""
    return output.candidates[..., 0]


# ---- extraction, as pure functions


def test_extract_reward_by_hand():
    assert extract_reward(torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]])).tolist() == [1, 0]


def test_extract_safe_by_hand():
    reward = torch.tensor([[1.0, 3.0, 2.0]] * 3)
    safety = torch.tensor([[0.7, 0.1, 0.9]] * 3)
    feasible = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    # The best allowed; the safest where nothing is allowed; the best.
    assert extract_safe(reward, safety, feasible).tolist() == [2, 2, 1]


def test_extract_safe_by_groups_by_hand():
    # Means 2, 1.5 and 3 of three groups: one lucky candidate (9) does not make its group the best.
    reward = torch.tensor([[2.0, 2.0, -6.0, 9.0, 4.0, 2.0]] * 3)
    safety = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4, 0.9]] * 3)
    feasible = torch.tensor([[True] * 6, [True, True, True, True, False, False], [False] * 6])
    assert extract_safe(reward, safety, feasible, num_groups=3).tolist() == [4, 0, 5]
    torch.testing.assert_close(group_means(reward[:1], 3), torch.tensor([[2.0, 2.0, 1.5, 1.5, 3.0, 3.0]]))
    assert torch.equal(group_means(reward, None), reward)


rows = st.lists(st.tuples(st.floats(-10, 10), st.booleans(), st.floats(-10, 10)), min_size=1, max_size=12)


@given(rows)
def test_extract_safe_never_leaves_the_feasible_set_and_takes_the_best_of_it(candidates):
    reward, feasible, safety = (torch.tensor([column]) for column in zip(*candidates, strict=True))
    chosen = int(extract_safe(reward, safety, feasible))
    if any(feasible[0]):
        assert feasible[0, chosen]
        assert reward[0, chosen] == reward[0][feasible[0]].max()
    else:
        assert safety[0, chosen] == safety.max()


# ---- which candidate


def test_reward_extraction_takes_the_best_reward(by_hand):
    output = by_hand(torch.zeros(5, 3), generator=seeded())
    assert torch.equal(output.chosen, x_of(output).argmax(1))
    assert output.feasible.all(), "where no limit applies, everything is feasible"


@pytest.mark.parametrize(("limit", "border"), [(50.0, 0.0), (20.0, -0.6), (80.0, 0.6)])
def test_safe_extraction_takes_the_best_within_the_rate(by_hand, limit, border):
    """Rate limit / 100 steps against (1 + x) / 2: feasible up to x = limit / 50 - 1."""
    output = by_hand(torch.zeros(20, 3), cost_limit=limit, generator=seeded())
    x = x_of(output)
    torch.testing.assert_close(output.reward_values, x)
    torch.testing.assert_close(output.cost_rates, (1 + x) / 2)
    assert torch.equal(output.feasible, x <= border + 1e-6)
    some = output.feasible.any(1)
    assert some.any()
    best = torch.where(x <= border + 1e-6, x, -9.0).argmax(1)
    assert torch.equal(output.chosen[some], best[some])
    assert (x[some].gather(1, output.chosen[some, None]) <= border + 1e-6).all()


def test_where_nothing_is_feasible_the_cheapest_is_taken(by_hand):
    output = by_hand(torch.zeros(5, 3), cost_limit=0.0, num_candidates=6, generator=seeded())
    nothing = ~output.feasible.any(1)
    assert nothing.any()
    assert torch.equal(output.chosen[nothing], x_of(output).argmin(1)[nothing])


@given(st.floats(0, 100), st.floats(0, 100))
def test_a_larger_limit_never_rules_out_what_a_smaller_one_allowed(first, second):
    small, large = sorted([first, second])
    pipe = pipeline_by_hand()
    observation = torch.zeros(2, 3)
    tight, loose = (pipe(observation, cost_limit=limit, generator=seeded()) for limit in (small, large))
    assert torch.equal(tight.candidates, loose.candidates)
    assert (loose.feasible | ~tight.feasible).all()


def test_a_limit_per_observation(by_hand):
    output = by_hand(torch.zeros(3, 3), cost_limit=[0.0, 50.0, 100.0], generator=seeded())
    x = x_of(output)
    assert not output.feasible[0][x[0] > -1].any()
    assert torch.equal(output.feasible[1], x[1] <= 1e-6)
    assert output.feasible[2].all()


def test_lower_twins_judge_and_the_mean_predicts_cost():
    """The second twin lies 2 above the first: minimum 0 and mean 1 above it; a rate of 0.1 more."""
    plain, gap = (
        pipeline_by_hand(twin_gap=twin_gap)(torch.zeros(3), cost_limit=50, generator=seeded())
        for twin_gap in (0.0, 2.0)
    )
    torch.testing.assert_close(gap.reward_values, plain.reward_values)
    torch.testing.assert_close(gap.safety_values, plain.safety_values)
    torch.testing.assert_close(gap.cost_rates, plain.cost_rates + 0.1)


def test_without_a_cost_head_cost_is_what_safety_leaves():
    """Q^c = 1 / (1 - gamma) - Q^c' = 10 - (10 - Q^c)."""
    two, one = (
        pipeline_by_hand(heads=heads)(torch.zeros(4, 3), cost_limit=50, generator=seeded())
        for heads in (2, 1)
    )
    torch.testing.assert_close(one.cost_rates, two.cost_rates)
    assert torch.equal(one.chosen, two.chosen)


# ---- budgets


def test_a_budget_is_spread_over_the_steps_left(by_hand):
    """Left / steps = 20 / 40 = 0.5, whatever the episode's length: feasible up to x = 0."""
    output = by_hand(torch.zeros(20, 3), cost_budget=20.0, steps_left=40, generator=seeded())
    assert torch.equal(output.feasible, x_of(output) <= 1e-6)


def test_limit_and_budget_agree_at_the_first_step(by_hand):
    observation = torch.zeros(20, 3)
    limit = by_hand(observation, cost_limit=30.0, generator=seeded())
    budget = by_hand(observation, cost_budget=30.0, steps_left=100, generator=seeded())
    assert torch.equal(limit.feasible, budget.feasible)
    assert torch.equal(limit.chosen, budget.chosen)


@pytest.mark.parametrize("budget", [0.0, -5.0])
def test_an_empty_budget_allows_nothing_that_costs(by_hand, budget):
    output = by_hand(torch.zeros(5, 3), cost_budget=budget, steps_left=10, generator=seeded())
    assert torch.equal(output.feasible, x_of(output) <= -1)
    nothing = ~output.feasible.any(1)
    assert torch.equal(output.chosen[nothing], x_of(output).argmin(1)[nothing])


def test_the_reserve_is_kept_back():
    pipe = pipeline_by_hand(budget_reserve=8.0)
    output = pipe(torch.zeros(20, 3), cost_budget=28.0, steps_left=40, generator=seeded())
    assert torch.equal(output.feasible, x_of(output) <= 1e-6), "(28 - 8) / 40 = 0.5"
    output = pipe(torch.zeros(20, 3), cost_limit=50.0, generator=seeded())
    assert torch.equal(output.feasible, x_of(output) <= 1e-6), "a limit that is not fed back has none"


def test_the_reserve_shrinks_with_the_steps_left():
    """Of 100 steps 25 are left, so half of the reserve: (16.5 - 8 / 2) / 25 = 0.5."""
    pipe = pipeline_by_hand(budget_reserve=8.0, reserve_decay=0.5)
    output = pipe(torch.zeros(20, 3), cost_budget=16.5, steps_left=25, generator=seeded())
    assert torch.equal(output.feasible, x_of(output) <= 1e-6)
    longer = pipe(torch.zeros(20, 3), cost_budget=208.0, steps_left=400, generator=seeded())
    assert torch.equal(longer.feasible, x_of(longer) <= 1e-6), "never more than all of it: (208 - 8) / 400"


def test_a_known_limit_bounds_the_pace(by_hand):
    """What was saved is not thrown away: at most 1.5 times the even rate of 0.2."""
    assert PACE_HEADROOM == 1.5
    observation = torch.zeros(20, 3)
    free = by_hand(observation, cost_budget=20.0, steps_left=20, generator=seeded())
    assert free.feasible.all()
    paced = by_hand(observation, cost_budget=20.0, steps_left=20, cost_limit=20.0, generator=seeded())
    assert torch.equal(paced.feasible, x_of(paced) <= -0.4 + 1e-6), "(1 + x) / 2 <= 0.3"


def test_a_budget_must_pay_for_the_safest_way_on():
    """Of a rate that allows everything, what cannot be recovered from is ruled out: Q^c(w = 1) <= 6.

    Candidates of lower weight predict more cost, but it is the safest way on that counts.
    """
    pipe = pipeline_by_hand(weight_share=4.0)
    output = pipe(torch.zeros(20, 3), cost_budget=6.0, steps_left=1, generator=seeded())
    x = x_of(output)
    assert (output.cost_rates > 0.6).any()
    assert torch.equal(output.feasible, x <= 0.2 + 1e-6), "5 + 5 x <= 6, whatever the weight"
    some = output.feasible.any(1)
    best = torch.where(output.feasible, x, -9.0).argmax(1)
    assert torch.equal(output.chosen[some], best[some])


def test_where_no_budget_is_left_the_highest_safety_value_is_taken():
    """Not the lowest predicted cost: where a fall ends the episode, falling would cost least."""
    pipe = pipeline_by_hand(weight_share=4.0)
    output = pipe(torch.zeros(8, 3), cost_budget=0.0, steps_left=10, num_candidates=6, generator=seeded())
    nothing = ~output.feasible.any(1)
    assert nothing.any()
    assert torch.equal(output.chosen[nothing], output.safety_values.argmax(1)[nothing])


def test_selection_by_weight_compares_the_weights_policies():
    """The mean over a weight's candidates decides, and its first one plays: feasible up to a mean x of 0."""
    pipe = pipeline_by_hand(selection="weight")
    output = pipe(torch.zeros(4, 3), cost_limit=50.0, generator=seeded())
    means = x_of(output).unflatten(1, (6, 8)).mean(2)
    feasible = means <= 1e-6
    assert torch.equal(output.feasible, feasible.repeat_interleave(8, dim=1))
    some = feasible.any(1)
    assert some.any()
    best = torch.where(feasible, means, -9.0).argmax(1) * 8
    assert torch.equal(output.chosen[some], best[some])
    alone = pipe(torch.zeros(4, 3), cost_limit=50.0, safety_weight=0.5, generator=seeded())
    assert torch.equal(alone.feasible, x_of(alone) <= 1e-6), "one weight: candidates are compared"


def test_budgets_and_steps_per_observation(by_hand):
    output = by_hand(
        torch.zeros(2, 3),
        cost_budget=torch.tensor([20.0, 20.0]),
        steps_left=np.array([100, 40]),
        generator=seeded(),
    )
    x = x_of(output)
    assert torch.equal(output.feasible[0], x[0] <= -0.6 + 1e-6)
    assert torch.equal(output.feasible[1], x[1] <= 1e-6)


def test_calibration_replaces_the_wanted_rate_by_the_one_to_hold_the_critic_to():
    calibration = CostCalibration(num_knots=1).set_curve(torch.tensor([0.5]), torch.tensor([0.75]))
    pipe = pipeline_by_hand(calibration=calibration)
    observation = torch.zeros(20, 3)
    # Holding the critic to 0.5 costs 0.75: for a wanted 0.75 it is held to 0.5.
    output = pipe(observation, generator=seeded(), cost_limit=75.0)
    assert torch.equal(output.feasible, x_of(output) <= 1e-6)
    # Where the running cost is fed back, the feedback corrects the critic, and the wanted rate is the rate;
    # also where the pace binds (1.5 times 30 / 100 per step, not 75 / 100).
    for more in ({}, {"cost_limit": 30.0}):
        budget = {"cost_budget": 75.0, "steps_left": 100, **more}
        output = pipe(observation, generator=seeded(), **budget)
        plain = pipeline_by_hand()(observation, generator=seeded(), **budget)
        assert torch.equal(output.feasible, plain.feasible)


def test_extraction_is_safe_if_and_only_if_a_limit_is_given(by_hand):
    observation = torch.zeros(5, 3)
    assert by_hand(observation, generator=seeded()).feasible.all()
    for options in ({"cost_limit": 5.0}, {"cost_budget": 5.0, "steps_left": 100}):
        assert not by_hand(observation, generator=seeded(), **options).feasible.all()
        chosen = by_hand(observation, generator=seeded(), extraction="reward", **options)
        assert torch.equal(chosen.chosen, x_of(chosen).argmax(1))


@pytest.mark.parametrize("heads", [1, 2])
def test_values_and_limits_are_in_the_units_of_the_data(by_hand, heads):
    policy = pipeline_by_hand(reward_unit=7.0, cost_unit=0.01, heads=heads)
    for limits in ({"cost_limit": 50.0}, {"cost_budget": 20.0, "steps_left": 40}):
        expected = by_hand(torch.zeros(5, 3), **limits, generator=seeded())
        scaled = {name: value if name == "steps_left" else value * 0.01 for name, value in limits.items()}
        output = policy(torch.zeros(5, 3), **scaled, generator=seeded())
        torch.testing.assert_close(output.reward_values, expected.reward_values * 7.0)
        torch.testing.assert_close(output.cost_rates, expected.cost_rates * 0.01)
        assert torch.equal(output.safety_values, expected.safety_values)
        assert torch.equal(output.feasible, expected.feasible)
        assert torch.equal(output.chosen, expected.chosen)
