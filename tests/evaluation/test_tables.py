import io

from evaluation_factory import make_entry
from rich.console import Console

from spi_diffusers.evaluation.behaviour import BehaviourRow
from spi_diffusers.evaluation.tables import results_tables


def _render(entries, behaviour=(), *, colour=False):
    stream = io.StringIO()
    console = Console(
        file=stream, width=140, force_terminal=colour, color_system="standard" if colour else None
    )
    for table in results_tables(entries, behaviour):
        console.print(table)
    return stream.getvalue()


def _behaviour(limit=10.0, **changes):
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
    return BehaviourRow(**{**values, **changes})


def _line(text, *parts):
    (line,) = [line for line in text.splitlines() if all(part in line for part in parts)]
    return [cell.strip() for cell in line.split("│")[1:-1]]


def test_cells_by_hand():
    entry = make_entry([600.0, 700.0], [4.0, 12.0], steps_per_second=1234.4)
    text = _render([entry], [_behaviour()])

    assert "OfflineBallCircle-v0 (2 episodes, 1 training seed)" in text
    assert "over episodes" in text
    reward = entry.normalized_reward
    assert _line(text, "safe extraction") == [
        "10",
        "spi, safe extraction",
        f"{reward:.2f} ± 0.08",
        "✓ 0.80 ± 0.57",
        "50%",
        "650 ± 71",
        "8.0 ± 5.7",
        "1,234",
    ]
    assert _line(text, "mean of 400")[2:6] == ["0.54", "✗ 3.10", "12%", "480 ± 90"]
    assert _line(text, "best within")[2:4] == ["0.77", "✓ 0.90"]


def test_safe_and_unsafe_differ_with_and_without_colour():
    entries = [make_entry(), make_entry(cost_returns=(70.0, 71.0), extraction="reward", feedback=False)]

    plain = _render(entries)
    assert _line(plain, "safe extraction")[3].startswith("✓")
    assert _line(plain, "paper's extraction")[3].startswith("✗ 7.05")
    coloured = _render(entries, colour=True)
    assert "\x1b[1;32m✓" in coloured
    assert "\x1b[31m✗" in coloured


def test_seeds_become_one_row_with_the_worst_seed():
    entries = [
        make_entry([600.0] * 2, [4.0] * 2, train_seed=0),
        make_entry([700.0] * 2, [11.0] * 2, train_seed=1),
    ]
    text = _render(entries, [_behaviour()])

    assert "4 episodes, 2 training seeds" in text
    assert "over training seeds" in text
    row = _line(text, "safe extraction")
    assert row[4] == f"{entries[0].normalized_reward:.2f} / ✗ 1.10"
    assert row[3] == "✓ 0.75 ± 0.49"


def test_limits_are_sections_and_the_safe_row_comes_first():
    entries = [
        make_entry(cost_limit=limit, extraction=extraction)
        for limit in (10, 20)
        for extraction in ("reward", "safe")
    ]
    text = _render(entries)

    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if "extraction" in line]
    assert [(row[0], row[1]) for row in cells] == [
        ("10", "spi, safe extraction"),
        ("", "spi, paper's extraction"),
        ("20", "spi, safe extraction"),
        ("", "spi, paper's extraction"),
    ]


def test_data_without_an_episode_within_the_limit():
    text = _render([], [_behaviour(best_return=None, best_cost_return=None, best_normalized_reward=None)])
    assert _line(text, "best within")[2] == "none"


def test_nothing_to_show():
    assert results_tables([]) == []
