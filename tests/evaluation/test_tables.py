import dataclasses
import io
import json
import re

import pytest
from command_line import fails
from evaluation_factory import make_entry
from rich.console import Console

from spi_diffusers.evaluation.certificate import Certificate, LimitCertificate
from spi_diffusers.evaluation.results import Results
from spi_diffusers.evaluation.summary import BehaviorRow
from spi_diffusers.evaluation.tables import compare_policies, results_tables


def _render(entries, behavior=(), *, color=False):
    stream = io.StringIO()
    console = Console(
        file=stream, width=140, force_terminal=color, color_system="standard" if color else None
    )
    for table in results_tables(entries, behavior):
        console.print(table)
    return stream.getvalue()


def _behavior(limit=10.0, **changes):
    values = {
        "task": "OfflineBallCircle-v0",
        "cost_limit": limit,
        "episodes": 400,
        "reward_mean": 480.0,
        "reward_std": 90.0,
        "cost_mean": 31.0,
        "cost_std": 20.0,
        "normalized_reward": 0.54,
        "normalized_cost": 3.1,
        "within_limit": 0.125,
        "best_return": 679.0,
        "best_cost_return": 9.0,
        "best_normalized_reward": 0.77,
    }
    return BehaviorRow(**{**values, **changes})


def _line(text, *parts):
    """The cells of the row that holds all parts."""
    (line,) = [line for line in text.splitlines() if all(part in line for part in parts)]
    return re.split(r" {2,}", line.strip())


def test_cells_by_hand():
    entry = make_entry([600.0, 700.0], [4.0, 12.0], steps_per_second=1234.4)
    text = _render([entry], [_behavior()])

    assert "OfflineBallCircle-v0 (2 episodes, 1 training seed)" in text
    assert "over episodes" in text
    reward = entry.normalized_reward
    assert _line(text, "spi, safe") == [
        "10",
        "spi, safe",
        f"{reward:.2f} ±0.08",
        "✓ 0.80 ±0.57",
        "50%",
        "650 ±71",
        "8.0 ±5.7",
        "1,234",
    ]
    assert _line(text, "mean of 400")[1:5] == ["0.54", "✗ 3.10", "13%", "480 ±90"]
    assert _line(text, "best within")[1:] == ["0.77", "✓ 0.90", "679", "9.0"]


def test_the_risk_is_a_part_of_the_name():
    text = _render([make_entry(risk=risk) for risk in (0.05, 0.2)])
    assert [line for line in text.splitlines() if "spi, safe, risk 0.05" in line]
    assert [line for line in text.splitlines() if "spi, safe, risk 0.2 " in line]


def test_safe_and_unsafe_differ_with_and_without_color():
    entries = [make_entry(), make_entry(cost_returns=(70.0, 71.0), extraction="reward", feedback=False)]

    plain = _render(entries)
    assert _line(plain, "spi, safe")[3] == "✓ 0.80 ±0.57"
    assert _line(plain, "spi, paper")[2] == "✗ 7.05 ±0.07"
    colored = _render(entries, color=True)
    assert "\x1b[1;32m✓" in colored
    assert "\x1b[31m✗" in colored


def test_seeds_become_one_row_with_the_worst_seed():
    entries = [
        make_entry([600.0] * 2, [4.0] * 2, train_seed=0),
        make_entry([700.0] * 2, [11.0] * 2, train_seed=1),
    ]
    text = _render(entries, [_behavior()])

    assert "4 episodes, 2 training seeds" in text
    assert "deviation over training seeds" in text
    row = _line(text, "spi, safe")
    assert row[3] == "✓ 0.75 ±0.49"
    assert row[4] == f"{entries[0].normalized_reward:.2f} /1.10"


