"""Which episodes are held out: the same ones for ever, from their number, the seed and the share alone."""

import dataclasses

import numpy as np
import pytest
import torch

from spi_diffusers.data.holdout import held_out_episodes, holdout_notice, load_held_out
from spi_diffusers.data.streaming import open_stream
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import write_parquet_dataset


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


# ---- their transitions


def numbered(episodes: int) -> TransitionDataset:
    """Episodes of 1 to 4 steps; each step's reward is the number of its episode."""
    number = np.repeat(np.arange(episodes), np.arange(episodes) % 4 + 1)
    last = np.append(np.diff(number) > 0, True)
    states = np.random.default_rng(0).normal(size=(len(number), 2))
    return TransitionDataset.from_columns(
        {
            "observation": states,
            "action": np.zeros((len(number), 1)),
            "reward": number.astype(float),
            "cost": np.ones(len(number)),
            "next_observation": states,
            "terminated": last,
            "truncated": np.zeros(len(number), dtype=bool),
        }
    )


@pytest.mark.parametrize(("most", "episodes"), [(1000, [15, 20, 25, 36]), (6, [15, 20]), (1, [15])])
def test_held_out_episodes_in_memory_and_streamed(tmp_path, most, episodes):
    """Of 4, 1, 2 and 1 steps: the first of them up to so many, but at least one."""
    data = numbered(40)
    write_parquet_dataset(data, tmp_path, config_name="robot")
    stream = open_stream(tmp_path, progress=False)
    found = [load_held_out(source, 0, 0.1, most) for source in (data, stream)]
    for one in found:
        assert one.transitions.reward.unique().tolist() == episodes
        assert one.num_episodes == len(episodes)
    for field in dataclasses.fields(found[0].transitions):
        assert torch.equal(*(getattr(one.transitions, field.name) for one in found)), field.name


def test_where_none_is_held_out_there_is_nothing_to_load():
    assert load_held_out(numbered(19), 0, 0.1, 1000) is None
    assert load_held_out(numbered(40), 0, 0.0, 1000) is None
