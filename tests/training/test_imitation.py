"""Which episodes a safety weight imitates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.data.transitions import EpisodeTable
from spi_diffusers.training.imitation import PreferredEpisodes, groups_by_start, rank_episodes


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


def one_group(episodes, share):
    return PreferredEpisodes(episodes, share, torch.zeros(len(episodes), dtype=torch.int64))


def picked(preferred, episodes, safety_weight):
    """For every row of the dataset, whether it is imitated."""
    episode = preferred.episode_of(torch.arange(int(episodes.length.sum())))
    return preferred.picks(episode, torch.full((len(episode),), safety_weight))


def test_ranks_are_shares_of_transitions_by_hand():
    episodes = make_episodes([5.0, 1.0, 3.0], [4.0, 0.0, 0.0], lengths=[2, 1, 1])
    ranks = rank_episodes(episodes, torch.arange(3))
    # By return: 1 (one row of four: middle at 1/8), 3 (3/8), 5 (two rows: 3/4). By cost: 4 is the worst (two
    # rows: 1/4), the two free ones share the upper half (3/4).
    assert ranks[:, 0].tolist() == [0.75, 0.125, 0.375]
    assert ranks[:, 1].tolist() == [0.25, 0.75, 0.75]
    assert one_group(episodes, 0.5).episode_of(torch.arange(4)).tolist() == [0, 0, 1, 2]


def test_the_weight_goes_from_the_highest_returns_to_the_least_costs():
    episodes = make_episodes([4.0, 3.0, 2.0, 1.0], [9.0, 1.0, 5.0, 0.0])
    preferred = one_group(episodes, 0.25)
    assert picked(preferred, episodes, 0.0).tolist() == [True, False, False, False]
    assert picked(preferred, episodes, 0.5).tolist() == [False, True, False, False]
    assert picked(preferred, episodes, 1.0).tolist() == [False, False, False, True]


def test_of_equally_costly_episodes_the_one_with_the_lower_return_comes_last():
    # As where a fall ends an episode early: it cost nothing, and earned nothing.
    episodes = make_episodes([2.0, 100.0, 150.0, 90.0], [0.0, 0.0, 30.0, 0.0])
    assert picked(one_group(episodes, 0.5), episodes, 1.0).tolist() == [False, True, False, True]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5), st.integers(1, 30)), min_size=1, max_size=30),
    st.floats(0.01, 1.0),
    st.integers(0, 100),
)
def test_the_share_is_reached_and_passed_by_no_more_than_the_last_scores_episodes(table, share, percent):
    returns, costs, lengths = zip(*table, strict=True)
    episodes = make_episodes(returns, costs, lengths)
    preferred = one_group(episodes, share)
    weight = percent / 100  # a knot: between two the threshold is interpolated
    chosen = picked(preferred, episodes, weight)
    assert chosen.float().mean() >= share - 1e-6
    ranks = rank_episodes(episodes, torch.arange(len(episodes)))
    scores = (1 - 0.95 * weight) * ranks[:, 0] + 0.95 * weight * ranks[:, 1]
    of_episode = chosen[episodes.start]
    least = scores[of_episode].min()
    assert bool((scores[~of_episode] < least + 1e-6).all())
    without_last = float(episodes.length[scores > least + 3e-5].sum() / episodes.length.sum())
    assert without_last < share + 1e-6


def test_everything_is_imitated_with_a_share_of_one():
    episodes = make_episodes([3.0, 1.0], [1.0, 0.0], [3, 2])
    preferred = one_group(episodes, 1.0)
    for weight in (0.0, 0.37, 1.0):
        assert bool(picked(preferred, episodes, weight).all())


@pytest.mark.parametrize("weight", [0.1234, 0.5678, 0.999])
def test_between_knots_the_share_is_nearly_met(weight):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 5000, generator=generator, dtype=torch.float64)
    episodes = make_episodes(values[0].tolist(), values[1].tolist())
    chosen = picked(one_group(episodes, 0.25), episodes, weight)
    assert float(chosen.float().mean()) == pytest.approx(0.25, abs=0.01)


# ---- starts that promise more or less


def contexts(kind, count=400, columns=5, seed=0):
    """Episodes of two contexts, a third in the second one, which one column of their starts shows."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randn(count, columns, generator=generator)
    context = torch.rand(count, generator=generator) < 1 / 3
    starts[:, 2] = torch.where(context, 1.0, 0.0)
    skill = torch.randn(count, generator=generator).double()
    cost = skill + 3.0 + 0.5 * torch.randn(count, generator=generator)
    returns = skill
    if kind == "returns":
        returns = returns - 10.0 * context
    elif kind == "costs":
        cost = cost + 10.0 * context
    elif kind == "both":
        returns, cost = returns + 10.0 * context, cost + 10.0 * context
    elif kind == "spread":
        returns = torch.where(context, 10.0 * returns, returns)
    elif kind == "no costs":
        cost = torch.where(context, 0.0, cost)
    return starts, context, make_episodes(returns.tolist(), cost.clamp_min(0.0).tolist())


@pytest.mark.parametrize("weight", [0.0, 0.33, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["returns", "costs", "both", "spread", "no costs"])
def test_every_context_keeps_its_share_under_every_weight(kind, weight):
    starts, context, episodes = contexts(kind)
    groups = groups_by_start(starts, episodes)
    chosen = picked(PreferredEpisodes(episodes, 0.25, groups), episodes, weight)
    for part in (context, ~context):
        assert float(chosen[part].float().mean()) == pytest.approx(0.25, abs=0.02)
    # They are the best of their context.
    if weight == 0.0:
        for part in (context, ~context):
            assert episodes.return_[part & chosen].min() > episodes.return_[part & ~chosen].max()


def test_in_one_ranking_a_context_would_be_left_without():
    _, context, episodes = contexts("returns")
    assert not bool(picked(one_group(episodes, 0.25), episodes, 0.0)[context].any())


def test_a_start_that_promises_more_and_more_is_parted_again():
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(1000, 3, generator=generator)
    returns = 10.0 * starts[:, 1].double() + torch.randn(1000, generator=generator).double()
    episodes = make_episodes(returns.tolist(), [1.0] * 1000)
    groups = groups_by_start(starts, episodes)
    assert 3 < len(groups.unique()) < 12
    chosen = picked(PreferredEpisodes(episodes, 0.25, groups), episodes, 0.0)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        part = (starts[:, 1] >= low) & (starts[:, 1] < low + 0.2)
        assert 0.15 < float(chosen[part].float().mean()) < 0.35


@pytest.mark.parametrize("count", [1, 59, 100, 1000])
def test_starts_that_tell_nothing_part_nothing(count):
    parted = 0
    for seed in range(20):
        starts, _, episodes = contexts("none", count, columns=20, seed=seed)
        parted += bool(groups_by_start(starts, episodes).any())
    assert parted <= 1


def test_groups_do_not_depend_on_units():
    starts, _, episodes = contexts("both")
    expected = groups_by_start(starts, episodes)
    scaled = make_episodes((episodes.return_ * 1e4).tolist(), (episodes.cost_return * 1e-3).tolist())
    assert torch.equal(groups_by_start(starts * 0.37 + 5.0, scaled), expected)
    assert len(expected.unique()) == 2


@pytest.mark.parametrize("starts", [[0.0] * 200, [0.0] * 199 + [1.0]], ids=["one", "all but one"])
def test_equal_starts_are_one_group(starts):
    episodes = make_episodes(list(range(200)), [0.0] * 200)
    assert not bool(groups_by_start(torch.tensor(starts).unsqueeze(1), episodes).any())
