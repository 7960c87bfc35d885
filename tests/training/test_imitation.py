"""Which episodes a safety weight imitates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.data.transitions import EpisodeTable
from spi_diffusers.training.imitation import PreferredEpisodes


def make_episodes(returns, costs, lengths=None):
    length = torch.tensor([1] * len(returns) if lengths is None else lengths)
    return EpisodeTable(
        episode_index=torch.arange(len(length)),
        start=length.cumsum(0) - length,
        length=length,
        return_=torch.tensor(returns, dtype=torch.float64),
        cost_return=torch.tensor(costs, dtype=torch.float64),
        terminated=torch.zeros(len(length), dtype=torch.bool),
    )


def picked(preferred, episodes, safety_weight):
    """For every row of the dataset, whether it is imitated."""
    rows = torch.arange(int(episodes.length.sum()))
    return preferred.picks(preferred.ranks(rows), torch.full((len(rows),), safety_weight))


def test_ranks_are_shares_of_transitions_by_hand():
    episodes = make_episodes([5.0, 1.0, 3.0], [4.0, 0.0, 0.0], lengths=[2, 1, 1])
    ranks = PreferredEpisodes(episodes, 0.5).ranks(torch.arange(4))
    # By return: 1 (one row of four: middle at 1/8), 3 (3/8), 5 (two rows: 3/4). By cost: 4 is the worst (two
    # rows: 1/4), the two free ones share the upper half (3/4).
    assert ranks[:, 0].tolist() == [0.75, 0.75, 0.125, 0.375]
    assert ranks[:, 1].tolist() == [0.25, 0.25, 0.75, 0.75]


def test_the_weight_goes_from_the_highest_returns_to_the_least_costs():
    episodes = make_episodes([4.0, 3.0, 2.0, 1.0], [9.0, 1.0, 5.0, 0.0])
    preferred = PreferredEpisodes(episodes, 0.25)
    assert picked(preferred, episodes, 0.0).tolist() == [True, False, False, False]
    assert picked(preferred, episodes, 0.5).tolist() == [False, True, False, False]
    assert picked(preferred, episodes, 1.0).tolist() == [False, False, False, True]


def test_of_equally_costly_episodes_the_one_with_the_lower_return_comes_last():
    # As where a fall ends an episode early: it cost nothing, and earned nothing.
    episodes = make_episodes([2.0, 100.0, 150.0, 90.0], [0.0, 0.0, 30.0, 0.0])
    assert picked(PreferredEpisodes(episodes, 0.5), episodes, 1.0).tolist() == [False, True, False, True]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5), st.integers(1, 30)), min_size=1, max_size=30),
    st.floats(0.01, 1.0),
    st.integers(0, 100),
)
def test_the_share_is_reached_and_passed_by_no_more_than_the_last_scores_episodes(table, share, percent):
    returns, costs, lengths = zip(*table, strict=True)
    episodes = make_episodes(returns, costs, lengths)
    preferred = PreferredEpisodes(episodes, share)
    weight = percent / 100  # a knot: between two the threshold is interpolated
    chosen = picked(preferred, episodes, weight)
    assert chosen.float().mean() >= share - 1e-6
    ranks = preferred.ranks(episodes.start)
    scores = (1 - 0.95 * weight) * ranks[:, 0] + 0.95 * weight * ranks[:, 1]
    of_episode = chosen[episodes.start]
    least = scores[of_episode].min()
    assert bool((scores[~of_episode] < least + 1e-6).all())
    without_last = float(episodes.length[scores > least + 3e-5].sum() / episodes.length.sum())
    assert without_last < share + 1e-6


def test_everything_is_imitated_with_a_share_of_one():
    episodes = make_episodes([3.0, 1.0], [1.0, 0.0], [3, 2])
    preferred = PreferredEpisodes(episodes, 1.0)
    for weight in (0.0, 0.37, 1.0):
        assert bool(picked(preferred, episodes, weight).all())


@pytest.mark.parametrize("weight", [0.1234, 0.5678, 0.999])
def test_between_knots_the_share_is_nearly_met(weight):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 5000, generator=generator, dtype=torch.float64)
    episodes = make_episodes(values[0].tolist(), values[1].tolist())
    chosen = picked(PreferredEpisodes(episodes, 0.25), episodes, weight)
    assert float(chosen.float().mean()) == pytest.approx(0.25, abs=0.01)
