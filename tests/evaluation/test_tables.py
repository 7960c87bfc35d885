import io
import re

from evaluation_factory import make_entry
from rich.console import Console

from spi_diffusers.evaluation.summary import BehaviorRow
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
    return BehaviorRow(**{**values, **changes})


def _line(text, *parts):
    """The cells of the row that holds all parts."""
    (line,) = [line for line in text.splitlines() if all(part in line for part in parts)]
    return re.split(r" {2,}", line.strip())


def test_cells_by_hand():
    entry = make_entry([600.0, 700.0], [4.0, 12.0], steps_per_second=1234.4)
    text = _render([entry], [_behaviour()])

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


def test_safe_and_unsafe_differ_with_and_without_colour():
    entries = [make_entry(), make_entry(cost_returns=(70.0, 71.0), extraction="reward", feedback=False)]

    plain = _render(entries)
    assert _line(plain, "spi, safe")[3] == "✓ 0.80 ±0.57"
    assert _line(plain, "spi, paper")[2] == "✗ 7.05 ±0.07"
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
    text = _render([], [_behaviour(best_return=None, best_cost_return=None, best_normalized_reward=None)])
    assert _line(text, "best within")[1:] == ["none"]


def test_eighty_columns_show_every_figure():
    entries = [make_entry(train_seed=seed, cost_returns=(4.0, 12.0 + seed)) for seed in (0, 1)]
    stream = io.StringIO()
    Console(file=stream, width=80).print(*results_tables(entries, [_behaviour()]))

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
