"""LeRobot datasets: ours, and those in the layouts that LeRobot 2 and 3 write."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_factory import make_columns, make_dataset, tree

import datasets
from spi_diffusers.data import lerobot
from spi_diffusers.data.actions import ActionRange
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.convert import convert_dataset
from spi_diffusers.data.lerobot import write_lerobot_dataset
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.tasks import UnknownTaskError, get_task
from spi_diffusers.data.transitions import TransitionDataset


def convert(source, folder, **options):
    return {part.config: part.dataset for part in convert_dataset(source, folder, **options)}


def frames(columns, lengths):
    """The columns of a LeRobot recording with a cost; its `next.done` is the last step of an episode."""
    return {
        "observation.state": list(columns["observation"]),
        "action": list(columns["action"]),
        "next.reward": columns["reward"],
        "next.damage": columns["cost"],
        "next.done": columns["terminated"] | columns["truncated"],
        "timestamp": np.concatenate([np.arange(length) / 10 for length in lengths]).astype(np.float32),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(sum(lengths)),
        "task_index": np.zeros(sum(lengths), dtype=np.int64),
    }


def write_recording(folder, version, lengths=(3, 2, 4), card=True):
    """A dataset as LeRobot writes it, with what we do not read: videos' folders, statistics."""
    columns = make_columns(lengths=lengths)
    table = pa.table(frames(columns, lengths))
    (folder / "meta").mkdir(parents=True)
    info = {"codebase_version": version, "fps": 10, "total_episodes": len(lengths)}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    data = folder / "data" / "chunk-000"
    data.mkdir(parents=True)
    if version == "v2.1":
        (folder / "meta" / "episodes.jsonl").write_text("{}\n")
        for number, length in enumerate(lengths):
            rows = table.slice(sum(lengths[:number]), length)
            pq.write_table(rows, data / f"episode_{number:06d}.parquet")
    else:
        pq.write_table(pa.table({"episode_index": [0]}), folder / "meta" / "tasks.parquet")
        pq.write_table(table.slice(0, 5), data / "file-000.parquet")
        pq.write_table(table.slice(5), data / "file-001.parquet")
    if card:
        header = "license: mit\nconfigs:\n- config_name: default\n  data_files: data/*/*.parquet\n"
        (folder / "README.md").write_text(f"---\n{header}---\n")
    return columns


@pytest.mark.parametrize("card", [True, False])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_recordings_of_both_versions(tmp_path, version, card):
    columns = write_recording(tmp_path / "arm", version, card=card)
    named = ColumnNames(cost="next.damage")
    with pytest.warns(UserWarning, match=r"'next\.done' tells that an episode ended.*--termi") as warned:
        (data,) = convert(tmp_path / "arm", tmp_path / "set", columns=named).values()
    assert len(warned) == 2  # of all files together; the other: next observations are derived
    inside = [0, 1, 3, 5, 6, 7]  # what follows the last step of an episode was not recorded
    assert data.transitions.observation.tolist() == columns["observation"].tolist()
    following = data.transitions.next_observation[inside]
    assert following.tolist() == columns["next_observation"][inside].tolist()
    assert data.transitions.cost.tolist() == columns["cost"].tolist()
    assert data.episodes.length.tolist() == [3, 2, 4]
    assert load_transitions(tmp_path / "set", "arm").sha256 == data.sha256
    assert ("license: mit" in (tmp_path / "set" / "README.md").read_text()) == card
    ended = ColumnNames(cost="next.damage", terminated="next.done")
    (data,) = convert(tmp_path / "arm", tmp_path / "two", name="x", columns=ended).values()
    assert data.transitions.terminated.sum() == 3


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_without_a_cost_the_option_is_named(tmp_path, version):
    write_recording(tmp_path / "arm", version)
    for act in (
        lambda: load_transitions(tmp_path / "arm"),
        lambda: convert(tmp_path / "arm", tmp_path / "set"),
    ):
        with pytest.raises(DatasetError, match=r"usual name for the cost \(--cost-column\).*'next\.damage'"):
            act()
    with pytest.raises(UnknownTaskError, match="has no configs: leave the task out"):
        load_transitions(tmp_path / "arm", "robot")


