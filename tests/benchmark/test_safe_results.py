"""What the documentation says of the safe SPI holds in the committed results."""

import itertools
import json
from pathlib import Path

import pytest

from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.evaluation.results import read_results

RESULTS = Path(__file__).parents[2] / "results"
#: Results of safe extraction at the usual risk, by (task, limit, fed back), each of some training seeds.
CELLS = {}
ENTRIES = [
    entry
    for task in TASKS.values()
    if (RESULTS / f"{task.short_name}.json").exists()
    for entry in read_results(RESULTS / f"{task.short_name}.json")
    if entry.extraction == "safe"
]
for one in ENTRIES:
    if one.is_at_usual_risk:
        key = (get_task(one.task).short_name, one.cost_limit, one.feedback)
        CELLS.setdefault(key, []).append(one)
WALKER, HOPPER, ANT = "walker2dvelocity", "hoppervelocity", "antvelocity"
CAR = "carcircle"


def mean(cell, name):
    return sum(getattr(entry, name) for entry in cell) / len(cell)


def kept(feedback, share):
    """Where so many episodes are within the limit, and the mean cost is, too: (task, limit)."""
    return {
        (task, limit)
        for (task, limit, fed_back), cell in CELLS.items()
        if fed_back == feedback and mean(cell, "within_limit") >= share and mean(cell, "normalized_cost") <= 1
    }


def test_every_task_was_played_at_the_same_kinds_of_limits():
    assert {task for task, _, _ in CELLS} >= {task.short_name for task in TASKS.values() if task.paper}
    for task, feedback in itertools.product({task for task, _, _ in CELLS}, (True, False)):
        smallest = get_task(task).cost_limits[0]
        limits = {limit / smallest for name, limit, fed_back in CELLS if (name, fed_back) == (task, feedback)}
        assert limits == {0.5, 1, 1.5, 2, 3, 4}, task


def test_which_limits_that_are_fed_back_are_not_kept():
    cells = {(task, limit) for task, limit, feedback in CELLS if feedback}
    exceeded = {(WALKER, limit) for limit in (10, 20, 30, 40)} | {(HOPPER, 10)}
    exceeded |= {(CAR, limit) for limit in (5, 10, 15, 20, 30, 40)}
    assert cells - kept(True, 0.95) == exceeded
    assert len(exceeded) == 11


def test_car_circle_is_over_its_limits_too_often_and_not_in_the_mean():
    cells = [cell for (task, _, feedback), cell in CELLS.items() if task == CAR and feedback]
    assert sorted({round(mean(cell, "within_limit"), 3) for cell in cells}) == [0.9, 0.925]
    assert all(mean(cell, "normalized_cost") < 1 for cell in cells)
    second = [entry.within_limit for cell in cells for entry in cell if entry.train_seed == 1]
    assert sorted(second) == [0.8] * 5 + [0.9]


def test_so_many_training_seeds_are_there_as_the_documentation_says():
    seeds = {task: sorted(entry.train_seed for entry in cell) for (task, _, _), cell in CELLS.items()}
    assert all(found == ([0] if task == "swimmervelocity" else [0, 1]) for task, found in seeds.items())


def test_limits_alone_are_kept_but_on_walker2d_at_hoppers_smallest_and_ants_largest():
    cells = {(task, limit) for task, limit, feedback in CELLS if not feedback}
    exceeded = {(WALKER, limit) for limit in (10, 20, 30, 40)} | {(HOPPER, 10), (ANT, 60), (ANT, 80)}
    assert cells - kept(False, 0.9) == exceeded


def test_more_risk_means_more_episodes_over_the_limit_and_more_reward():
    shares, rewards = {}, {}
    for entry in ENTRIES:
        if entry.feedback and entry.cost_limit in get_task(entry.task).cost_limits:
            shares.setdefault(entry.risk, []).append(entry.within_limit)
            rewards.setdefault(entry.risk, []).append(entry.normalized_reward)
    assert len({len(found) for found in shares.values()}) == 1
    for values, sign in ((shares, -1), (rewards, 1)):
        means = [sign * sum(values[risk]) / len(values[risk]) for risk in (0.01, 0.05, 0.2)]
        assert means == sorted(means)


def test_mean_rewards_over_the_papers_tasks_are_as_the_documentation_says():
    tasks = [task for task in TASKS.values() if task.paper]
    for position, expected in ((0, 0.73), (2, 0.80)):
        cells = [CELLS[task.short_name, task.cost_limits[position], True] for task in tasks]
        found = sum(mean(cell, "normalized_reward") for cell in cells) / len(tasks)
        assert found == pytest.approx(expected, abs=0.005)


def test_ant_circle_and_swimmer_stand_still_and_ant_run_does_not():
    for (task, limit, feedback), cell in CELLS.items():
        if task == "antrun" and feedback:
            data = load_transitions(RESULTS.parent / "datasets", task)
            best = get_task(task).normalize_reward(data.episodes.best_return_within(limit))
            assert mean(cell, "normalized_reward") >= best - 0.03
        if task in ("antcircle", "swimmervelocity"):
            assert mean(cell, "normalized_reward") < 0.03
            assert mean(cell, "normalized_cost") < 0.1


def test_intervals_of_assess_hold_as_often_as_they_should():
    found = json.loads((RESULTS / "assess.json").read_text(encoding="utf-8"))["summary"]
    assert found["return"]["within"] >= 0.8
    assert found["cost"]["within"] >= 0.8
    assert found["return"]["spearman"] >= 0.7
    assert found["cost"]["spearman"] < 0.4, "costs are hardly ordered, as the documentation says"