def test_limits_are_sections_and_the_safe_row_comes_first():
    entries = [
        make_entry(cost_limit=limit, extraction=extraction)
        for limit in (10, 20)
        for extraction in ("reward", "safe")
    ]
    text = _render(entries)

    cells = [re.split(r" {2,}", line.strip())[:2] for line in text.splitlines() if "spi" in line]
    assert [row[:1] if "spi" in row[0] else row for row in cells] == [
        ["10", "spi, safe"],
        ["spi, paper (Eq. 12)"],
        ["20", "spi, safe"],
        ["spi, paper (Eq. 12)"],
    ]


def test_data_without_an_episode_within_the_limit():
    text = _render([], [_behavior(best_return=None, best_cost_return=None, best_normalized_reward=None)])
    assert _line(text, "best within")[1:] == ["none"]


def test_eighty_columns_show_every_figure():
    entries = [make_entry(train_seed=seed, cost_returns=(4.0, 12.0 + seed)) for seed in (0, 1)]
    stream = io.StringIO()
    Console(file=stream, width=80).print(*results_tables(entries, [_behavior()]))

    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for figure in (
        "0.74",
        "±0.00",
        "0.83",
        "±0.04",
        "50%",
        "650",
        "8.3",
        "±0.4",
        "1,500",
        "679",
        "9.0",
        "3.10",
    ):
        assert figure in text


def test_nothing_to_show():
    assert results_tables([]) == []


def compare(*, best_only=False, cost_limits=None, **policies):
    results = {name: Results(entries) for name, entries in policies.items()}
    return compare_policies(results, best_only=best_only, cost_limits=cost_limits)


def entry(reward, cost, limit=10.0, seed=0, sha256="aa" * 32, **changes):
    """Two episodes with this return and cost return."""
    dataset = {"id": "data", "sha256": sha256}
    return make_entry([reward] * 2, [cost] * 2, cost_limit=limit, train_seed=seed, dataset=dataset, **changes)


def test_safe_policies_come_first_by_reward_then_the_others_by_cost():
    figures = {"rich": (800, 30), "poor": (100, 0), "over": (700, 11), "good": (500, 10)}
    rows = compare(**{name: [entry(*of_it)] for name, of_it in figures.items()}).rows
    assert [(row.rank, row.policy) for row in rows] == [(1, "good"), (2, "poor"), (3, "over"), (4, "rich")]


def test_every_limit_is_ranked_on_its_own():
    rows = compare(a=[entry(500, 9), entry(500, 9, 20)], b=[entry(600, 15), entry(600, 15, 20)]).rows
    order = [(row.summary.cost_limit, row.policy) for row in rows]
    assert order == [(10, "a"), (10, "b"), (20, "b"), (20, "a")]


def test_seeds_that_played_different_numbers_of_episodes_are_shown_as_they_are():
    more = make_entry([700] * 5, [9] * 5, cost_limit=10.0, train_seed=1)
    even, uneven = [entry(500, 9), entry(700, 9, seed=1)], [entry(500, 9), more]
    found = compare(even=even, uneven=uneven)
    assert [line.split(" | ")[7] for line in found.markdown().splitlines()[4:6]] == ["2 x 2", "2 + 5"]
    assert any("not all have as many" in note for note in found.notes)


def test_best_only_keeps_every_algorithm_of_a_results_file():
    other = (
        entry(400, 3, algorithm="cpq"),
        entry(300, 3, algorithm="cpq", extraction="reward", feedback=False),
    )
    rows = compare(file=[entry(500, 9), *other], best_only=True).rows
    assert [(row.summary.algorithm, row.summary.reward.mean) for row in rows] == [("spi", 500), ("cpq", 400)]


def test_best_only_takes_one_way_to_act_of_each_policy():
    entries = (entry(500, 9), entry(800, 40, extraction="reward", feedback=False))
    assert len(compare(a=entries).rows) == 2
    (row,) = compare(a=entries, best_only=True).rows
    assert row.summary.extraction == "safe"


