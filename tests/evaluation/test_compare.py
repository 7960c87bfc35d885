"""Ranking and tables of several policies, from entries whose figures are set by hand."""

import io
import json

import pytest
from evaluation_factory import make_entry
from rich.console import Console

from spi_diffusers.evaluation.tables import (
    ComparedPolicy,
    compare_policies,
    comparison_markdown,
    comparison_notes,
    comparison_records,
    comparison_tables,
)


def policy(name, *entries):
    return ComparedPolicy(name, entries)


def entry(reward, cost, limit=10.0, seed=0, sha256="aa" * 32, **changes):
    """Two episodes with this return and cost return."""
    dataset = {"id": "data", "sha256": sha256}
    return make_entry([reward] * 2, [cost] * 2, cost_limit=limit, train_seed=seed, dataset=dataset, **changes)


def test_safe_policies_come_first_by_reward_then_the_others_by_cost():
    rows = compare_policies(
        [
            policy("rich", entry(800, 30)),
            policy("poor", entry(100, 0)),
            policy("over", entry(700, 11)),
            policy("good", entry(500, 10)),
        ]
    )
    assert [(row.rank, row.policy) for row in rows] == [(1, "good"), (2, "poor"), (3, "over"), (4, "rich")]


def test_every_limit_is_ranked_on_its_own():
    rows = compare_policies(
        [policy("a", entry(500, 9), entry(500, 9, 20)), policy("b", entry(600, 15), entry(600, 15, 20))]
    )
    order = [(row.summary.cost_limit, row.policy) for row in rows]
    assert order == [(10, "a"), (10, "b"), (20, "b"), (20, "a")]


def test_seeds_that_played_different_numbers_of_episodes_are_shown_as_they_are():
    more = make_entry([700] * 5, [9] * 5, cost_limit=10.0, train_seed=1)
    even, uneven = [entry(500, 9), entry(700, 9, seed=1)], [entry(500, 9), more]
    rows = compare_policies([policy("even", *even), policy("uneven", *uneven)])
    assert [line.split(" | ")[6] for line in comparison_markdown(rows).splitlines()[4:6]] == [
        "2 x 2",
        "2 + 5",
    ]
    assert any("not all have as many" in note for note in comparison_notes(rows))


def test_best_only_keeps_every_algorithm_of_a_results_file():
    other = (
        entry(400, 3, algorithm="cpq"),
        entry(300, 3, algorithm="cpq", extraction="reward", feedback=False),
    )
    rows = compare_policies([policy("file", entry(500, 9), *other)], best_only=True)
    assert [(row.summary.algorithm, row.summary.reward.mean) for row in rows] == [("spi", 500), ("cpq", 400)]


def test_best_only_takes_one_way_to_act_of_each_policy():
    entries = (entry(500, 9), entry(800, 40, extraction="reward", feedback=False))
    assert len(compare_policies([policy("a", *entries)])) == 2
    (row,) = compare_policies([policy("a", *entries)], best_only=True)
    assert row.summary.extraction == "safe"


def test_seeds_are_one_row_and_limits_can_be_chosen():
    (row,) = compare_policies(
        [policy("a", entry(500, 9), entry(700, 11, seed=1), entry(1, 1, 20))], cost_limits=[10.0]
    )
    assert row.summary.train_seeds == (0, 1)
    assert row.summary.reward.mean == 600
    assert row.summary.normalized_cost.mean == pytest.approx(1.0)


def test_other_data_and_other_numbers_of_seeds_are_pointed_out():
    same = [policy("a", entry(500, 9)), policy("b", entry(600, 9))]
    assert comparison_notes(compare_policies(same)) == []
    other = [policy("a", entry(500, 9)), policy("b", entry(600, 9, sha256="bb" * 32), entry(1, 1, seed=1))]
    data, seeds = comparison_notes(compare_policies(other))
    assert "not all were trained on the same data" in data
    assert "training seeds" in seeds


def test_refusals():
    with pytest.raises(ValueError, match="a is named twice"):
        compare_policies([policy("a", entry(1, 1)), policy("a", entry(1, 1))])
    with pytest.raises(ValueError, match="no results for limit 7"):
        compare_policies([policy("a", entry(1, 1))], cost_limits=[7])


def test_tables_hold_every_row():
    rows = compare_policies([policy("first", entry(500, 9)), policy("second", entry(600, 15))])
    text = comparison_markdown(rows)
    assert "| 1 | first |" in text
    assert "✗ 1.50" in text
    assert text.count("\n|") == 4
    (table,) = comparison_tables(rows)
    assert table.row_count == 2
    assert [record["safe"] for record in json.loads(json.dumps(comparison_records(rows)))] == [True, False]


def test_a_name_with_brackets_is_shown_whole():
    (table,) = comparison_tables(compare_policies([policy("runs[v2]", entry(500, 9))]))
    console = Console(width=140, file=io.StringIO())
    console.print(table)
    assert "runs[v2]" in console.file.getvalue()
