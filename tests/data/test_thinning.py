import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spi_diffusers.data.thinning import thin_episodes
from spi_diffusers.data.transitions import EpisodeTable


def table(costs, returns):
    zeros = torch.zeros(len(costs), dtype=torch.int64)
    return EpisodeTable(
        episode_index=torch.arange(len(costs)),
        start=zeros,
        length=zeros,
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
