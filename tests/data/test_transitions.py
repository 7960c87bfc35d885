import hashlib

import numpy as np
import pytest
import torch
from data_factory import make_columns, make_dataset

from spi_diffusers.data.columns import COLUMNS
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import EpisodeTable, TransitionBatch, TransitionDataset

BALL = get_task("ballcircle")


def tiny():
    """Two episodes of two steps and one step, small enough to compute by hand."""
    return TransitionDataset.from_columns(
        {
            "observation": np.array([[1.0], [2.0], [5.0]]),
            "next_observation": np.array([[2.0], [3.0], [6.0]]),
            "action": np.array([[0.1], [0.2], [0.3]]),
            "reward": np.array([[1.5], [2.0], [10.0]]),
            "cost": np.array([1, 0, 1]),
            "terminated": np.array([[0.0], [0.0], [1.0]]),
            "truncated": np.array([0, 1, 0]),
        }
    )


def test_columns_become_contiguous_tensors_of_the_documented_types():
    batch = tiny().transitions
    assert len(batch) == 3
    for name in COLUMNS:
        column = getattr(batch, name)
        assert column.is_contiguous()
        assert column.dtype == (torch.bool if name in ("terminated", "truncated") else torch.float32)
    assert batch.reward.tolist() == [1.5, 2.0, 10.0]
    assert batch.cost.tolist() == [1.0, 0.0, 1.0]
    assert batch.terminated.tolist() == [False, False, True]
    assert batch.truncated.tolist() == [False, True, False]


def test_tensors_own_their_memory():
    columns = make_columns()
    dataset = TransitionDataset.from_columns(columns)
    before = dataset.sha256
    for values in columns.values():
        values[:] = 0
    assert TransitionDataset(dataset.transitions, dataset.episode_index, dataset.frame_index).sha256 == before


def test_episode_table_by_hand():
    data = tiny()
    episodes = data.episodes
    assert data.episode_index.tolist() == [0, 0, 1]
    assert data.frame_index.tolist() == [0, 1, 0]
    assert (data.num_episodes, len(episodes), data.observation_dim, data.action_dim) == (2, 2, 1, 1)
    assert episodes.start.tolist() == [0, 2]
    assert episodes.length.tolist() == [2, 1]
    assert episodes.return_.tolist() == [3.5, 10.0]
    assert episodes.cost_return.tolist() == [1.0, 1.0]
    assert episodes.terminated.tolist() == [False, True]


def episodes_of(*lengths):
    length = torch.tensor(lengths)
    start = length.cumsum(0) - length
    return EpisodeTable(torch.arange(len(length)), start, length, *[torch.zeros(len(length))] * 3)


def test_rows_of_episodes_by_hand():
    """Episodes in rows 0 to 1, 2 to 4 and 5: the last, then the second, of which only 2 steps."""
    rows, which, step = episodes_of(2, 3, 1).rows(torch.tensor([2, 1]), longest=2)
    assert (rows.tolist(), which.tolist(), step.tolist()) == ([5, 2, 3], [0, 1, 1], [0, 0, 1])
    assert episodes_of(2, 3, 1).rows(torch.tensor([1]))[0].tolist() == [2, 3, 4]


@pytest.mark.parametrize(("most", "kept"), [(1, [1]), (3, [1]), (4, [1, 2]), (6, [1, 2, 0])])
def test_the_first_episodes_within_so_many_rows_by_hand(most, kept):
    assert episodes_of(2, 3, 1).within(torch.tensor([1, 2, 0]), most).tolist() == kept


def test_best_return_within_a_limit_includes_the_limit():
    table = EpisodeTable(*(torch.zeros(3, dtype=torch.int64) for _ in range(3)), *[torch.zeros(0)] * 3)
    table = EpisodeTable(
        table.episode_index,
        table.start,
        table.length,
        return_=torch.tensor([1.0, 5.0, 9.0]),
        cost_return=torch.tensor([2.0, 10.0, 10.5]),
        terminated=torch.zeros(3, dtype=torch.bool),
    )
    assert table.best_return_within(10) == 5.0
    assert table.best_return_within(11) == 9.0
    assert table.best_return_within(1) is None


