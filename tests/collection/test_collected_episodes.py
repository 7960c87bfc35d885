import numpy as np
import pytest
from safetensors.numpy import save_file

from spi_diffusers.collection.episodes import Episode, EpisodeFilter, read_shards, write_shard
from spi_diffusers.collection.errors import CollectionError
from spi_diffusers.data.tasks import get_task

BALL = get_task("ballcircle")  # reference returns 0.4 to 881.5: a cell of the grid is 22 high


def episode(length, terminated=False, seed=0):
    rng = np.random.default_rng(seed)
    return Episode(
        rng.normal(size=(length + 1, 8)).astype(np.float32),
        rng.uniform(-1, 1, size=(length, 2)).astype(np.float32),
        rng.normal(size=length).astype(np.float32),
        rng.integers(2, size=length).astype(np.float32),
        terminated,
    )


def test_filter_fills_a_cell_and_then_takes_only_what_is_better():
    chosen = EpisodeFilter(BALL, 80.0)
    assert [chosen.keep(400.0, 10.0) for _ in range(14)] == [True] * 12 + [False] * 2
    assert not chosen.keep(399.0, 10.0)  # the same cell
    assert chosen.keep(500.0, 10.0)  # a cell of its own
    assert chosen.keep(401.0, 10.0)  # better than the worst of the best 12 at this cost
    assert chosen.keep(399.0, 11.0)  # among the first at this cost, though its cell is full


def test_filter_drops_what_costs_too_much():
    chosen = EpisodeFilter(BALL, 20.0)
    assert chosen.keep(1.0, 20.0)
    assert not chosen.keep(900.0, 21.0)


def test_episodes_on_disk_come_back_in_order(tmp_path):
    episodes = [episode(3), episode(1, terminated=True, seed=1), episode(5, seed=2)]
    write_shard(episodes[:2], tmp_path / "a.safetensors")
    write_shard(episodes[2:], tmp_path / "b.safetensors")
    found = read_shards([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    assert [e.terminated for e in found] == [False, True, False]
    for one, other in zip(episodes, found, strict=True):
        for name in ("observation", "action", "reward", "cost"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_returns_and_rounding():
    one = episode(200)
    assert one.return_ == pytest.approx(one.reward.astype(np.float64).sum())
    assert one.cost_return == one.cost.sum()
    rounded = one.rounded()
    assert (rounded.observation.view(np.uint32) & 0xFFF == 0).all()
    np.testing.assert_allclose(rounded.observation, one.observation, rtol=2**-12)
    assert rounded.action is one.action
    assert rounded.return_ == one.return_


def test_files_that_are_no_shards_are_named(tmp_path):
    whole, cut, foreign = (tmp_path / f"{name}.safetensors" for name in ("whole", "cut", "foreign"))
    write_shard([episode(9)], whole)
    cut.write_bytes(whole.read_bytes()[:-20])
    save_file({"observation": np.zeros(3)}, foreign)
    with pytest.raises(CollectionError, match=r"cut.safetensors: is not a file of collected episodes"):
        read_shards([whole, cut])
    with pytest.raises(CollectionError, match=r"foreign.*lacks action, cost, length, reward, terminated"):
        read_shards([foreign])
    with pytest.raises(CollectionError, match="nowhere"):
        read_shards([tmp_path / "nowhere.safetensors"])
