"""Folders of tables, and tables that do not fit into memory."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from data_factory import make_columns, make_dataset
from table_factory import usual_log, write

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.loading import load_tables, load_transitions
from spi_diffusers.data.streaming import exceeds_memory, open_stream
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import to_arrow

BALL = get_task("ballcircle")


@pytest.mark.parametrize("suffix", ["csv", "CSV.GZ", "parquet", "tsv"])
@pytest.mark.parametrize("tells", ["nothing", "terminated", "ends", "episode", "constant"])
def test_a_folder_with_one_file_per_episode(tmp_path, suffix, tells):
    lengths = (3, 2, 4, *(2,) * 9)
    columns = make_columns(lengths=lengths, terminated=(1,))
    log = {name: columns[name] for name in ("reward", "cost")}
    for name in ("observation", "next_observation", "action"):
        log |= {f"{name}_{i}": values for i, values in enumerate(columns[name].T)}
    if tells in ("terminated", "ends"):
        log["terminated"] = columns["terminated"].astype(int)
    if tells == "ends":
        log["truncated"] = columns["truncated"].astype(int)
    if tells in ("episode", "constant"):
        log["episode"] = np.repeat(np.arange(len(lengths)) * (tells == "episode"), lengths)
    start = 0
    for number, length in enumerate(lengths):  # run_10 comes after run_9
        rows = {name: values[start : start + length] for name, values in log.items()}
        write(tmp_path / f"run_{number}.{suffix}", rows)
        start += length
    (tmp_path / "README.md").write_text("# Runs of a robot\n")  # a card that declares nothing
    (tmp_path / "notes.txt").write_text("not looked at")
    ended = (1,) if tells in ("terminated", "ends") else ()
    expected = TransitionDataset.from_columns(make_columns(lengths=lengths, terminated=ended))
    assert load_tables(tmp_path).sha256 == load_transitions(tmp_path).sha256 == expected.sha256
    assert not exceeds_memory(tmp_path)
    with pytest.raises(DatasetError, match=r"cannot be streamed.*spi data convert"):
        open_stream(tmp_path)


def test_numbered_parts_of_a_table_are_joined(tmp_path):
    data = make_dataset(lengths=(5, 4))
    table = to_arrow(data)
    for number, rows in enumerate((table.slice(0, 3), table.slice(3))):
        pq.write_table(rows, tmp_path / f"train-0000{number}-of-00002.parquet")
    assert load_tables(tmp_path).sha256 == data.sha256


@pytest.mark.parametrize("tells", ["nothing", "terminated", "constant"])
@pytest.mark.parametrize("name", ["file-{}", "ep-{}", "file-{}-of-3"])
@pytest.mark.parametrize("card", [False, True])
def test_no_episode_goes_on_in_another_file(tmp_path, name, tells, card):
    columns = make_columns(lengths=(5, 5, 5), terminated=(2,))
    log = {role: columns[role] for role in ("reward", "cost", *(["terminated"] * (tells == "terminated")))}
    vectors = {role: columns[role] for role in ("observation", "next_observation", "action")}
    log |= {"episode": np.zeros(15, int)} if tells == "constant" else {}
    for start in (0, 5, 10):
        rows = {role: values[start : start + 5] for role, values in log.items()}
        rows |= {role: pa.array([*values[start : start + 5]]) for role, values in vectors.items()}
        write(tmp_path / f"{name.format(start // 5)}.parquet", rows)
    if card:
        header = "---\nconfigs:\n- config_name: arm\n  data_files: '*.parquet'\n---\n"
        (tmp_path / "README.md").write_text(header)
    assert load_transitions(tmp_path).episodes.length.tolist() == [5, 5, 5]


@pytest.mark.parametrize("tells", ["truncated", "frame_index"])
def test_below_a_card_columns_may_tell_that_an_episode_goes_on(tmp_path, tells):
    data = make_dataset(lengths=(5, 4))
    table = to_arrow(data).drop_columns(
        ["truncated"] if tells == "frame_index" else ["episode_index", "frame_index"]
    )
    for number, rows in enumerate((table.slice(0, 3), table.slice(3))):
        pq.write_table(rows, tmp_path / f"000{number}.parquet")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: '*.parquet'\n---\n")
    assert load_transitions(tmp_path).sha256 == data.sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cost": None}, r"b\.csv: has no column with a usual name for the cost"),
        (
            {f"next_observation_{i}": None for i in range(8)},
            r"b\.csv: has no column of the next .*a\.csv has",
        ),
        ({"action_1": None}, r"b\.csv: the action has 1 dimensions, but 2 in .*a\.csv"),
        (
            {"reward": ["1", "2", "x"] * 3},
            r"b\.csv: column 'reward' must hold numbers, not string such as 'x'",
        ),
        ({"reward": [1, 2, np.nan] * 3}, r"b\.csv: column 'reward' has 3 .*first in row 2"),
        ({"truncated": [False] * 9}, r"b\.csv: no episode ends"),
        ({"truncated": [True] * 8 + [False]}, r"b\.csv: the last episode"),
    ],
    ids=str,
)
def test_what_is_wrong_in_a_folder_names_the_file(tmp_path, change, message):
    _, log = usual_log()
    del log["episode_index"]
    write(tmp_path / "a.csv", log)
    log |= {"terminated": [False] * 9} | change
    write(tmp_path / "b.csv", {name: values for name, values in log.items() if values is not None})
    with pytest.raises(DatasetError, match=message):
        load_tables(tmp_path)


def test_a_lfs_pointer_is_told(tmp_path):
    (tmp_path / "log.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(
        DatasetError, match=r"log\.parquet: is not a parquet file but a Git LFS poi.*lfs pull"
    ):
        load_tables(tmp_path / "log.parquet")


@pytest.mark.parametrize("width", [1, 40])
def test_parquet_that_unfolds_to_more_than_memory_is_not_read(tmp_path, little_memory, width):
    names = ("observation", "action", "reward", "cost", "terminated")
    rows = dict.fromkeys(names, pa.array(np.zeros(count := 2_600_000 // max(width, 4), np.int8)))
    rows["observation"] = pa.FixedSizeListArray.from_arrays(np.zeros(count * width, np.int8), width)
    pq.write_table(pa.table(rows), tmp_path / "log.parquet", compression="zstd")
    with pytest.raises(DatasetError, match=r"log\.parquet: needs 0\.0 GB of memory, and 0\.0 GB are free"):
        load_tables(tmp_path / "log.parquet")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_that_fit_into_memory_only_one_by_one_are_not_read(tmp_path, little_memory, suffix):
    zeros = np.zeros(375_000, np.int8)
    log = dict.fromkeys(("observation_0", "action_0", "reward", "cost"), zeros)
    path = write(tmp_path / f"a.{suffix}", log)
    for name in "bcd":
        shutil.copy(path, tmp_path / f"{name}.{suffix}")
    # One alone is read, before it is found to have no end.
    with pytest.raises(DatasetError, match=rf"a\.{suffix}: nothing tells where an episode ends"):
        load_tables(path)
    with pytest.raises(DatasetError, match=rf"^{tmp_path}: needs 0\.0 GB of memory, and 0\.0 GB are free"):
        load_tables(tmp_path)


@pytest.mark.slow
def test_well_compressed_data_is_loaded(tmp_path):
    rows, width = 80_000, 900  # 288 MB
    hot = np.zeros((rows, width), np.int8)
    hot[np.arange(rows), np.arange(rows) // 100] = 1
    observation = pa.FixedSizeListArray.from_arrays(hot.reshape(-1), width)
    zeros = np.zeros(rows, np.float32)
    log = {"observation": observation, "action": zeros, "reward": zeros, "cost": zeros}
    log["truncated"] = np.arange(rows) % 100 == 99
    log["next_observation"] = observation
    pq.write_table(pa.table(log), tmp_path / "log.parquet", compression="zstd")
    data = load_tables(tmp_path / "log.parquet")
    assert data.transitions.observation[-1].argmax() == 799