def test_returns_are_summed_in_double_precision():
    rows = 1000
    columns = make_columns(lengths=(rows,)) | {"reward": np.full(rows, 16777217 / 3, dtype=np.float32)}
    total = TransitionDataset.from_columns(columns).episodes.return_.item()
    assert total == float(np.float32(16777217 / 3)) * rows


def test_gather_takes_rows_of_every_column():
    data = make_dataset()
    index = torch.tensor([4, 0, 4])
    batch = data.transitions.gather(index)
    assert isinstance(batch, TransitionBatch)
    for name in COLUMNS:
        assert torch.equal(getattr(batch, name), getattr(data.transitions, name)[index])
    with pytest.raises(IndexError):
        data.transitions.gather(torch.tensor([len(data)]))


def test_batch_refuses_columns_of_different_length():
    batch = tiny().transitions
    columns = {name: getattr(batch, name) for name in COLUMNS} | {"cost": batch.cost[:2]}
    with pytest.raises(ValueError, match="'cost': 2"):
        TransitionBatch(**columns)


def test_select_episodes_by_position_and_by_mask():
    data = make_dataset(lengths=(3, 2, 4))
    picked = data.select_episodes(torch.tensor([2, 0]))
    assert picked.episode_index.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert picked.frame_index.tolist() == [0, 1, 2, 3, 0, 1, 2]
    rows = torch.tensor([5, 6, 7, 8, 0, 1, 2])
    assert torch.equal(picked.transitions.observation, data.transitions.observation[rows])
    assert picked.episodes.return_.tolist() == data.episodes.return_[[2, 0]].tolist()
    masked = data.select_episodes(torch.tensor([True, False, True]))
    assert masked.sha256 == data.select_episodes(torch.tensor([0, 2])).sha256
    assert data.select_episodes(torch.arange(3)).sha256 == data.sha256
    with pytest.raises(ValueError, match="no episode selected"):
        data.select_episodes(torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="2 entries for 3 episodes"):
        data.select_episodes(torch.tensor([True, False]))


def test_sha256_by_hand_and_sensitive_to_every_column():
    data = tiny()
    digest = hashlib.sha256()
    digest.update(b"observation:float32:(3, 1);" + np.array([1, 2, 5], "<f4").tobytes())
    digest.update(b"next_observation:float32:(3, 1);" + np.array([2, 3, 6], "<f4").tobytes())
    digest.update(b"action:float32:(3, 1);" + np.array([0.1, 0.2, 0.3], "<f4").tobytes())
    digest.update(b"reward:float32:(3,);" + np.array([1.5, 2, 10], "<f4").tobytes())
    digest.update(b"cost:float32:(3,);" + np.array([1, 0, 1], "<f4").tobytes())
    digest.update(b"terminated:bool:(3,);" + bytes([0, 0, 1]) + b"truncated:bool:(3,);" + bytes([0, 1, 0]))
    assert data.sha256 == digest.hexdigest()
    for name in COLUMNS:
        columns = make_columns(terminated=(1,))
        same = TransitionDataset.from_columns(columns, task=BALL, source="elsewhere").sha256
        assert same == make_dataset(terminated=(1,)).sha256
        changed = columns[name].copy()
        changed[-1] = ~changed[-1] if changed.dtype == bool else changed[-1] / 2 + 0.25
        columns[name] = changed
        if name == "truncated":  # the last row must keep an end
            columns["terminated"] = columns["terminated"].copy()
            columns["terminated"][-1] = True
        assert TransitionDataset.from_columns(columns).sha256 != same


def test_repr_says_what_it_is():
    data = make_dataset(task=BALL)
    text = repr(data)
    assert text.startswith(
        "TransitionDataset: made for a test\n  9 transitions, observation of 8, action of 2, task Off"
    )
    assert f"  3 episodes: length 2 to 4, return {data.episodes.return_.min():.4g} to" in text
    assert "  within cost limit 10: 100% of the episodes, best return" in text
    assert len(text.splitlines()) <= 6
    assert repr(data.episodes) in text
    assert repr(data.transitions) == "TransitionBatch: 9 transitions, observation of 8, action of 2, on cpu"
    assert "task unknown" in repr(make_dataset())