def test_seeds_are_one_row_and_limits_can_be_chosen():
    entries = [entry(500, 9), entry(700, 11, seed=1), entry(1, 1, 20)]
    (row,) = compare(a=entries, cost_limits=[10.0]).rows
    assert row.summary.train_seeds == (0, 1)
    assert row.summary.reward.mean == 600
    assert row.summary.normalized_cost.mean == pytest.approx(1.0)


def test_other_data_and_other_numbers_of_seeds_are_pointed_out():
    assert compare(a=[entry(500, 9)], b=[entry(600, 9)]).notes == []
    other = [entry(600, 9, sha256="bb" * 32), entry(1, 1, seed=1)]
    data, seeds = compare(a=[entry(500, 9)], b=other).notes
    assert "not all were trained on the same data" in data
    assert "training seeds" in seeds


def test_refusals(capsys):
    assert "a is named twice" in fails(capsys, "compare", "a", "b", "a")
    with pytest.raises(ValueError, match="no results for limit 7"):
        compare(a=[entry(1, 1)], cost_limits=[7])


def test_tables_hold_every_row():
    found = compare(first=[entry(500, 9)], second=[entry(600, 15)])
    text = found.markdown()
    assert "| 1 | first |" in text
    assert "✗ 1.50" in text
    assert text.count("\n|") == 4
    (table,) = found.tables()
    assert table.row_count == 2
    assert [record["safe"] for record in json.loads(json.dumps(found.records()))] == [True, False]


def test_a_name_with_brackets_is_shown_whole():
    (table,) = compare(**{"runs[v2]": [entry(500, 9)]}).tables()
    console = Console(width=140, file=io.StringIO())
    console.print(table)
    assert "runs[v2]" in console.file.getvalue()


CERTIFICATE = Certificate(
    weights_sha256="0" * 64,
    cost_margin=1.0,
    algorithm="spi",
    train_seed=0,
    task="OfflineBallCircle-v0",
    source="simulator",
    source_sha256=None,
    seed=0,
    confidence=0.9,
    risk=0.05,
    highest_cost=200.0,
    limits=(LimitCertificate(10.0, 100, 1, 0.0465, 6.0, 13.1, 8.0, 12.0, 600.0),),
    versions={},
)


def test_a_certificate_stands_beside_what_it_is_of():
    certified = Results([make_entry(risk=0.05), make_entry(extraction="reward", feedback=False)])
    certified.certificate = CERTIFICATE
    found = compare_policies({"certified": certified, "plain": Results([make_entry(risk=0.05)])})
    cells = {(row.policy, row.summary.extraction): row.cells[6] for row in found.rows}
    assert cells == {("certified", "safe"): "4.7% (90%)", ("certified", "reward"): "", ("plain", "safe"): ""}
    assert "| 4.7% (90%) |" in found.markdown()
    known = {(one["policy"], one["extraction"]): one["certified"] for one in found.records()}
    assert known["certified", "safe"] == CERTIFICATE.limits[0].to_dict() | {"confidence": 0.9}
    assert known["plain", "safe"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"risk": 0.2},
        {"risk": 0.05, "cost_limit": 20},
        {"risk": 0.05, "feedback": False},
        {"risk": 0.05, "algorithm": "spi-paper"},
        {"risk": 0.05, "train_seed": 1},
        {"risk": 0.05, "cost_margin": 2.0},
    ],
)
def test_a_certificate_of_something_else_says_nothing(changes):
    certified = Results([make_entry(**changes)])
    certified.certificate = CERTIFICATE
    (row,) = compare_policies({"certified": certified}).rows
    assert row.certified is None


def test_a_comparison_says_whose_simulator_moves_otherwise():
    hopper = {"task": "OfflineHopperVelocityGymnasium-v1"}
    ours = dataclasses.replace(make_entry(), **hopper, versions={"mujoco": "2.3.3"})
    comparison = compare(ours=[ours], theirs=[dataclasses.replace(ours, versions={"mujoco": "4.0.0"})])
    (note,) = comparison.notes
    assert note.startswith("theirs: OfflineHopperVelocityGymnasium-v1 was simulated by mujoco4, which moves")
