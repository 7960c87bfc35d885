import dataclasses

import numpy as np
import pytest
from evaluation_factory import BALL_CIRCLE, make_entry
from hypothesis import given, settings
from hypothesis import strategies as st

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.evaluation.summary import (
    behavior_rows,
    keeps_limit,
    shown,
    shown_range,
    shown_share,
    summarize_seeds,
)


def test_two_seeds_by_hand():
    (summary,) = summarize_seeds(
        [
            make_entry([500.0, 600.0], [0.0, 4.0], train_seed=1, steps_per_second=1000.0),
            make_entry([700.0, 700.0], [12.0, 16.0], train_seed=0, steps_per_second=2000.0),
        ]
    )

    assert summary.train_seeds == (0, 1)
    assert summary.episodes == 4
    assert summary.reward.mean == 625.0
    assert summary.reward.std == pytest.approx(np.std([500, 600, 700, 700], ddof=1))
    assert summary.reward.seed_std == pytest.approx(np.std([550, 700], ddof=1))
    assert summary.reward.spread == summary.reward.seed_std
    assert summary.reward.worst == 550.0
    assert summary.normalized_reward.worst == pytest.approx(BALL_CIRCLE.normalize_reward(550.0))
    assert summary.normalized_cost.mean == pytest.approx(0.8)
    assert summary.normalized_cost.worst == pytest.approx(1.4)
    assert summary.normalized_cost.seed_std == pytest.approx(np.std([0.2, 1.4], ddof=1))
    assert summary.within_limit == 0.5
    assert summary.steps_per_second == 1500.0
    assert summary.is_safe


def test_one_seed_shows_the_spread_over_episodes():
    (summary,) = summarize_seeds([make_entry([600.0, 700.0], [4.0, 12.0])])

    assert summary.reward.seed_std is None
    assert summary.reward.spread == pytest.approx(np.std([600, 700], ddof=1))


def test_equal_seeds_have_no_spread_over_seeds():
    (summary,) = summarize_seeds([make_entry(train_seed=seed) for seed in (0, 1)])

    assert summary.reward.spread == 0.0


def test_limits_extractions_and_feedback_are_kept_apart_and_sorted():
    summaries = summarize_seeds(
        [
            make_entry(cost_limit=20),
            make_entry(cost_limit=10, feedback=False),
            make_entry(cost_limit=10),
            make_entry(cost_limit=40, extraction="reward", feedback=False),
        ]
    )

    found = [(s.extraction, s.cost_limit, s.feedback) for s in summaries]
    assert found == [("reward", 40, False), ("safe", 10, False), ("safe", 10, True), ("safe", 20, True)]


def test_entries_with_other_risks_are_not_averaged():
    summaries = summarize_seeds(
        [make_entry(risk=risk, train_seed=seed) for risk in (0.2, 0.05) for seed in (0, 1)]
    )
    assert [(s.risk, s.train_seeds) for s in summaries] == [(0.05, (0, 1)), (0.2, (0, 1))]


def test_a_seed_may_not_count_twice():
    with pytest.raises(ValueError, match=r"two entries have the key task=OfflineBallCircle-v0.*train_seed=0"):
        summarize_seeds([make_entry(), make_entry([1.0], [1.0])])


def test_limit_zero_rescales_the_spread_by_its_slope():
    (summary,) = summarize_seeds([make_entry([1.0, 1.0], [0.0, 3.0], cost_limit=0)])

    assert summary.normalized_cost.mean == 2.5
    assert summary.normalized_cost.std == pytest.approx(np.std([1.0, 4.0], ddof=1))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=6), min_size=1, max_size=4))
def test_spread_over_episodes_is_that_of_all_episodes_together(seeds):
    entries = [
        make_entry(returns, np.zeros(len(returns)), train_seed=number) for number, returns in enumerate(seeds)
    ]
    (summary,) = summarize_seeds(entries)

    everything = np.concatenate(seeds)
    expected = everything.std(ddof=1) if len(everything) > 1 else 0.0
    assert summary.reward.std == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.895, 2, "0.90"),
        (0.895 - 1e-16, 2, "0.90"),
        (0.985, 2, "0.99"),
        (8.95, 1, "9.0"),
        (0.8949, 2, "0.89"),
        (-0.5249, 2, "-0.52"),
        (12345.678, 0, "12346"),
        (0.1 + 0.2, 2, "0.30"),
    ],
)
def test_figures_are_shown_alike_however_they_were_computed(value, digits, text):
    assert shown(value, digits) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100%"), (0.0, "0%"), (0.125, "13%"), (0.99, "99%"), (399 / 400, "99.8%"), (0.001, "0.1%")],
)
def test_a_share_is_never_shown_as_all_or_none_where_it_is_not(share, text):
    assert shown_share(share) == text


def test_the_last_bits_of_a_mean_do_not_break_a_limit():
    assert keeps_limit(1.0 + 1e-12)
    assert not keeps_limit(1.0 + 1e-6)


@pytest.mark.parametrize(
    ("counts", "text"), [((3, 1, 5), "1 to 5"), ({3}, "3"), ((15_000, 25_000), "15,000 to 25,000"), ((), "0")]
)
def test_a_range_of_counts(counts, text):
    assert shown_range(counts) == text


def _dataset(rewards, costs):
    """Episodes of two steps each."""
    count = len(rewards)
    columns = {
        "observation": np.zeros((count, 8)),
        "next_observation": np.zeros((count, 8)),
        "action": np.zeros((count, 2)),
        "reward": np.array(rewards),
        "cost": np.array(costs),
        "terminated": np.zeros(count, dtype=bool),
        "truncated": np.arange(count) % 2 == 1,
    }
    return TransitionDataset.from_columns(columns, task=BALL_CIRCLE)


def test_rows_by_hand():
    # Returns 300, 500, 400; cost returns 0, 30, 10.
    dataset = _dataset([100.0, 200.0, 250.0, 250.0, 0.0, 400.0], [0.0, 0.0, 20.0, 10.0, 5.0, 5.0])
    tight, wide = behavior_rows(dataset, [10, 40])

    assert (tight.episodes, tight.reward_mean, tight.reward_std) == (3, 400.0, 100.0)
    assert tight.cost_mean == pytest.approx(40 / 3)
    assert tight.normalized_cost == pytest.approx(4 / 3)
    assert tight.within_limit == pytest.approx(2 / 3)
    assert (tight.best_return, tight.best_cost_return) == (400.0, 10.0)
    assert tight.best_normalized_reward == pytest.approx(BALL_CIRCLE.normalize_reward(400.0))
    assert (wide.within_limit, wide.best_return, wide.best_cost_return) == (1.0, 500.0, 30.0)


def test_no_episode_keeps_the_limit():
    (row,) = behavior_rows(_dataset([1.0, 1.0], [3.0, 3.0]), [5])

    assert row.within_limit == 0.0
    assert row.best_return is row.best_cost_return is row.best_normalized_reward is None


def test_bad_arguments():
    dataset = _dataset([1.0, 1.0], [3.0, 3.0])
    with pytest.raises(ValueError, match="a cost limit must be"):
        behavior_rows(dataset, [10, -2])
    nameless = dataclasses.replace(dataset, task=None)
    with pytest.raises(ValueError, match="pass task="):
        behavior_rows(nameless, [10])
    assert behavior_rows(nameless, [10], task="ballcircle") == behavior_rows(dataset, [10])
