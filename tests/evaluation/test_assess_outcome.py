"""How a policy is played along recorded episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from assess_factory import STEPS, make_data, make_policy

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.evaluation import assess_outcome
from spi_diffusers.evaluation.assess import assess
from spi_diffusers.evaluation.assess_outcome import play_on_record


def two_episodes() -> TransitionDataset:
    """Of 4 and of 10 steps; observations are the rows' numbers."""
    rows = np.arange(14)
    columns = {name: np.zeros(14) for name in ("reward", "cost")}
    ends = {"terminated": rows == 3, "truncated": rows == 13}
    state = {"observation": rows[:, None] + 0.0, "next_observation": rows[:, None] + 1.0}
    return TransitionDataset.from_columns({**state, "action": np.zeros((14, 1)), **columns, **ends})


def test_an_episode_that_has_ended_is_not_asked_about_any_more(monkeypatch):
    asked = []
    ask = assess_outcome._ask

    def ask_and_tell(pipeline, observation, *rest):
        asked.append(observation[:, 0].tolist())
        return ask(pipeline, observation, *rest)

    monkeypatch.setattr(assess_outcome, "_ask", ask_and_tell)
    play = play_on_record(make_policy(), two_episodes(), 10.0, 0.05, seed=0)
    assert asked == [[step, step + 4] if step < 4 else [step + 4] for step in range(10)]
    # w = 0.5 earns 0.5 and costs 0.85 a step.
    np.testing.assert_allclose(play.along, [[2.0, 5.0], [3.4, 8.5]], atol=1e-5)


def test_few_decisions_stand_for_many_steps(monkeypatch):
    """Where no weight but the safest fits, it makes no difference how often it is asked."""
    whole = play_on_record(make_policy(), make_data(), 1.0, 0.05, seed=0)
    monkeypatch.setattr(assess_outcome, "DECISIONS", 3)  # at steps 0, 3 and 7
    few = play_on_record(make_policy(), make_data(), 1.0, 0.05, seed=0)
    for play in (whole, few):
        for found in (play.played, play.along):
            np.testing.assert_allclose(found, [[0.0] * 20, [3.5] * 20], atol=1e-5)


@pytest.mark.parametrize("length", [1, 3])
def test_a_critic_that_is_right_is_believed_where_episodes_end_by_themselves(length):
    """All comes in the first step, and the episode ends after `length`: h Q_h = 1 at every h."""
    policy = make_policy()
    with torch.no_grad():  # rates of 1 / h: the last input is the inverse of h
        policy.evaluation_critic.net[0].weight.zero_()
        policy.evaluation_critic.net[0].bias.zero_()
        policy.evaluation_critic.net[0].weight[:, 5] = 1.0
    first = np.arange(20 * length) % length == 0
    data = make_data(length=length, ends=True)
    data.transitions.reward.copy_(torch.from_numpy(first * 1.0))
    data.transitions.cost.copy_(torch.from_numpy(first * 1.0))
    (row,) = assess(policy, data, cost_limits=[STEPS]).limits
    assert row.expected_return.mean == pytest.approx(1.0, abs=1e-5)
    assert row.expected_cost.mean == pytest.approx(1.0, abs=1e-5)


def test_of_two_estimates_of_the_cost_the_higher_counts():
    play = play_on_record(make_policy(), make_data(), 10.0, 0.05, seed=0)
    nothing = np.zeros((2, 20))
    for change, expected in ((3.0, 11.5), (-3.0, 8.5)):
        changed = replace(play, along=play.along + change)
        return_, (cost,) = assess_outcome.estimates(changed, nothing, seed=0)
        assert (round(return_.mean, 4), round(cost.mean, 4)) == (5.0, expected)
