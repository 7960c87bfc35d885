import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spi_diffusers.data.thinning import thin_episodes, thin_transitions
from spi_diffusers.data.transitions import EpisodeTable


def table(costs, returns, lengths=None):
    zeros = torch.zeros(len(costs), dtype=torch.int64)
    return EpisodeTable(
        episode_index=torch.arange(len(costs)),
        start=zeros,
        length=zeros if lengths is None else torch.as_tensor(lengths),
        return_=torch.as_tensor(np.asarray(returns), dtype=torch.float64),
        cost_return=torch.as_tensor(np.asarray(costs), dtype=torch.float64),
        terminated=zeros.bool(),
    )


def test_crowded_cells_are_thinned_and_lonely_ones_kept():
    # 100 episodes in one corner, one in each of the other three.
    episodes = table([0] * 100 + [0, 50, 50], [*np.linspace(0, 1, 100), 100, 0, 100])
    kept = thin_episodes(episodes, 8, cost_limits=(), keep_per_level=0, bins=2)
    assert len(kept) == 8
    assert {100, 101, 102} <= set(kept.tolist())


def test_the_best_per_limit_and_per_cost_level_are_always_kept():
    rng = np.random.default_rng(0)
    costs, returns = rng.integers(0, 60, 500).astype(float), rng.normal(size=500)
    kept = set(thin_episodes(table(costs, returns), 150, keep_within=10, keep_per_level=1).tolist())
    for limit in (10, 20, 40):
        within = np.flatnonzero(costs <= limit)
        assert set(within[np.argsort(-returns[within])[:10]]) <= kept
    for level in np.unique(costs):
        at = np.flatnonzero(costs == level)
        assert at[np.argmax(returns[at])] in kept


@given(
    points=st.lists(st.tuples(st.integers(0, 50), st.integers(-9, 99)), min_size=1, max_size=80),
    wanted=st.integers(1, 80),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_size_order_and_determinism(points, wanted, seed):
    episodes = table(*zip(*points, strict=True))
    options = {"keep_within": 0, "keep_per_level": 0, "seed": seed}
    kept = thin_episodes(episodes, wanted, **options)
    assert len(kept) == min(wanted, len(points))
    assert torch.equal(kept, kept.unique(sorted=True))
    assert torch.equal(kept, thin_episodes(episodes, wanted, **options))


def test_fewer_than_what_is_always_kept():
    with pytest.raises(ValueError, match="less than the 6 best episodes that are always kept"):
        thin_episodes(table(range(9), range(9)), 3, cost_limits=(5,), keep_within=50, keep_per_level=0)
    with pytest.raises(ValueError, match="at least 1"):
        thin_episodes(table([0], [0]), 0)


def test_transitions_the_best_within_limits_are_chosen_first():
    rng = np.random.default_rng(0)
    costs, returns = rng.integers(0, 60, 500).astype(float), rng.normal(size=500)
    lengths = rng.integers(10, 30, 500)
    kept = thin_transitions(table(costs, returns, lengths), 2000)
    assert lengths[kept].sum() <= 2000
    assert lengths[kept].sum() > 2000 - 30  # no episode is longer, so nothing more would fit
    for limit in (10, 20, 40):
        within = np.flatnonzero(costs <= limit)
        assert set(within[np.argsort(-returns[within])[:8]]) <= set(kept.tolist())


def test_transitions_cover_the_plane_besides_the_best():
    # 100 episodes at (0, 0..1), one in each of the other three corners; the best ones are at cost 0.
    episodes = table([0] * 100 + [0, 50, 50], [*np.linspace(0, 1, 100), 100, 0, 100], [10] * 103)
    kept = thin_transitions(episodes, 80, cost_limits=(10.0,), best_share=0.4, bins=2)
    assert len(kept) == 8
    assert {98, 99, 100} <= set(kept.tolist())  # 40% of 80 are the best three within 10
    assert {101, 102} <= set(kept.tolist())


@given(
    points=st.lists(
        st.tuples(st.integers(0, 50), st.integers(-9, 99), st.integers(1, 20)), min_size=1, max_size=60
    ),
    wanted=st.integers(1, 400),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_transitions_budget_best_and_determinism(points, wanted, share, seed):
    costs, returns, lengths = map(np.array, zip(*points, strict=True))
    episodes, options = table(costs, returns, lengths), {"best_share": share, "seed": seed}
    if wanted < lengths.min():
        with pytest.raises(ValueError, match=f"no episode fits into {wanted} transitions"):
            thin_transitions(episodes, wanted, **options)
        return
    kept = thin_transitions(episodes, wanted, **options)
    assert torch.equal(kept, kept.unique(sorted=True))
    assert torch.equal(kept, thin_transitions(episodes, wanted, **options))
    assert lengths[kept].sum() <= wanted
    if lengths.sum() <= wanted:
        assert len(kept) == len(points)
    within = np.flatnonzero(costs <= 10)
    if len(within):
        best = within[np.argmax(returns[within])]
        assert best in kept or lengths[best] > share * wanted


def test_transitions_share_out_of_range():
    with pytest.raises(ValueError, match=r"best_share must be between 0 and 1, got 1.5"):
        thin_transitions(table([0], [0], [1]), 1, best_share=1.5)
