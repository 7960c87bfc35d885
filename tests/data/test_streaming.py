"""Reading in parts gives what reading at once gives: rows, statistics, fingerprint, and errors."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_factory import make_columns, make_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spi_diffusers.data import memory, parquet_rows, streaming
from spi_diffusers.data.columns import COLUMNS, DatasetError
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.streaming import exceeds_memory, open_stream, open_transitions
from spi_diffusers.data.summary import scanned_summary
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.data.writing import to_arrow, write_parquet_dataset

BALL = get_task("ballcircle")
LENGTHS = (7, 1, 12, 5, 9, 3, 16)  # 53 rows
CARD = f"---\nconfigs:\n- config_name: {BALL.name}\n  data_files: {BALL.name}/train-*.parquet\n---\n"


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(parquet_rows, "BATCH_ROWS", 4)


def split_files(folder, table, files=3, row_group_size=7):
    """Replace the rows of a folder's config by several files with small row groups, and no statistics."""
    config = folder / BALL.name
    shutil.rmtree(config, ignore_errors=True)
    config.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    edges = np.linspace(0, len(table), files + 1).astype(int)
    for number in range(files):
        part = table.slice(edges[number], edges[number + 1] - edges[number])
        path = config / f"train-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(part, path, row_group_size=row_group_size, write_page_checksum=True)
    return folder


@pytest.fixture(scope="module")
def data():
    return make_dataset(task=BALL, lengths=LENGTHS, terminated=(1, 4))


@pytest.fixture(scope="module")
def untouched(data, tmp_path_factory):
    return write_parquet_dataset(data, tmp_path_factory.mktemp("written") / "set")


@pytest.fixture
def folder(untouched, tmp_path):
    return shutil.copytree(untouched, tmp_path / "set")


@pytest.fixture(scope="module")
def split(data, tmp_path_factory):
    return split_files(tmp_path_factory.mktemp("split"), to_arrow(data))


def assert_same_summary(stream, data):
    assert stream.sha256 == data.sha256
    assert (len(stream), stream.num_episodes) == (len(data), data.num_episodes)
    assert (stream.observation_dim, stream.action_dim) == (data.observation_dim, data.action_dim)
    observation = data.transitions.observation.double()
    expected = (observation.mean(0), observation.std(0, correction=0))
    torch.testing.assert_close(stream.summary.moments["observation"], expected, atol=1e-12, rtol=0)
    assert Units.of(stream) == Units.of(data)
    for name in ("episode_index", "start", "length", "terminated"):
        assert torch.equal(getattr(stream.episodes, name), getattr(data.episodes, name)), name
    for name in ("return_", "cost_return"):
        torch.testing.assert_close(getattr(stream.episodes, name), getattr(data.episodes, name))


@pytest.fixture
def scans(monkeypatch):
    """The datasets whose rows were read for their statistics."""
    sources = []
    scan = streaming.scanned_summary

    def noted(rows, *args, **kwargs):
        sources.append(rows)
        return scan(rows, *args, **kwargs)

    monkeypatch.setattr(streaming, "scanned_summary", noted)
    return sources


def test_statistics_beside_the_rows_are_used_if_the_checksums_are_right(untouched, data, monkeypatch):
    monkeypatch.setattr(streaming, "scanned_summary", None)  # not called
    stream = open_stream(untouched, BALL)
    assert_same_summary(stream, data)
    # Bit for bit what in-memory training normalises with.
    observation = data.transitions.observation.double()
    mean, std = stream.summary.moments["observation"]
    assert torch.equal(mean, observation.mean(0))
    assert torch.equal(std, observation.std(0, correction=0))
    assert repr(stream).splitlines()[1:] == repr(data).splitlines()[1:]
    assert repr(stream).startswith(f"StreamedDataset: {untouched} (OfflineBallCircle-v0)\n")


def test_without_them_one_pass_finds_the_same(split, data, scans):
    stream = open_stream(split, BALL, progress=False)
    assert len(scans) == 1
    assert_same_summary(stream, data)


