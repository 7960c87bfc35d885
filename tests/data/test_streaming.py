"""Reading in parts gives what reading at once gives: rows, and errors."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_factory import make_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streaming_factory import (
    BALL,
    LENGTHS,
    assert_same_summary,
    columns_to_arrow,
    open_stream_rows,
    split_files,
    spoiled,
)

from spi_diffusers.data import memory, parquet_rows, streaming
from spi_diffusers.data.columns import COLUMNS, DatasetError
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.streaming import exceeds_memory, open_stream, open_transitions, sample_episodes
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import to_arrow, write_parquet_dataset

pytestmark = pytest.mark.usefixtures("small_batches")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 53), min_size=2, max_size=12, unique=True))
def test_any_rows_can_be_read(split, data, cuts):
    cuts = sorted(cuts)[: len(cuts) // 2 * 2]
    ranges = list(zip(cuts[::2], cuts[1::2], strict=True))
    stream = open_stream(split, BALL, progress=False)
    rows = torch.cat([torch.arange(start, stop) for start, stop in ranges])
    wanted = data.transitions.gather(rows)
    parts = list(stream.read(ranges))
    numbers = torch.cat([torch.arange(first, first + len(batch)) for first, batch in parts])
    assert torch.equal(numbers, rows)
    for name in COLUMNS:
        assert torch.equal(torch.cat([getattr(batch, name) for _, batch in parts]), getattr(wanted, name))


def test_episodes_are_sampled_whole(split, data):
    stream = open_stream(split, BALL, progress=False)
    sample = sample_episodes(stream, 30, seed=0)
    assert 0 < len(sample) <= 30
    fingerprints = {data.select_episodes(torch.tensor([k])).sha256 for k in range(7)}
    for k in range(sample.num_episodes):
        assert sample.select_episodes(torch.tensor([k])).sha256 in fingerprints
    assert sample_episodes(stream, 30, seed=0).sha256 == sample.sha256
    assert len({sample_episodes(stream, 30, seed=s).sha256 for s in range(5)}) > 1
    assert sample_episodes(stream, 1, seed=0).num_episodes == 1
    assert sample_episodes(stream, 53, seed=0).sha256 == data.sha256


def test_selected_episodes_are_those_of_the_data_in_memory(split, data):
    mask = torch.tensor([True, False, True, True, False, False, True])
    part, expected = (
        open_stream(split, BALL, progress=False).select_episodes(mask),
        data.select_episodes(mask),
    )
    assert (len(part), part.num_episodes) == (len(expected), 4)
    assert torch.equal(part.first_observations(), expected.first_observations())
    assert sample_episodes(part, 1000, seed=0).sha256 == expected.sha256
    assert sample_episodes(expected, 1000, seed=0) is expected
    assert sample_episodes(expected, 20, seed=1).sha256 == sample_episodes(part, 20, seed=1).sha256
    for name in part.summary.moments:
        for ours, theirs in zip(part.extremes[name], expected.extremes[name], strict=True):
            np.testing.assert_allclose(ours, theirs)
    for name, (mean, std) in part.summary.moments.items():
        column = getattr(expected.transitions, name).double()
        torch.testing.assert_close(mean, column.mean(0))
        torch.testing.assert_close(std, column.std(0, correction=0))


def test_nulls_and_missing_columns_are_refused(tmp_path):
    table = columns_to_arrow(spoiled(""))
    reward = table.column("reward").to_pylist()
    reward[44] = None
    index = table.column_names.index("reward")
    split_files(tmp_path / "null", table.set_column(index, "reward", pa.array(reward, pa.float32())))
    with pytest.raises(DatasetError, match=r"'reward' has 1 missing values \(null\), first in row 44"):
        open_stream(tmp_path / "null", BALL, progress=False)
    split_files(tmp_path / "missing", table.drop_columns(["cost"]))
    with pytest.raises(DatasetError, match=r"column 'cost' is missing"):
        open_stream(tmp_path / "missing", BALL, progress=False)


def test_lists_of_no_fixed_length_are_read_as_well(tmp_path, data):
    table = to_arrow(data)
    for name in ("observation", "next_observation", "action"):
        column = table.column(name).cast(pa.list_(pa.float32()))
        table = table.set_column(table.column_names.index(name), name, column)
    split_files(tmp_path, table)
    assert_same_summary(open_stream(tmp_path, BALL, progress=False), data)


def test_without_index_columns_the_ends_alone_count(tmp_path, data):
    split_files(tmp_path, to_arrow(data).drop_columns(["episode_index", "frame_index"]))
    assert_same_summary(open_stream(tmp_path, BALL, progress=False), data)


def test_damage_is_noticed_when_rows_are_read(folder):
    stream = open_stream(folder, BALL)
    path = folder / BALL.name / "train-00000-of-00001.parquet"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        DatasetError, match=r"train-00000-of-00001\.parquet: rows 0 to 52 cannot be read.*CRC"
    ):
        list(stream.read([(0, 53)]))
    path.write_bytes(content[:-20])
    with pytest.raises(DatasetError, match="is not a parquet file, or it is cut off or damaged"):
        open_stream(folder, BALL, progress=False)


def test_passing_troubles_are_overcome_where_they_happened(split, data, monkeypatch, caplog):
    stream = open_stream(split, BALL, progress=False)
    read, troubles = parquet_rows.ParquetRows._batches, [TimeoutError("slow"), ConnectionError("gone")] * 2

    def batches(self, group, stop, columns):
        for number, batch in enumerate(read(self, group, stop, columns)):
            if number == 1 and troubles and group.index == 1:
                raise troubles.pop()
            yield batch

    monkeypatch.setattr(parquet_rows.ParquetRows, "_batches", batches)
    monkeypatch.setattr("spi_diffusers.data.network.FIRST_PAUSE", 0.001)
    parts = [batch for _, batch in stream.read([(2, 30), (33, 53)])]
    rows = torch.cat([torch.arange(2, 30), torch.arange(33, 53)])
    assert torch.equal(torch.cat([batch.reward for batch in parts]), data.transitions.reward[rows])
    assert not troubles
    assert "from row 11 failed (ConnectionError: gone); trying again" in caplog.text
    troubles[:] = [TimeoutError("slow")] * 99
    with pytest.raises(
        DatasetError, match=r"train-00000-of-00003\.parquet: rows 7 to 13 cannot be read.*slow"
    ):
        list(stream.read([(0, 53)]))


def test_bad_values_that_the_statistics_hide_are_found_when_they_are_read(tmp_path):
    split_files(tmp_path, columns_to_arrow(spoiled("")))
    stream = open_stream(tmp_path, BALL, progress=False)
    split_files(tmp_path, columns_to_arrow(spoiled("nan")))
    stream = streaming.StreamedDataset(open_stream_rows(tmp_path), stream.summary, BALL)
    assert len(list(stream.read([(0, 40)]))) > 0
    with pytest.raises(DatasetError, match=r"'next_observation' has 1 values that are not finite.*row 41"):
        list(stream.read([(38, 44)]))


def test_actions_are_clipped_if_asked_for(tmp_path):
    split_files(tmp_path, columns_to_arrow(spoiled("wild action")))
    stream = open_stream(tmp_path, BALL, clip_actions=True, progress=False)
    assert stream.sha256 == load_transitions(tmp_path, BALL, clip_actions=True).sha256
    ((_, batch),) = stream.read([(50, 51)])
    assert batch.action[0, 1] == 1.0


def test_what_cannot_be_streamed_says_how_to_make_it_so(tmp_path):
    np.savez(tmp_path / "x.npz", a=1)
    for dataset in (tmp_path / "x.npz", "YYY-45/DSRL", "/nowhere"):
        with pytest.raises(DatasetError, match="cannot be streamed; only the parquet layout can"):
            open_stream(dataset, BALL)
    with pytest.raises(DatasetError, match="is local; revision='v1' applies to Hub datasets only"):
        open_stream(tmp_path, BALL, revision="v1")
    assert open_stream("embedded", BALL).source == load_transitions(None, BALL).source


def test_zero_rows_are_refused(tmp_path, data):
    split_files(tmp_path, to_arrow(data).slice(0, 0), files=1)
    with pytest.raises(DatasetError, match="zero rows"):
        open_stream(tmp_path, BALL)


def test_large_data_is_streamed_and_small_data_is_not(untouched, monkeypatch):
    size = open_stream(untouched, BALL).rows.tensor_bytes
    assert size == 53 * (4 * (8 + 8 + 2 + 2) + 2 + 16)
    for available, copies, expected in ((2 * size, 1, False), (2 * size - 2, 1, True), (3 * size, 2, True)):
        monkeypatch.setattr(streaming, "available_memory", lambda available=available: available)
        assert exceeds_memory(untouched, BALL, copies=copies) is expected
        monkeypatch.setattr(streaming, "MEMORY_SHARE", 0.5 / copies)
        found = open_transitions(untouched, BALL)
        monkeypatch.setattr(streaming, "MEMORY_SHARE", 0.5)
        assert isinstance(found, TransitionDataset) is not expected
        assert found.sha256 == make_dataset(task=BALL, lengths=LENGTHS, terminated=(1, 4)).sha256
    # What cannot be streamed, or is not there, is for the loader to speak about.
    assert not exceeds_memory(untouched / "none", BALL)


def test_rows_that_are_declared_but_not_there(tmp_path):
    folder = write_parquet_dataset(make_dataset(), tmp_path / "set", config_name="c")
    (folder / "c" / "stats.json").unlink()  # else it tells that the file has changed
    path = folder / "c" / "train-00000-of-00001.parquet"
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    # 9, as the format writes it; the last one is the row group's number of rows, then comes the file's.
    places = [place for place in range(footer, len(content) - 8) if content[place] == 2 * 9]
    changed = bytearray(content)
    for place in places[-2:]:
        changed[place] = 2 * 12
    path.write_bytes(changed)
    with pytest.raises(
        DatasetError, match=r"parquet: declares rows 0 to 11, but holds none from 9 on; it is"
    ):
        open_stream(folder, progress=False)


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUPS", ())
    machine = memory.available_memory()
    assert machine > 1 << 20
    monkeypatch.setattr(memory, "_CGROUPS", ((str(tmp_path), "limit", "usage", "cached"),))
    assert memory.available_memory() == pytest.approx(machine, rel=0.5)
    (tmp_path / "usage").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 1\ncached 300\n")
    (tmp_path / "limit").write_text("max\n")
    assert memory.available_memory() == pytest.approx(machine, rel=0.5)
    (tmp_path / "limit").write_text("1000\n")
    assert memory.available_memory() == 600