def test_a_state_in_parts_is_one_vector(tmp_path):
    columns = write_recording(tmp_path / "arm", "v3.0")
    for path in (tmp_path / "arm" / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        state = np.array(table["observation.state"].to_pylist())
        table = table.drop_columns(["observation.state"])
        for name, part in (
            ("observation.state.wrist", state[:, 5:]),
            ("observation.state.arm", state[:, :5]),
        ):
            table = table.append_column(name, pa.array(part.tolist()))
        pq.write_table(table, path)
    named = ColumnNames(cost="next.damage")
    (data,) = convert(tmp_path / "arm", tmp_path / "set", columns=named).values()
    assert data.transitions.observation.tolist() == columns["observation"].tolist()


@pytest.mark.parametrize(("observation_dim", "action_dim"), [(8, 2), (1, 1)])
def test_there_and_back_with_the_same_values(tmp_path, monkeypatch, observation_dim, action_dim):
    columns = make_columns(
        lengths=(3, 1, 4, 2),
        observation_dim=observation_dim,
        action_dim=action_dim,
        terminated=(1, 3),
    )
    data = TransitionDataset.from_columns(columns)
    monkeypatch.setattr(lerobot, "_FILE_BYTES", 500)  # several files
    folder = write_lerobot_dataset(data, tmp_path / "arm", license="mit")
    assert len(list((folder / "data").rglob("*.parquet"))) > 1
    assert load_transitions(folder).sha256 == data.sha256
    assert convert(folder, tmp_path / "set")["arm"].sha256 == data.sha256


def test_several_costs_keep_their_names_and_actions_their_range(tmp_path):
    columns = make_columns(lengths=(2, 2), terminated=())
    columns["cost"] = np.array([[0.0, 200.0], [1.0, 600.0], [0.0, 0.0], [1.0, 600.0]])
    span = ActionRange((-2.0, -1.0), (2.0, 3.0))
    data = TransitionDataset.from_columns(columns, cost_names=["speed", "energy"], action_range=span)
    folder = write_lerobot_dataset(data, tmp_path / "arm")
    info = json.loads((folder / "meta" / "info.json").read_text())
    cost = {"dtype": "float32", "shape": [2], "names": ["speed", "energy"]}
    assert info["features"]["next.cost"] == cost
    assert "(of each: speed, energy)" in (folder / "README.md").read_text()
    for read in (load_transitions(folder), convert(folder, tmp_path / "set")["arm"]):
        assert (read.cost_names, read.sha256) == (("speed", "energy"), data.sha256)
        assert read.action_range == span


def test_what_lerobot_and_the_hub_read(tmp_path):
    """Paths, names and types of version 3.0, as LeRobot's own loader asks for them."""
    data = make_dataset(task=get_task("ballcircle"), terminated=(1,))
    folder = write_lerobot_dataset(data, tmp_path / "ball")
    info = json.loads((folder / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["total_episodes"], info["total_frames"]) == ("v3.0", 3, 9)
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [8], "names": None}
    assert info["features"]["next.done"] == {"dtype": "bool", "shape": [1], "names": None}
    assert info["features"]["index"]["dtype"] == "int64"
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    assert stats.keys() == info["features"].keys()
    assert stats["action"]["mean"] == pytest.approx(data.transitions.action.mean(0).tolist(), rel=1e-5)
    episodes = datasets.Dataset.from_parquet(str(folder / "meta/episodes/chunk-000/file-000.parquet"))
    for episode in episodes:
        place = {"chunk_index": episode["data/chunk_index"], "file_index": episode["data/file_index"]}
        assert (folder / info["data_path"].format(**place)).is_file()
    assert episodes["dataset_to_index"] == [3, 5, 9]
    tasks = pq.read_table(folder / "meta" / "tasks.parquet").to_pandas()
    assert tasks.iloc[0].name == "OfflineBallCircle-v0"
    shown = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert {name: len(shown[0][name]) for name in ("observation.state", "action")} == {
        "observation.state": 8,
        "action": 2,
    }
    assert shown["next.done"] == [False, False, True, False, True, False, False, False, True]


def test_a_folder_that_holds_something_stays_as_it_is(tmp_path):
    (tmp_path / "arm").mkdir()
    write_lerobot_dataset(make_dataset(), tmp_path / "arm")  # an empty one is new
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="arm: exists and is not empty"):
        write_lerobot_dataset(make_dataset(), tmp_path / "arm")
    assert tree(tmp_path) == before


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="the dataset cannot be written"):
        write_lerobot_dataset(make_dataset(), tmp_path / "file" / "arm")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    assert write_lerobot_dataset(make_dataset(), tmp_path / "link") == tmp_path / "link"
    assert load_transitions(tmp_path / "real").sha256 == make_dataset().sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "real"]