def change_stats(folder, **changes):
    path = folder / BALL.name / "stats.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "what",
    [
        *("rows", "episodes", "broken", "count", "files", "dimensions", "no episodes"),
        *("no digest", "empty digest", "negative std", "no std of costs", "infinite mean reward"),
    ],
)
def test_statistics_that_do_not_belong_to_the_rows_are_not_used(folder, data, caplog, scans, what):
    config = folder / BALL.name
    if what == "rows":
        other = make_dataset(task=BALL, lengths=LENGTHS, terminated=(1, 4), seed=1)
        shutil.copy(
            write_parquet_dataset(other, folder.parent / "other")
            / BALL.name
            / "train-00000-of-00001.parquet",
            config,
        )
        data = other
    elif what == "episodes":
        pq.write_table(pq.read_table(config / "episodes.parquet"), config / "episodes.parquet", version="1.0")
    elif what == "no episodes":
        (config / "episodes.parquet").unlink()
    elif what == "broken":
        (config / "stats.json").write_text("{")
    elif what == "count":
        change_stats(folder, num_transitions=52)
    elif what == "files":
        change_stats(folder, files=[])
    elif what == "dimensions":
        columns = json.loads((config / "stats.json").read_text())["columns"]
        columns["observation"] = columns["action"]
        change_stats(folder, columns=columns)
    elif what == "no digest":
        change_stats(folder, sha256=None)
    elif what == "empty digest":
        change_stats(folder, sha256="")
    elif what == "negative std":
        columns = json.loads((config / "stats.json").read_text())["columns"]
        columns["observation"]["std"][0] = -1.0
        change_stats(folder, columns=columns)
    elif what in ("no std of costs", "infinite mean reward"):
        columns = json.loads((config / "stats.json").read_text())["columns"]
        columns["cost" if "costs" in what else "reward"] |= (
            {"std": None} if "costs" in what else {"mean": 1e400}
        )
        change_stats(folder, columns=columns)
    stream = open_stream(folder, BALL, progress=False)
    assert len(scans) == 1
    assert "stats.json is not used: " in caplog.text
    assert_same_summary(stream, data)


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
    sample = stream.sample_episodes(30, seed=0)
    assert 0 < len(sample) <= 30
    fingerprints = {data.select_episodes(torch.tensor([k])).sha256 for k in range(7)}
    for k in range(sample.num_episodes):
        assert sample.select_episodes(torch.tensor([k])).sha256 in fingerprints
    assert stream.sample_episodes(30, seed=0).sha256 == sample.sha256
    assert len({stream.sample_episodes(30, seed=s).sha256 for s in range(5)}) > 1
    assert stream.sample_episodes(1, seed=0).num_episodes == 1
    assert stream.sample_episodes(53, seed=0).sha256 == data.sha256


def spoiled(what):
    """Columns with one thing wrong, late in the data."""
    columns = make_columns(lengths=LENGTHS, terminated=(1, 4))
    index = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    frame = np.concatenate([np.arange(length) for length in LENGTHS])
    columns |= {"episode_index": index, "frame_index": frame}
    if what == "nan":
        columns["next_observation"][41, 3] = np.nan
    elif what == "negative cost":
        columns["cost"][30] = -1
    elif what == "wild action":
        columns["action"][50, 1] = 1.5
    elif what == "flag":
        columns["terminated"] = columns["terminated"].astype(np.float32)
        columns["terminated"][33] = 0.5
    elif what == "no end":
        columns["truncated"][-1] = False
    elif what == "no ends":
        columns["truncated"][:] = columns["terminated"][:] = False
        columns |= {"episode_index": np.zeros(53, int), "frame_index": np.arange(53)}
    elif what == "index":
        columns["episode_index"][22] += 1
    elif what == "index used twice":
        columns["episode_index"][columns["episode_index"] == 5] = 0
    elif what == "frame":
        columns["frame_index"][29] += 1
    elif what == "text":
        columns["reward"] = columns["reward"].astype(str)
    elif what == "dimensions":
        columns["action"] = columns["action"][:, :1]
    elif what == "observations differ":
        columns["next_observation"] = columns["next_observation"][:, :5]
    return columns


SPOILED = [
    *(
        "nan",
        "negative cost",
        "wild action",
        "flag",
        "no end",
        "no ends",
        "index",
        "index used twice",
        "frame",
    ),
    *("text", "dimensions", "observations differ"),
]


def columns_to_arrow(columns):
    return pa.table(
        {
            name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
            if values.ndim == 2
            else pa.array(values)
            for name, values in columns.items()
        }
    )


@pytest.mark.parametrize("what", SPOILED)
def test_the_one_pass_refuses_what_loading_refuses_in_the_same_words(tmp_path, what):
    split_files(tmp_path, columns_to_arrow(spoiled(what)))
    with pytest.raises(DatasetError) as in_memory:
        load_transitions(tmp_path, BALL)
    with pytest.raises(DatasetError) as streamed:
        open_stream(tmp_path, BALL, progress=False)
    # Counts are of the part that was read.
    words = [str(error.value).replace("has 1 rows", "has 1 values") for error in (in_memory, streamed)]
    if what == "text":  # there a file is at fault, here the whole
        words = [text.partition("column")[2] for text in words]
    assert words[0] == words[1]


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


def open_stream_rows(folder):
    files = sorted((folder / BALL.name).glob("train-*.parquet"))
    return parquet_rows.ParquetRows([str(file) for file in files], source="here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"action": {"min": [-1, -1], "max": [1, 1.2]}},
            r"'action' reaches from -1 to 1\.2, outside \[-1, 1\]",
        ),
        ({"cost": {"min": -2.0, "max": 1.0}}, "'cost' has the negative value -2"),
        ({"reward": {"min": float("nan"), "max": 1.0}}, "'reward' has values that are not finite"),
    ],
)
def test_extremes_in_the_statistics_tell_of_bad_values_before_training(folder, scans, changes, message):
    columns = json.loads((folder / BALL.name / "stats.json").read_text())["columns"]
    changed = {name: columns[name] | change for name, change in changes.items()}
    change_stats(folder, columns=columns | changed)
    with pytest.raises(DatasetError, match=message):
        open_stream(folder, BALL)
    if "action" in changes:
        open_stream(folder, BALL, clip_actions=True)
    assert not scans


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


def test_the_scan_reports_its_progress(split, capsys):
    scanned_summary(open_stream_rows(split), BALL, progress=True)
    assert "reading once" in capsys.readouterr().err
