from pathlib import Path

import numpy as np
import pytest
from policy_factory import BALL, ENTRIES

from spi_diffusers.evaluation.video import Replay
from spi_diffusers.spaces.episode import Decision, Episode
from spi_diffusers.spaces.figures import plot_frontier, plot_step


def replay(limit=0.003, return_=5.0, cost=0.002):
    return Replay(Path("x.mp4"), BALL, limit, return_, cost, 2)


def decision(budget, feasible, chosen):
    bounds = np.array([0.004, 0.002, 0.001])
    costs, returns = bounds / 2, np.array([3.0, 2.0, 1.0])
    return Decision(budget, 2, np.array([0.0, 0.5, 1.0]), returns, costs, bounds, np.array(feasible), chosen)


def episode():
    decisions = decision(0.003, [False, True, True], 1), decision(0.001, [False, False, True], 2)
    return Episode(replay(), 0.05, 0, decisions, {})


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_step_shows_its_candidates_the_chosen_one_and_the_cost_so_far():
    candidates, running = plot_step(episode(), 1).axes
    fits, too_much, chosen = candidates.collections[1:]
    assert fits.get_offsets().tolist() == [[0.0005, 1.0]]
    assert too_much.get_offsets().tolist() == [[0.002, 3.0], [0.001, 2.0]]
    assert chosen.get_offsets().tolist() == [[0.0005, 1.0]]
    assert labels(candidates) == ["fits", "does not fit", "chosen", "budget 0.001"]
    assert running.lines[1].get_ydata().tolist() == pytest.approx([0, 0.002])
    assert (running.get_title(), labels(running)) == ("Running cost: 0.002", ["limit 0.003"])


@pytest.mark.parametrize("step", [-1, 2])
def test_a_step_that_is_not_there_is_refused(step):
    with pytest.raises(ValueError, match="step must lie in 0 to 1"):
        plot_step(episode(), step)


def test_the_frontier_has_the_results_and_what_was_played():
    played = [replay(10, 500, 7), replay(20, 640, 25)]
    reward, cost = plot_frontier(ENTRIES[:3], played).axes
    curve, stars = reward.lines[0], [line for line in reward.lines if line.get_marker() == "*"]
    assert curve.get_xydata().tolist() == [[10, 620], [20, 650], [40, 720]]
    assert [star.get_xydata().tolist() for star in stars] == [[[10, 500]], [[20, 640]]]
    assert stars[1].get_markersize() > stars[0].get_markersize()
    assert [line.get_xydata().tolist() for line in cost.lines if line.get_marker() == "*"] == [
        [[10, 7]],
        [[20, 25]],
    ]
    assert labels(cost) == ["this episode", "limit", "mean of 2 episodes"]


def test_a_policy_without_results_has_an_empty_frontier_with_the_limit():
    _, cost = plot_frontier([]).axes
    assert labels(cost) == ["limit"]
