import numpy as np
import pytest
from benchmark_factory import entry
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.benchmark import statistics
from spi_diffusers.benchmark.statistics import (
    algorithm_statistics,
    bootstrap_interval,
    improvement,
    interquartile_mean,
    performance_profile,
    score_statistic,
    within_limit_interval,
)
from spi_diffusers.evaluation.entries import DivergedRun

SCORES = st.floats(-10, 10, allow_subnormal=False)
BALL = "OfflineBallCircle-v0"


def test_interquartile_mean_by_hand():
    assert interquartile_mean([8.0, 0.0, 2.0, 100.0]) == 5.0  # 0 and 100 are left out
    assert interquartile_mean([1.0, 2.0, 6.0]) == 3.0  # a quarter of three is none
    assert interquartile_mean([-50.0, 1, 2, 3, 4, 5, 6, 90]) == 3.5
    with pytest.raises(ValueError, match="no values"):
        interquartile_mean([])


@given(st.lists(SCORES, min_size=1, max_size=40))
def test_interquartile_mean_is_the_mean_of_the_middle(values):
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    assert interquartile_mean(values) == pytest.approx(np.mean(middle), abs=1e-9)
    assert interquartile_mean(values[::-1]) == pytest.approx(interquartile_mean(values), abs=1e-9)


def test_bootstrap_interval_of_two_seeds_by_hand():
    # Two scores resampled: mean 0, 1/2 or 1 with probability 1/4, 1/2, 1/4: 2.5% and 97.5% are the ends.
    assert bootstrap_interval([[0.0, 1.0]]) == (0.0, 1.0)
    # Within tasks: the gap between the tasks is no uncertainty.
    assert bootstrap_interval([[0.0, 0.0], [1.0, 1.0]], mean_of_groups=True) == (0.5, 0.5)
    low, high = bootstrap_interval([[0.0, 1.0], [10.0, 11.0]], mean_of_groups=True)
    assert (low, high) == (5.0, 6.0)
    assert bootstrap_interval([[0.0], [1.0]]) is None
    assert bootstrap_interval([]) is None


def test_bootstrap_interval_holds_a_single_seed_fixed():
    # The first task's mean goes from 0 to 1, the second's stays 4.
    assert bootstrap_interval([[0.0, 1.0], [4.0]], mean_of_groups=True) == (2.0, 2.5)
    # Repeated so that tasks weigh alike: 0 0 4 4, 0 1 4 4 or 1 1 4 4; half of them are the middle.
    assert bootstrap_interval([[0.0, 1.0], [4.0]]) == (2.0, 2.5)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        low, high = bootstrap_interval([random.normal(3.0, 1.0, 20)], mean_of_groups=True)
        covered += low <= 3.0 <= high
    assert 0.86 <= covered / 150 <= 0.99


@given(st.lists(st.lists(SCORES, min_size=2, max_size=5), min_size=1, max_size=4))
def test_score_statistic_is_within_the_scores(groups):
    statistic = score_statistic(groups)
    least, most = min(map(min, groups)) - 1e-9, max(map(max, groups)) + 1e-9
    for low, middle, high in (
        (least, statistic.mean, most),
        (least, statistic.iqm, most),
        (least, statistic.interval[0], statistic.interval[1] + 1e-9),
        (statistic.mean_interval[0] - 1e-9, statistic.mean_interval[1], most),
    ):
        assert low <= middle <= high
    assert statistic == score_statistic(groups)  # no hidden randomness
    assert statistic.seed_std == pytest.approx(np.mean([np.std(group, ddof=1) for group in groups]))


def test_every_task_weighs_alike_whatever_its_seeds():
    statistic = score_statistic([[0.0, 0.0, 0.0], [1.0]])
    assert (statistic.mean, statistic.iqm) == (0.5, 0.5)
    assert (statistic.seed_std, statistic.interval) == (0.0, (0.5, 0.5))  # of the task with several
    # 1 1 3 3 5 5 and 0 0 0 9 9 9: of twelve the middle six are 1 1 3 3 5 5.
    assert score_statistic([[1.0, 3.0, 5.0], [0.0, 9.0]]).iqm == 3.0
    alone = score_statistic([[0.0], [1.0]])
    assert (alone.iqm, alone.seed_std, alone.interval, alone.mean_interval) == (0.5, None, None, None)
    with pytest.raises(ValueError, match="at least one seed"):
        score_statistic([[1.0], []])


