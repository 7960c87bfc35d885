"""Batches from files: every row once an epoch, well mixed, the same from the same seed, and resumable."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.data.parquet_rows import ParquetRows
from spi_diffusers.data.streaming import StreamedDataset
from spi_diffusers.data.summary import scanned_summary
from spi_diffusers.data.transitions import DatasetError, TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.data.writing import to_arrow
from spi_diffusers.models import ObservationNormalizer
from spi_diffusers.training.checkpoint import CheckpointError
from spi_diffusers.training.imitation import PreferredEpisodes, groups_by_start
from spi_diffusers.training.sampler import MemorySampler, take_slice
from spi_diffusers.training.streaming_sampler import PIECES_PER_BUFFER, StreamingSampler, cut_into_pieces

SARSA = SPIConfig(next_action="dataset")


def make_data(rows=400, low=-1.0, high=1.0, lengths=(7, 1, 12)):
    """Episodes whose rewards number the rows; every third one terminates."""
    rng = np.random.default_rng(0)
    ends = []
    while not ends or ends[-1] < rows - 1:
        ends.append(min((ends[-1] if ends else -1) + lengths[len(ends) % len(lengths)], rows - 1))
    is_end = np.isin(np.arange(rows), ends)
    terminated = np.isin(np.arange(rows), ends[::3])
    return TransitionDataset.from_columns(
        {
            "observation": rng.normal(size=(rows, 3)).astype(np.float32),
            "next_observation": rng.normal(size=(rows, 3)).astype(np.float32),
            "action": rng.uniform(low, high, size=(rows, 2)).astype(np.float32),
            "reward": np.arange(rows, dtype=np.float32),
            "cost": rng.integers(0, 2, size=rows).astype(np.float32),
            "terminated": terminated,
            "truncated": is_end & ~terminated,
        }
    )


def stream_of(data, folder, files=2, row_group_size=90):
    table, paths = to_arrow(data), []
    edges = np.linspace(0, len(table), files + 1).astype(int)
    for number in range(files):
        paths.append(str(folder / f"train-{number}.parquet"))
        part = table.slice(edges[number], edges[number + 1] - edges[number])
        pq.write_table(part, paths[-1], row_group_size=row_group_size)
    rows = ParquetRows(paths, source="files")
    return StreamedDataset(rows, scanned_summary(rows, progress=False), None)


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def stream(data, tmp_path_factory):
    return stream_of(data, tmp_path_factory.mktemp("stream"))


def make_sampler(stream, config=None, **options):
    normalizer = ObservationNormalizer(observation_dim=3)
    normalizer.set_statistics(*stream.summary.moments["observation"])
    where = {name: options.pop(name) for name in ("rank", "world_size") if name in options}
    return StreamingSampler(sampled(config or SPIConfig(), **options), stream, normalizer, Units(), **where)


def sampled(config, batch_size=10, buffer_size=100, **options):
    run = TrainConfig(dataset="memory", spi=config, batch_size=1, shuffle_buffer=buffer_size, **options)
    run.batch_size = batch_size  # the configuration would refuse a buffer that is smaller
    return run


def draw_rows(sampler, count):
    """Numbers of the rows of the next batches, (count, batch)."""
    return torch.stack([sampler.draw().reward.long() for _ in range(count)])


def test_an_epoch_visits_every_row_once_in_another_order_than_the_next(stream):
    sampler = make_sampler(stream)
    epochs = [draw_rows(sampler, 40).flatten() for _ in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(400))
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(draw_rows(make_sampler(stream), 40).flatten(), epochs[0])
    assert not torch.equal(draw_rows(make_sampler(stream, seed=1), 40).flatten(), epochs[0])


@pytest.mark.parametrize("config", [SPIConfig(), SPIConfig(next_action="dataset")], ids=["", "next action"])
def test_an_epoch_visits_the_selected_episodes_only(stream, data, config):
    mask = torch.arange(stream.num_episodes) % 3 != 0
    part = stream.select_episodes(mask)
    rows = torch.cat([torch.arange(len(data))[data.episode_index == k] for k in mask.nonzero().flatten()])
    if config.next_action == "dataset":
        rows = rows[~data.transitions.truncated[rows]]
    drawn = draw_rows(make_sampler(part, config, batch_size=1), len(rows)).flatten()
    assert torch.equal(drawn.sort().values, rows)


@pytest.mark.parametrize(("batch_size", "buffer_size"), [(7, 64), (64, 64), (33, 1000), (10, 16)])
def test_batches_go_on_over_the_edges_of_buffers_and_epochs(stream, batch_size, buffer_size):
    sampler = make_sampler(stream, batch_size=batch_size, buffer_size=buffer_size)
    rows = draw_rows(sampler, -(-1200 // batch_size)).flatten()
    for epoch in range(3):
        assert torch.equal(rows[400 * epoch : 400 * (epoch + 1)].sort().values, torch.arange(400))


def test_the_buffer_is_never_larger_than_asked_for(stream):
    sampler = make_sampler(stream, buffer_size=64)
    for _ in range(80):
        sampler.draw()
        assert all(len(column) <= 64 for column in sampler._buffer.columns.values())


@given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=6), buffer_size=st.integers(1, 500))
def test_pieces_cover_everything_and_are_short(sizes, buffer_size):
    class Rows:
        row_groups = ()

    class Group:
        pass

    rows, stop = Rows(), 0
    rows.row_groups = []
    for size in sizes:
        group = Group()
        group.start, group.stop = stop, stop + size
        rows.row_groups.append(group)
        stop += size
    pieces = cut_into_pieces(rows, buffer_size)
    assert [row for start, end in pieces for row in range(start, end)] == list(range(stop))
    assert max(end - start for start, end in pieces) <= max(buffer_size // PIECES_PER_BUFFER, 1)


def test_values_are_those_of_sampling_from_memory(stream, data):
    normalizer = ObservationNormalizer(observation_dim=3).fit(data.transitions.observation)
    sampler = make_sampler(stream, batch_size=256, buffer_size=300)
    inputs, batch = sampler.draw(), data.transitions
    rows = inputs.reward.long()
    torch.testing.assert_close(inputs.observation, normalizer(batch.observation)[rows])
    torch.testing.assert_close(inputs.next_observation, normalizer(batch.next_observation)[rows])
    for name in ("action", "cost", "terminated"):
        assert torch.equal(getattr(inputs, name), getattr(batch, name)[rows])
    memory = MemorySampler(sampled(SPIConfig(), 256), data, normalizer, Units()).draw()
    shapes = {name: value.shape for name, value in memory.tensors().items()}
    assert {name: value.shape for name, value in inputs.tensors().items()} == shapes


@pytest.mark.parametrize("buffer_size", [16, 60, 1000])
def test_recorded_next_actions_are_those_of_sampling_from_memory(stream, data, buffer_size):
    """Also across the edges of pieces, row groups, files and buffers."""
    normalizer = ObservationNormalizer(observation_dim=3).fit(data.transitions.observation)
    memory = MemorySampler(sampled(SARSA, 4), data, normalizer, Units())
    sampler = make_sampler(stream, SARSA, batch_size=len(memory._rows), buffer_size=buffer_size)
    inputs = sampler.draw()
    rows = inputs.reward.long()
    assert torch.equal(rows.sort().values, memory._rows)  # an epoch is exactly the rows that may be drawn
    assert torch.equal(inputs.next_action, memory._columns["next_action"][rows])


def test_episodes_are_preferred_as_in_memory(stream, data):
    inputs = make_sampler(stream, SPIConfig(imitation_share=0.3), batch_size=256, buffer_size=300).draw()
    preferred = PreferredEpisodes(data.episodes, 0.3, torch.zeros(data.num_episodes, dtype=torch.int64))
    expected = preferred.picks(preferred.episode_of(inputs.reward.long()), inputs.safety_weight)
    assert torch.equal(inputs.imitated, expected)
    assert 0.2 < inputs.imitated.float().mean() < 0.4


def test_starts_that_promise_more_are_told_apart_as_in_memory(tmp_path):
    """Every second episode starts at 1 instead of 0 and earns more; each of both kinds keeps its share."""
    data = make_data(900, lengths=(9, 9, 9))
    batch = data.transitions
    columns = {name: getattr(batch, name).numpy() for name in batch.__dataclass_fields__}
    easy = np.repeat(np.arange(100) % 2 == 1, 9)
    columns["observation"] = np.where(easy[:, None], 1.0, 0.0) + 0.1 * columns["observation"]
    columns["cost"] = np.where(easy, 0.0, 1.0) + 0.1 * columns["cost"]
    data = TransitionDataset.from_columns(columns)
    stream = stream_of(data, tmp_path, files=3, row_group_size=40)
    assert torch.equal(stream.first_observations(), data.first_observations())
    inputs = make_sampler(stream, SPIConfig(imitation_share=0.3), batch_size=900, buffer_size=300).draw()
    groups = groups_by_start(data.first_observations(), data.episodes)
    assert len(groups.unique()) > 1
    preferred = PreferredEpisodes(data.episodes, 0.3, groups)
    rows = inputs.reward.long()
    expected = preferred.picks(preferred.episode_of(rows), inputs.safety_weight)
    assert torch.equal(inputs.imitated, expected)
    for kind in (easy, ~easy):
        assert 0.25 < inputs.imitated[torch.from_numpy(kind)[rows]].float().mean() < 0.4


def test_no_recorded_next_action_at_all_is_an_error(tmp_path):
    data = make_data(40, lengths=(1,))
    batch = data.transitions
    columns = {name: getattr(batch, name).numpy() for name in batch.__dataclass_fields__}
    columns |= {"terminated": np.zeros(40, bool), "truncated": np.ones(40, bool)}
    stream = stream_of(TransitionDataset.from_columns(columns), tmp_path)
    with pytest.raises(DatasetError, match=r"spi\.next_action=dataset"):
        make_sampler(stream, SARSA).draw()


@settings(max_examples=20)
@given(draws=st.integers(0, 90), buffer_size=st.sampled_from([16, 100, 1000]))
def test_a_state_continues_the_same_draws(stream, draws, buffer_size):
    sampler = make_sampler(stream, buffer_size=buffer_size)
    for _ in range(draws):
        sampler.draw()
    other = make_sampler(stream, buffer_size=buffer_size)
    other.set_state(sampler.get_state())
    for _ in range(3):
        first, second = sampler.draw().tensors(), other.draw().tensors()
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_state_of_a_sampler_in_memory_is_refused(stream, data):
    normalizer = ObservationNormalizer(observation_dim=3).fit(data.transitions.observation)
    memory = MemorySampler(sampled(SPIConfig()), data, normalizer, Units())
    with pytest.raises(CheckpointError, match="did not stream"):
        make_sampler(stream).set_state(memory.get_state())


def test_the_state_of_files_that_are_cut_otherwise_is_refused(stream, data, tmp_path):
    other = stream_of(data, tmp_path, row_group_size=50)
    assert other.sha256 == stream.sha256
    with pytest.raises(CheckpointError, match="row groups differ from those at the start"):
        make_sampler(other).set_state(make_sampler(stream).get_state())


def test_processes_take_slices_of_the_same_batches(stream):
    whole = make_sampler(stream)
    ranks = [make_sampler(stream, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(50):
        expected, parts = whole.draw().tensors(), [sampler.draw().tensors() for sampler in ranks]
        for name, value in expected.items():
            dim = whole.draws[name].batch_dim if name in whole.draws else 0
            for rank, part in enumerate(parts):
                assert torch.equal(take_slice(value, dim, rank, 2), part[name]), name
    with pytest.raises(ValueError, match="batch_size must be a multiple"):
        make_sampler(stream, world_size=3)


def test_batches_are_distributed_as_from_memory(tmp_path):
    """Rewards grow with the row's number, the worst case for a buffer: batch means tell how well it mixes."""
    data = make_data(6400, lengths=(50,))
    stream = stream_of(data, tmp_path, row_group_size=1000)
    normalizer = ObservationNormalizer(observation_dim=3).fit(data.transitions.observation)

    def batch_means(sampler):
        return torch.stack([sampler.draw().reward.mean() for _ in range(1000)])

    memory = batch_means(MemorySampler(sampled(SPIConfig(), 64), data, normalizer, Units()))
    spread = 6400 / 12**0.5 / 64**0.5  # of the mean of 64 uniform numbers: 231
    assert memory.std() == pytest.approx(spread, rel=0.1)
    for buffer_size, widening in ((6400, 1.1), (3200, 2.5)):
        streamed = batch_means(make_sampler(stream, batch_size=64, buffer_size=buffer_size))
        # Ten epochs: every row ten times, so the mean is exact where memory's only comes close.
        assert streamed.mean() == pytest.approx(3199.5, abs=0.01)
        assert memory.mean() == pytest.approx(3199.5, abs=4 * spread / 1000**0.5)
        assert 0.9 * spread < streamed.std() < widening * spread


def test_actions_outside_the_range_are_refused_before_they_are_read_or_clipped(tmp_path):
    data = make_data(low=-2.0, high=2.0)
    stream = stream_of(data, tmp_path)
    reaches = r"'action' reaches from \[-1\.9.*outside \[-1, 1\]\. Give the environment's range"
    with pytest.raises(DatasetError, match=reaches):
        make_sampler(stream, action_low=-1.0, action_high=1.0)
    inputs = make_sampler(stream, clip_actions=True).draw()
    assert torch.equal(inputs.action, data.transitions.action.clamp(-1, 1)[inputs.reward.long()])
    inside = make_sampler(stream, action_low=-2.0, action_high=2.0).draw()
    torch.testing.assert_close(inside.action * 2, data.transitions.action[inside.reward.long()])
