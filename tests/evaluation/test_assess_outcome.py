"""How a policy is played along recorded episodes."""

import numpy as np
import torch
from assess_factory import make_data, make_policy

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.evaluation import assess_outcome
from spi_diffusers.evaluation.assess_outcome import play_on_record


def two_episodes() -> TransitionDataset:
    """Of 4 and of 10 steps; observations are the rows' numbers."""
    rows = np.arange(14)
    columns = {name: np.zeros(14) for name in ("reward", "cost")}
    ends = {"terminated": rows == 3, "truncated": rows == 13}
    state = {"observation": rows[:, None] + 0.0, "next_observation": rows[:, None] + 1.0}
    return TransitionDataset.from_columns({**state, "action": np.zeros((14, 1)), **columns, **ends})


def test_an_episode_that_has_ended_goes_on_in_states_of_others(monkeypatch):
    asked = []
    ask = assess_outcome._ask

    def ask_and_tell(pipeline, observation, *rest):
        asked.append(observation[:, 0].tolist())
        return ask(pipeline, observation, *rest)

    monkeypatch.setattr(assess_outcome, "_ask", ask_and_tell)
    play_on_record(make_policy(), two_episodes(), 10.0, 0.05, seed=0)
    assert asked == [[step if step < 4 else step + 4, step + 4] for step in range(10)]
    asked.clear()
    short = two_episodes().select_episodes(torch.tensor([0]))
    play_on_record(make_policy(), short, 10.0, 0.05, seed=0)
    assert asked == [[min(step, 3)] for step in range(10)], "there is no other"


def test_few_decisions_stand_for_many_steps(monkeypatch):
    """Where no weight but the safest fits, it makes no difference how often it is asked."""
    whole = play_on_record(make_policy(), make_data(), 1.0, 0.05, seed=0)
    monkeypatch.setattr(assess_outcome, "DECISIONS", 3)  # at steps 0, 3 and 7
    few = play_on_record(make_policy(), make_data(), 1.0, 0.05, seed=0)
    np.testing.assert_allclose(few.played, whole.played, atol=1e-6)
    np.testing.assert_allclose(few.played, [[0.0] * 20, [3.5] * 20], atol=1e-6)
