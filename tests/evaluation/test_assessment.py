"""Assessments as tables and files, and what they warn of."""

import dataclasses
import json

import numpy as np
import pytest

from spi_diffusers.evaluation.assess_warnings import find_warnings
from spi_diffusers.evaluation.assessment import Assessment, Estimate, LimitAssessment

INFO = {"algorithm": "spi", "train_seed": 0, "updates": 100, "train_seconds": 2.5}


def make_row(limit=10.0, outside=0.06):
    return LimitAssessment(limit, Estimate(612.4, 580.0, 640.2), Estimate(7.41, 5.1, 11.25), 0.985, outside)


def make_assessment(**changes):
    values = {
        "policy": INFO,
        "dataset": {"id": "mine.csv", "sha256": "0" * 64},
        "held_out": True,
        "episodes": 40,
        "transitions": 8000,
        "risk": 0.05,
        "limits": [make_row(), make_row(40, None)],
        "smallest_limit": 7.25,
        "warnings": ["one thing."],
    }
    return Assessment(**values | changes)


def test_it_prints_as_a_table_with_remarks():
    text = repr(make_assessment())
    assert "What to expect, at a risk of 0.05" in text
    assert "From 40 held-out episodes (8,000 steps) of mine.csv; no simulator was asked" in text
    (row,) = [line.split("  ") for line in text.splitlines() if line.lstrip().startswith("10 ")]
    assert [cell.strip() for cell in row if cell.strip()] == [
        *("10", "612 (580 to 640)", "7.4 (5.1 to 11.3)", "99%", "6%"),
    ]
    assert text.endswith(
        "The smallest limit that fits at 95% of the starts is 7.25, at a risk of 0.05.\nWarning: one thing."
    )
    assert "Warning: one thing." in make_assessment()._repr_html_()
    assert "of 40 episodes" not in repr(make_assessment(held_out=False))
    assert "From 40 episodes (8,000 steps)" in repr(make_assessment(held_out=False))


def test_a_file_gives_back_what_was_saved(tmp_path):
    found = make_assessment()
    assert Assessment.read(found.save(tmp_path / "new" / "assessment.json")) == found
    nameless = make_assessment(policy=None)
    assert Assessment.read(nameless.save(tmp_path / "assessment.json")) == nameless


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 9}, "format_version must be 1, got 9; make it anew"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"episodes": 0}, "episodes must be a whole number of at least 1"),
        ({"limits": [{"cost_limit": 10}]}, "limits must be a list, each an object with the right fields"),
        ({"warnings": 3}, "warnings must be"),
    ],
)
def test_a_file_of_something_else_is_refused_with_its_name(tmp_path, changes, message):
    path = make_assessment().save(tmp_path / "assessment.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=f"assessment.json: .*{message}"):
        Assessment.read(path)


def test_it_knows_its_policy():
    assert make_assessment().is_of({**INFO, "dataset": {}})
    assert not make_assessment().is_of({**INFO, "train_seconds": 3.0})
    assert not make_assessment().is_of({})
    assert not make_assessment(policy=None).is_of(INFO)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((612.4, 580.0, 640.2), "612 (580 to 640)"),
        ((0.00123, 0.0, 0.00456), "0.00123 (0.00000 to 0.00456)"),
        ((0.0, 0.0, 0.0), "0 (0 to 0)"),
        ((-123456.7, -2e5, 1.0), "-123457 (-200000 to 1)"),
    ],
)
def test_figures_in_any_unit(numbers, text):
    assert str(Estimate(*numbers)) == text


# ---- warnings


def warn(limits, costs, **changes):
    how = {"least_expected": np.zeros(1), "used": 40, "seen_in_training": False} | changes
    return find_warnings([make_row(limit) for limit in limits], np.array(costs, dtype=float)[:, None], **how)


MANY = [*range(1, 101)]  # costs of a hundred episodes


def test_nothing_is_warned_of_where_the_data_tells():
    assert warn([20, 50], MANY) == []


@pytest.mark.parametrize(
    ("limits", "costs", "changes", "sentence"),
    [
        ([20], MANY, {"seen_in_training": True}, "no episode was held out, so 40 episodes are used that"),
        ([20], MANY, {"used": 1}, "too little to estimate from, 1 episode: intervals"),
        ([20], [0] * 30, {}, "none of the 30 episodes of the data costs anything"),
        ([3, 20], MANY, {}, "few of the 100 episodes of the data keep a limit of 3 (3 episodes)."),
        ([20, 95, 200], MANY, {}, "exceed a limit of 95 (5 episodes), 200 (0 episodes): little tells"),
        (
            [0.5],
            MANY,
            {},
            "a limit of 0.5 lies below the 1.00 that the safest of the 100 episodes of the data",
        ),
        (
            [20],
            MANY,
            {"least_expected": np.array([23.456])},
            "20 lies below the 23.5 that the policy is expected to cost",
        ),
    ],
)
def test_each_warning_has_its_numbers(limits, costs, changes, sentence):
    (found,) = warn(limits, costs, **changes)
    assert sentence in found


def test_warnings_name_the_cost_of_several():
    rows = [dataclasses.replace(make_row(), cost_limit=(20.0, 30.0))]
    costs = np.stack([np.arange(100.0), np.arange(25.0, 125.0)], axis=1)
    how = {"used": 40, "seen_in_training": False, "cost_names": ("speed", "energy")}
    found = find_warnings(rows, costs, least_expected=np.array([23.456, 31.0]), **how)
    assert [sentence.partition(" that")[0] for sentence in found] == [
        "few of the 100 episodes of the data keep a limit of 20, 30 (6 episodes).",
        "a limit of 20 of speed lies below the 23.5",
        "a limit of 30 of energy lies below the 31.0",
    ]


def test_actions_unlike_the_data_are_warned_of():
    rows = [make_row(10, 0.2), make_row(20, 0.31), make_row(30, None)]
    how = {"least_expected": np.zeros(1), "used": 40, "seen_in_training": False}
    (found,) = find_warnings(rows, np.arange(100.0)[:, None], **how)
    assert found.endswith("31% at 20.")


def test_fields_that_are_no_figures_are_refused():
    with pytest.raises(ValueError, match="feasible must be a number in"):
        dataclasses.replace(make_row(), feasible=1.5)