def test_algorithm_statistics_by_hand():
    entries = [
        entry("ballcircle", seed=0, reward=0.6, cost=0.5),
        entry("ballcircle", seed=1, reward=0.8, cost=1.3),
        entry("hoppervelocity", seed=0, reward=0.2, cost=2.0),
        entry("hoppervelocity", seed=1, reward=0.4, cost=1.0),
    ]
    assert algorithm_statistics([*entries[:3], entry("hoppervelocity", seed=1, updates=500)]).updates == (
        100,
        500,
    )
    lost = DivergedRun(BALL, "spi", None, 2, "loss is nan")
    others = [DivergedRun(BALL, "bc", None, 2, "x"), DivergedRun("OfflineCarRun-v0", "spi", None, 2, "x")]
    row = algorithm_statistics(entries, [lost, *others])
    assert row.tasks == (BALL, "OfflineHopperVelocityGymnasium-v1")
    assert row.reward.mean == pytest.approx((0.7 + 0.3) / 2)
    assert row.reward.seed_std == pytest.approx(np.sqrt(0.02))
    assert row.reward.iqm == pytest.approx(0.5)  # of 0.2, 0.4, 0.6, 0.8
    assert row.cost.mean == pytest.approx((0.9 + 1.5) / 2)
    assert (row.safe_tasks, row.seeds, row.diverged) == (1, (2, 2), 1)
    assert (row.worst_reward, row.worst_cost) == (pytest.approx(0.2), pytest.approx(2.0))
    assert row.within_limit == pytest.approx((0.5 + 0.5) / 2)
    assert (row.updates, row.train_seconds) == ((100, 100), 60)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="no entries"):
        algorithm_statistics([])
    with pytest.raises(ValueError, match="several algorithms"):
        algorithm_statistics([entry(), entry(algorithm="bc", extraction="policy")])
    with pytest.raises(ValueError, match="several limits"):
        algorithm_statistics([entry(), entry(seed=1, limit=20.0)])
    with pytest.raises(ValueError, match="seed occurs twice"):
        algorithm_statistics([entry(), entry()])


def runs(*scores):
    return [entry(seed=seed, reward=reward, cost=cost) for seed, (reward, cost) in enumerate(scores)]


def test_improvement_by_hand():
    first, second = runs((0.5, 0.5), (0.9, 0.9)), runs((0.5, 1.0), (0.7, 0.1), (0.95, 1.1), (0.1, 2.0))
    # Of 8 pairs: 0.5 ties once, and beats the two that are over; 0.9 beats all four.
    assert improvement([(first, second)]).probability == (0.5 + 2 + 4) / 8
    assert improvement([(second, first)]).probability == (0.5 + 1 + 0) / 8
    # Two that are over: less cost is better, whatever they earn.
    over = improvement([(runs((0.1, 2.0)), runs((0.9, 3.0)))])
    assert (over.probability, over.interval, over.tasks) == (1.0, None, 1)


def test_improvement_weighs_tasks_alike_and_resamples_seeds():
    sure = (runs((0.9, 0.5)), runs((0.1, 0.5)))
    even = (runs((0.0, 0.5), (1.0, 0.5)), runs((0.5, 0.5)))
    found = improvement([sure, even])
    assert (found.probability, found.interval, found.tasks) == (0.75, (0.5, 1.0), 2)
    assert improvement([sure, even]) == found  # no hidden randomness
    with pytest.raises(ValueError, match="at least one task"):
        improvement([])
    with pytest.raises(ValueError, match="at least one task"):
        improvement([(sure[0], [])])


def test_a_profile_counts_trainings_that_keep_the_limit_and_earn_enough():
    tasks = [runs((0.2, 0.5), (0.8, 1.0), (0.9, 1.5), (0.4, 0.0)), runs((0.4, 0.2))]
    rewards = np.array([0.0, 0.4, 0.41, 1.0])
    expected = [(0.75 + 1) / 2, (0.5 + 1) / 2, 0.25 / 2, 0.0]
    np.testing.assert_allclose(performance_profile(tasks, rewards), expected)


def test_the_interval_of_the_share_within():
    kept = within_limit_interval(runs(*[(0.5, 0.5)] * 10))  # 20 episodes, all within
    assert kept == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    half = within_limit_interval(runs((0.5, 0.5), (0.5, 1.5)))
    assert half[0] < 0.5 < half[1]
    assert half[0] == pytest.approx(1 - half[1])
