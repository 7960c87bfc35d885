"""Which episodes are held out: the same ones for ever, from their number, the seed and the share alone."""

import pytest

from spi_diffusers.data.holdout import held_out_episodes, holdout_notice


def test_they_never_change():
    """A policy that was trained today must be judged by the same episodes in years."""
    assert held_out_episodes(40, 0, 0.1).nonzero().flatten().tolist() == [15, 20, 25, 36]
    assert held_out_episodes(40, 1, 0.1).nonzero().flatten().tolist() == [29, 30, 38, 39]


@pytest.mark.parametrize(
    ("episodes", "share", "count"),
    [(20, 0.1, 2), (20, 0.01, 1), (20, 0.999, 19), (400, 0.25, 100), (19, 0.5, 0), (1, 0.5, 0), (400, 0, 0)],
)
def test_how_many(episodes, share, count):
    mask = held_out_episodes(episodes, 3, share)
    assert (len(mask), int(mask.sum())) == (episodes, count)


def test_a_larger_share_adds_episodes():
    small, large = (held_out_episodes(200, 0, share) for share in (0.1, 0.3))
    assert bool((large | ~small).all())


def test_too_few_episodes_are_told_of():
    assert "there are only 19, and at least 20 are needed" in holdout_notice(19, 0.1)
    assert holdout_notice(20, 0.1) == holdout_notice(19, 0) == ""
