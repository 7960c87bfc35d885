import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from data_factory import make_columns, make_dataset, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from spi_diffusers.data.columns import COLUMNS
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import (
    TRAIN_FILE,
    check_destination,
    has_config,
    to_arrow,
    write_parquet_dataset,
)

BALL, CAR_RUN = get_task("ballcircle"), get_task("carrun")
REPOSITORY = Path(__file__).parents[2]


@st.composite
def any_columns(draw):
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    rows, ends = sum(lengths), np.cumsum(lengths) - 1
    observation_dim, action_dim = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    floats = {"width": 32, "allow_nan": False, "allow_infinity": False}

    def array(shape, **bounds):
        return draw(st_np.arrays(np.float32, shape, elements=st.floats(**floats, **bounds)))

    by_task = np.array(draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    terminated, truncated = np.zeros(rows, bool), np.zeros(rows, bool)
    terminated[ends[by_task]] = True
    truncated[ends[~by_task]] = True
    return {
        "observation": array((rows, observation_dim)),
        "next_observation": array((rows, observation_dim)),
        "action": array((rows, action_dim), min_value=-1, max_value=1),
        "reward": array(rows),
        "cost": array(rows, min_value=0),
        "terminated": terminated,
        "truncated": truncated,
    }


@given(columns=any_columns())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_keeps_every_bit(columns, tmp_path_factory):
    data = TransitionDataset.from_columns(columns)
    folder = write_parquet_dataset(data, tmp_path_factory.mktemp("d") / "set", config_name="mine")
    loaded = load_transitions(folder)
    assert loaded.sha256 == data.sha256
    for name in COLUMNS:
        written, read = getattr(data.transitions, name), getattr(loaded.transitions, name)
        assert read.dtype == written.dtype
        assert read.is_contiguous()
        assert written.numpy().tobytes() == read.numpy().tobytes()  # -0.0 and 0.0 differ here
    assert torch.equal(loaded.episode_index, data.episode_index)
    assert torch.equal(loaded.frame_index, data.frame_index)


def test_layout_and_types_on_disk(written_template):
    folder = written_template
    task = folder / BALL.name
    names = {"cost_return.png", "episodes.parquet", "stats.json", TRAIN_FILE}
    assert {path.name for path in task.iterdir()} == names
    assert {path.name for path in folder.iterdir()} == {"README.md", BALL.name}
    schema = pq.read_schema(task / TRAIN_FILE)
    assert {field.name: str(field.type) for field in schema} == {
        "observation": "fixed_size_list<element: float>[8]",
        "next_observation": "fixed_size_list<element: float>[8]",
        "action": "fixed_size_list<element: float>[2]",
        "reward": "float",
        "cost": "float",
        "terminated": "bool",
        "truncated": "bool",
        "episode_index": "int64",
        "frame_index": "int64",
    }
    assert list(written_template.parent.iterdir()) == [written_template], "something was left behind"
    assert written_template.stat().st_mode == task.stat().st_mode, (
        "the folder is as private as the umask says, not more"
    )


def test_datasets_loads_the_config_and_nothing_else(written, tmp_path):
    import datasets

    cache = str(tmp_path / "cache")
    assert datasets.get_dataset_config_names(str(written)) == [BALL.name]
    loaded = datasets.load_dataset(str(written), BALL.name, cache_dir=cache)
    assert list(loaded) == ["train"]
    assert loaded["train"].num_rows == 9
    assert loaded["train"].features["observation"].length == 8
    assert loaded["train"][0]["episode_index"] == 0


def test_episode_table_and_stats(written):
    data = load_transitions(written)
    table = pq.read_table(written / BALL.name / "episodes.parquet").to_pydict()
    assert table["length"] == [3, 2, 4]
    assert table["return"] == data.episodes.return_.tolist()
    assert table["cost_return"] == data.episodes.cost_return.tolist()
    assert table["terminated"] == [False, True, False]
    stats = json.loads((written / BALL.name / "stats.json").read_text())
    assert (stats["num_transitions"], stats["num_episodes"]) == (9, 3)
    assert (stats["num_terminated"], stats["num_truncated"]) == (1, 2)
    assert stats["sha256"] == data.sha256
    observation = data.transitions.observation.double().numpy()
    np.testing.assert_allclose(stats["columns"]["observation"]["mean"], observation.mean(0))
    np.testing.assert_allclose(stats["columns"]["observation"]["std"], observation.std(0))
    assert stats["columns"]["reward"]["max"] == data.transitions.reward.max().item()
    assert stats["episodes"]["length"] == {"min": 2, "median": 3, "mean": 3, "max": 4}
    best = {entry["cost_limit"]: entry["return"] for entry in stats["best_return_within"]}
    assert best == {limit: data.episodes.best_return_within(limit) for limit in (10, 20, 40)}


def test_checksums_in_stats_are_those_of_the_files(written):
    import hashlib

    stats = json.loads((written / BALL.name / "stats.json").read_text())
    for entry in stats["files"]:
        content = (written / entry["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])


def test_same_data_gives_the_same_bytes(tmp_path, monkeypatch):
    data = make_dataset(task=BALL, terminated=(1,))
    for place in ("one", "two"):  # its own folder is on the card
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        write_parquet_dataset(data, "set", description="By *hand*.", source="a test")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_existing_config_is_replaced_only_when_asked(written):
    before = tree(written)
    other = make_dataset(task=BALL, seed=9)
    with pytest.raises(FileExistsError, match="exists already; pass overwrite=True"):
        write_parquet_dataset(other, written)
    assert tree(written) == before
    write_parquet_dataset(other, written, overwrite=True)
    assert load_transitions(written).sha256 == other.sha256
    assert (written / "README.md").read_text().count("## OfflineBallCircle-v0") == 1


@pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden"])
def test_config_name_must_be_plain(tmp_path, name):
    with pytest.raises(ValueError, match=r"config_name must be a plain folder name|has no task"):
        write_parquet_dataset(make_dataset(), tmp_path / "set", config_name=name)
    assert not list(tmp_path.iterdir())


def test_target_that_is_a_file(tmp_path):
    (tmp_path / "set").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        write_parquet_dataset(make_dataset(task=BALL), tmp_path / "set")
    assert (tmp_path / "set").read_text() == "mine"


def test_full_disk_leaves_everything_as_it_was(written):
    """A real limit on the size of files that the process may write stands in for the full disk."""
    before = tree(written)
    code = f"""
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from data_factory import make_dataset
        from spi_diffusers.data.tasks import get_task
        from spi_diffusers.data.writing import write_parquet_dataset
        data = make_dataset(task=get_task("ballcircle"), lengths=(200,) * 20)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            write_parquet_dataset(data, {str(written)!r}, overwrite=True)
        except OSError as error:
            print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert "the dataset cannot be written" in run.stdout
    assert "nothing that was there has changed" in run.stdout
    assert str(written) in run.stdout
    assert tree(written) == before
    assert [path.name for path in written.parent.iterdir()] == ["set"]


def test_arrow_columns_share_the_memory_of_the_tensors():
    data = make_dataset()
    observation = to_arrow(data).column("observation").chunk(0).flatten()
    assert observation.buffers()[1].address == data.transitions.observation.data_ptr()


def test_columns_do_not_depend_on_the_task(tmp_path):
    columns = make_columns(observation_dim=5, action_dim=1)
    data = TransitionDataset.from_columns(columns, source="logs/robot.npz")
    with pytest.raises(ValueError, match="name the config with config_name="):
        write_parquet_dataset(data, tmp_path / "set")
    folder = write_parquet_dataset(data, tmp_path / "set", config_name="robot", license="mit")
    loaded = load_transitions(folder)
    assert loaded.task is None
    assert loaded.source == f"{folder} (robot)"
    assert "Source: robot.npz" in (folder / "README.md").read_text()


def test_a_folder_that_is_no_config_is_never_replaced(tmp_path):
    other = tmp_path / "set" / BALL.name
    other.mkdir(parents=True)
    write_parquet_dataset(make_dataset(task=BALL), tmp_path / "set")  # an empty one is no loss
    shutil.rmtree(other)
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is a folder that holds no config of a dataset"):
            write_parquet_dataset(make_dataset(task=BALL), tmp_path / "set", overwrite=overwrite)
    assert tree(tmp_path) == before


def test_processes_that_write_into_one_folder_are_all_on_its_card(tmp_path):
    write_parquet_dataset(make_dataset(task=BALL), tmp_path / "there")
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from data_factory import make_dataset
        from spi_diffusers.data.writing import write_parquet_dataset
        dataset = make_dataset()
        print("ready", flush=True)
        input()
        for folder in ("new", "there"):
            write_parquet_dataset(dataset, folder, config_name=sys.argv[1])
    """
    names = ["aa", "bb"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), name],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    for folder, configs in (("new", names), ("there", [*names, BALL.name])):
        header = yaml.safe_load((tmp_path / folder / "README.md").read_text().split("---")[1])
        assert {config["config_name"] for config in header["configs"]} == set(configs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "there"]


def test_a_link_to_another_file_system(tmp_path):
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    with tempfile.TemporaryDirectory(dir=shared) as elsewhere:
        (tmp_path / "set").symlink_to(elsewhere)
        write_parquet_dataset(make_dataset(task=BALL), tmp_path / "set")
        assert load_transitions(tmp_path / "set").sha256 == make_dataset().sha256
        assert sorted(path.name for path in Path(elsewhere).iterdir()) == [BALL.name, "README.md"]


def test_a_home_folder_is_meant_where_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert write_parquet_dataset(make_dataset(task=BALL), "~/set") == tmp_path / "set"
    assert has_config("~/set", BALL.name)
    assert not (tmp_path / "~").exists()


def test_a_reserved_name_is_refused_with_a_dot_too():
    with pytest.raises(ValueError, match="is a reserved name of a dataset"):
        check_destination("./dsrl")
