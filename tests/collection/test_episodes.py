import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save_file

from spi_diffusers.collection.config import CollectionError
from spi_diffusers.collection.episodes import (
    Episode,
    EpisodeFilter,
    read_shards,
    round_significant,
    write_shard,
)
from spi_diffusers.data.tasks import get_task

BALL = get_task("ballcircle")  # reference returns 0.4 to 881.5: a cell of the grid is 22 high

LARGEST = 2.0**127
FLOATS = st.floats(-LARGEST, LARGEST, width=32)


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
    assert [chosen.offer(400.0, 10.0) for _ in range(14)] == [True] * 12 + [False] * 2
    assert not chosen.offer(399.0, 10.0)  # the same cell
    assert chosen.offer(500.0, 10.0)  # a cell of its own
    assert chosen.offer(401.0, 10.0)  # better than the worst of the best 12 at this cost
    assert chosen.offer(399.0, 11.0)  # among the first at this cost, though its cell is full


def test_filter_drops_what_costs_too_much():
    chosen = EpisodeFilter(BALL, 20.0)
    assert chosen.offer(1.0, 20.0)
    assert not chosen.offer(900.0, 21.0)
    assert chosen.count == 1


def test_filter_knows_the_best_within_each_limit():
    chosen = EpisodeFilter(BALL, None)  # the task's reference maximum
    assert chosen.best_within == {10.0: None, 20.0: None, 40.0: None, 80.0: None}
    for return_, cost_return in ((300.0, 15.0), (200.0, 25.0), (900.0, 81.0)):
        chosen.offer(return_, cost_return)
    assert chosen.best_within == {10.0: None, 20.0: 300.0, 40.0: 300.0, 80.0: 300.0}


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


@given(
    values=arrays.arrays(np.float32, arrays.array_shapes(max_dims=3), elements=FLOATS),
)
def test_rounding_bits_error_and_shape(values):
    rounded = round_significant(values)
    assert rounded.shape == values.shape
    assert rounded.dtype == np.float32
    assert (rounded.view(np.uint32) & 0xFFF == 0).all()
    error = abs(rounded.astype(np.float64) - values)
    # Half a unit in the last place kept; below 2**-126 float32 has fewer bits.
    assert (error <= np.maximum(2.0**-12 * abs(values.astype(np.float64)), 2.0**-138)).all()
    np.testing.assert_array_equal(round_significant(rounded), rounded)
    np.testing.assert_array_equal(round_significant(-values), -rounded)


@given(one=FLOATS, other=FLOATS)
def test_rounding_keeps_the_order(one, other):
    low, high = round_significant(np.array(sorted([one, other]), dtype=np.float32))
    assert low <= high


def test_rounding_by_hand():
    step = 2.0**-11  # between neighbours of 12 bits in [1, 2)
    values = np.array([1 + 0.4 * step, 1 + 0.5 * step, 1 + 0.6 * step, 2 - 0.5 * step, 0.0, -1.0, 3.0])
    expected = [
        1.0,
        1 + step,
        1 + step,
        2.0,
        0.0,
        -1.0,
        3.0,
    ]  # half goes away from zero, also over a power of 2
    assert round_significant(values.astype(np.float32)).tolist() == expected


def test_rounding_of_strided_input():
    values = np.linspace(-1, 1, 40, dtype=np.float32)
    grid = values.reshape(8, 5)
    np.testing.assert_array_equal(round_significant(grid[::2, ::3]), round_significant(grid)[::2, ::3])
    before = values.copy()
    round_significant(values)
    np.testing.assert_array_equal(values, before)
