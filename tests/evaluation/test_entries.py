import dataclasses

import numpy as np
import pytest
from evaluation_factory import BALL_CIRCLE, make_entry

from spi_diffusers.evaluation.entries import DivergedRun, EpisodeStatistics, EvaluationEntry, check_cost_limit


def test_entry_figures_by_hand():
    entry = make_entry([600.0, 700.0, 650.0, 650.0], [4.0, 12.0, 10.0, 10.0], cost_limit=10)

    assert entry.episodes == 4
    assert entry.reward_mean == 650.0
    assert entry.reward_std == pytest.approx((2 * 50.0**2 / 3) ** 0.5)  # sample: n - 1
    assert entry.cost_mean == 9.0
    assert entry.cost_std == pytest.approx(((25 + 9 + 1 + 1) / 3) ** 0.5)
    scale = BALL_CIRCLE.reward_max - BALL_CIRCLE.reward_min
    assert entry.normalized_reward == pytest.approx((650.0 - BALL_CIRCLE.reward_min) / scale)
    assert entry.normalized_cost == pytest.approx(0.9)
    assert entry.within_limit == 0.75  # a cost return equal to the limit keeps it
    assert (entry.cost_p90, entry.cost_worst) == (12.0, 12.0)
    tenth = make_entry([0.0] * 10, [9.0, *[1.0] * 8, 2.0])
    assert (tenth.cost_p90, tenth.cost_worst) == (2.0, 9.0)  # nine of ten stay within 2


def test_limit_zero_is_normalized_with_one_added():
    entry = make_entry([1.0, 1.0], [0.0, 3.0], cost_limit=0)

    assert entry.normalized_cost == 2.5  # (1.5 + 1) / (0 + 1)
    assert entry.within_limit == 0.5


def test_single_episode_has_no_spread():
    entry = make_entry([5.0], [1.0])

    assert (entry.reward_std, entry.cost_std) == (0.0, 0.0)


def test_fields_are_those_of_the_results_schema():
    expected = (
        "task, algorithm, extraction, cost_limit, feedback, train_seed, eval_seeds, episodes, updates, "
        "train_seconds, reward_mean, reward_std, cost_mean, cost_std, normalized_reward, normalized_cost, "
        "within_limit, steps_per_second, dataset, versions, cost_p90, cost_worst"
    )
    assert ", ".join(make_entry().to_dict()) == expected


def test_dict_round_trip():
    entry = make_entry(eval_seeds=(3, 4))

    assert EvaluationEntry.from_dict(entry.to_dict()) == entry


def test_an_entry_without_a_risk_is_of_a_policy_that_knew_none():
    entry = make_entry()
    assert entry.risk is None
    assert "risk" not in entry.to_dict()
    assert EvaluationEntry.from_dict({**entry.to_dict(), "risk": None}) == entry


def test_another_risk_is_another_cell():
    entries = [make_entry(risk=risk) for risk in (None, 0.05, 0.2)]
    assert len({entry.key for entry in entries}) == 3
    assert [EvaluationEntry.from_dict(entry.to_dict()).risk for entry in entries] == [None, 0.05, 0.2]


def test_numpy_numbers_become_python_numbers():
    entry = dataclasses.replace(
        make_entry(), train_seed=np.int64(3), eval_seeds=(np.int64(1),), reward_mean=np.float32(0.5)
    )

    assert type(entry.train_seed) is type(entry.eval_seeds[0]) is int
    assert type(entry.reward_mean) is float


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "OfflineMoonCircle-v0"),
        ("task", 3),
        ("algorithm", ""),
        ("cost_limit", -1.0),
        ("cost_limit", True),
        ("feedback", 1),
        ("train_seed", 1.5),
        ("eval_seeds", []),
        ("eval_seeds", [-1]),
        ("episodes", 0),
        ("reward_mean", float("nan")),
        ("reward_mean", "12"),
        ("cost_std", -0.1),
        ("within_limit", 1.01),
        ("dataset", {"id": "x"}),
        ("versions", {"torch": 2}),
        ("risk", 0.0),
        ("risk", 1),
    ],
)
def test_value_of_the_wrong_kind_names_its_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} must "):
        EvaluationEntry.from_dict({**make_entry().to_dict(), field: value})


def test_missing_and_unknown_fields_are_named():
    values = make_entry().to_dict()
    without = {name: value for name, value in values.items() if name not in ("updates", "cost_std")}

    with pytest.raises(ValueError, match="missing fields 'updates', 'cost_std'"):
        EvaluationEntry.from_dict(without)
    with pytest.raises(ValueError, match="unknown field 'colour'"):
        EvaluationEntry.from_dict({**values, "colour": "red"})
    with pytest.raises(ValueError, match="must be an object"):
        EvaluationEntry.from_dict([1, 2])


def test_arrays_that_are_no_episodes():
    with pytest.raises(ValueError, match="at least one episode"):
        make_entry([], [])
    with pytest.raises(ValueError, match="2 returns for 1 cost returns"):
        make_entry([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="the cost return of episode 1 is nan"):
        make_entry([1.0, 2.0], [1.0, float("nan")])
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        EpisodeStatistics.of("return", [[1.0, 2.0]])


@pytest.mark.parametrize("limit", [-1, float("inf"), float("nan"), "10", None, True])
def test_bad_cost_limit(limit):
    with pytest.raises(ValueError, match="a cost limit must be a finite number of at least 0"):
        check_cost_limit(limit)


@pytest.mark.parametrize(
    ("field", "value"),
    [("task", "ballcircle"), ("algorithm", ""), ("cost_limit", -1.0), ("train_seed", -1), ("message", 3)],
)
def test_every_field_is_checked(field, value):
    values = DivergedRun(BALL_CIRCLE.name, "spi", None, 3, "loss is nan").to_dict()
    assert DivergedRun.from_dict(values).to_dict() == values
    with pytest.raises(ValueError, match=field.replace("_", ".")):
        DivergedRun.from_dict({**values, field: value})
