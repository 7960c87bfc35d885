import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_factory import make_columns, make_dataset, to_dsrl

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.convert import convert_dataset
from spi_diffusers.data.loading import (
    MissingDatasetError,
    check_source,
    embedded_tasks,
    load_transitions,
)
from spi_diffusers.data.streaming import exceeds_memory, open_stream
from spi_diffusers.data.tables import data_kind
from spi_diffusers.data.tasks import EMBEDDED_FOLDER, UnknownTaskError, get_task, source_kind
from spi_diffusers.data.writing import write_parquet_dataset

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def embedded():
    return load_transitions()


def test_embedded_data_is_what_its_card_says(embedded):
    stats = json.loads((EMBEDDED_FOLDER / "OfflineBallCircle-v0" / "stats.json").read_text())
    assert embedded.sha256 == stats["sha256"]
    assert embedded.sha256 in (EMBEDDED_FOLDER / "README.md").read_text()
    assert (len(embedded), embedded.num_episodes) == (228_400, 1142)
    assert embedded.task is get_task("ballcircle")
    assert embedded.source == "embedded:OfflineBallCircle-v0"
    assert embedded_tasks() == ["OfflineBallCircle-v0"]
    files = [path for path in EMBEDDED_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000


def test_embedded_data_keeps_the_best_safe_trajectories_and_the_spread(embedded):
    episodes = embedded.episodes
    best = [round(episodes.best_return_within(limit)) for limit in (10, 20, 40, 80)]
    assert best == [665, 685, 758, 808]
    assert (episodes.cost_return <= 10).sum() >= 100
    assert episodes.return_.min() < 0
    assert episodes.cost_return.max() == 80
    assert set(episodes.length.tolist()) == {200}
    # Every tenth of the cost axis holds episodes with low and with high return.
    for low in range(0, 70, 10):
        inside = episodes.return_[(episodes.cost_return >= low) & (episodes.cost_return < low + 10)]
        assert len(inside) >= 30
        assert inside.min() < 150
        assert inside.max() > 650


def test_embedded_steps_chain(embedded):
    batch = embedded.transitions
    inside = ~(batch.terminated | batch.truncated)[:-1]
    assert (batch.next_observation[:-1][inside] == batch.observation[1:][inside]).all()
    assert set(batch.cost.unique().tolist()) == {0.0, 1.0}


def test_embedded_data_needs_no_network_no_cache_and_changes_nothing(tmp_path):
    """In a fresh process that is offline, whose cache folder cannot be made, and in under two seconds."""
    (tmp_path / "file").write_text("a file where the cache folder would have to be")
    before = {path: path.stat().st_mtime_ns for path in EMBEDDED_FOLDER.rglob("*")}
    code = """if True:
        import sys, time, torch, datasets
        start = time.process_time()  # CPU time: other work on the machine must not fail the test
        from spi_diffusers.data.loading import load_transitions
        data = load_transitions(None, "ballcircle")
        print(len(data), time.process_time() - start)
    """
    unusable = str(tmp_path / "file" / "cache")
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": unusable,
        "HF_DATASETS_CACHE": unusable,
        "XDG_CACHE_HOME": unusable,
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    rows, seconds = run.stdout.split()
    assert rows == "228400"
    assert float(seconds) < 2
    assert {path: path.stat().st_mtime_ns for path in EMBEDDED_FOLDER.rglob("*")} == before


def test_embedded_by_name(embedded):
    assert load_transitions("embedded", "OfflineBallCircle-v0").sha256 == embedded.sha256


def test_task_without_embedded_data_says_what_to_pass():
    with pytest.raises(
        MissingDatasetError, match=r"OfflineCarRun-v0.*--dataset.*org/name.*\.hdf5.*\.npz"
    ) as error:
        load_transitions(None, "carrun")
    assert isinstance(error.value, FileNotFoundError)
    assert isinstance(error.value, DatasetError)


def test_unknown_task_comes_first():
    with pytest.raises(UnknownTaskError, match="ballcircle"):
        load_transitions("does/not/exist.npz", "ballcirle")


@pytest.mark.parametrize(
    "name",
    [
        "missing.npz",
        "some/missing.hdf5",
        "org/train.parquet",
        "a/b/c",
        "/nowhere",
        "~/nowhere",
        "name",
        "",
        ".",
    ],
)
def test_missing_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name in ("", "."):  # the current folder, which holds no dataset
        with pytest.raises(DatasetError, match="is not a dataset folder"):
            load_transitions(name, "ballcircle")
        return
    with pytest.raises(MissingDatasetError, match=f"{name}: no such file or folder"):
        load_transitions(name, "ballcircle")


@pytest.mark.parametrize(
    ("name", "hint"), [("lab/sett", r"; did you mean lab/set\?"), ("outputs/none", r" \(give")]
)
def test_a_mistyped_folder_is_told_at_once_and_not_looked_for_on_the_hub(tmp_path, monkeypatch, name, hint):
    (tmp_path / "lab" / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody is asked
    assert not exceeds_memory(name)
    for ask in (load_transitions, lambda dataset: convert_dataset(dataset, "new")):
        with pytest.raises(MissingDatasetError, match=rf"^{name}: no such file or folder{hint}"):
            ask(name)
    assert source_kind("lab/quite-another") == "hub"


def test_unknown_suffix(tmp_path):
    (tmp_path / "data.txt").write_text("a,b\n")
    with pytest.raises(
        DatasetError, match=r"data\.txt: files with the suffix '\.txt' are not known; known are .npz"
    ):
        load_transitions(tmp_path / "data.txt")


def test_a_table_with_usual_names_loads_as_it_is(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "obs_0,obs_1,action_0,reward,cost,episode\n1,2,.3,4,0,a\n5,6,7,8,1,a\n9,9,9,9,0,b\n1,1,1,1,0,b\n"
    )
    with pytest.warns(UserWarning, match="took the following row"):
        data = load_transitions(path)
    assert data.transitions.observation.tolist() == [[1, 2], [5, 6], [9, 9], [1, 1]]
    assert (data.task, data.source) == (None, str(path))
    path.write_text("a,b\n")
    with pytest.raises(
        DatasetError, match=r"usual name for the observation \(--observation-columns\), the a"
    ):
        load_transitions(path)


def test_a_tasks_name_alone_is_its_embedded_data(embedded, tmp_path, monkeypatch):
    assert load_transitions("BallCircle").sha256 == embedded.sha256
    with pytest.raises(MissingDatasetError, match="no dataset is embedded for OfflineCarRun-v0"):
        load_transitions("carrun")
    with pytest.raises(MissingDatasetError, match=r"balcircle: no such file or folder, .*mean ballc"):
        load_transitions("balcircle")
    monkeypatch.chdir(tmp_path)
    write_parquet_dataset(make_dataset(task=get_task("ballcircle")), "ballcircle")
    assert load_transitions("ballcircle").sha256 == make_dataset().sha256  # what exists on disk comes first


def test_revision_of_something_local(tmp_path):
    folder = write_parquet_dataset(make_dataset(task=get_task("ballcircle")), tmp_path / "set")
    with pytest.raises(DatasetError, match="the data in the package: is local; revision='v1' applies"):
        load_transitions("embedded", revision="v1")
    with pytest.raises(DatasetError, match="is local; revision='v1' applies to Hub datasets only"):
        load_transitions(folder, revision="v1")


def test_what_exists_on_disk_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet_dataset(make_dataset(task=get_task("ballcircle")), "org/name")
    assert load_transitions("org/name", "ballcircle").sha256 == make_dataset().sha256


def test_suffix_in_capitals_and_home_folder(tmp_path, monkeypatch):
    import numpy as np

    with (tmp_path / "DATA.NPZ").open("wb") as file:
        np.savez(file, **to_dsrl(make_columns()))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_transitions("~/DATA.NPZ").sha256 == make_dataset().sha256


def test_a_source_that_is_not_there_is_refused_before_anything_is_read(tmp_path):
    for source in ("embedded", "dsrl", "org/name", "YYY-45/DSRL", EMBEDDED_FOLDER):
        check_source(source, "ballcircle")  # a Hub dataset may exist: only a download tells
    for source in ("nosuch", tmp_path / "x.npz", "org/x.hdf5"):
        with pytest.raises(MissingDatasetError, match=f"{source}: no such file or folder"):
            check_source(source, "ballcircle")
    with pytest.raises(
        MissingDatasetError, match="has no data of OfflineCarRun-v0, only of OfflineBallCircle"
    ):
        check_source(EMBEDDED_FOLDER, "carrun")
    with pytest.raises(DatasetError, match="is not a dataset folder"):
        check_source(tmp_path, "carrun")
    (tmp_path / "run.csv").write_text("a,b\n")
    check_source(tmp_path, "carrun")  # tables have no configs


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["a.csv", "b.parquet"], "tables"),
        (["meta/info.json", "data/chunk-000/file-000.parquet", "README.md"], "tables"),
        (["meta/info.json", "x.npz"], "tables"),
        (["a.csv", "x.npz"], "folder"),
        (["a.parquet", "README.md"], "folder"),
        (["notes.txt", ".a.csv"], "folder"),
        (["data/metadata.json", "a.csv"], "minari"),
    ],
    ids=str,
)
def test_what_a_folder_is(tmp_path, files, kind):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("---\nconfigs:\n- config_name: a\n---\n" if name == "README.md" else "")
    assert data_kind(tmp_path) == kind


def test_a_config_of_no_task_by_its_name_in_memory_and_streamed(tmp_path):
    data = {name: make_dataset(action_dim=3, seed=seed) for seed, name in enumerate(("one", "two"))}
    for name, dataset in data.items():
        write_parquet_dataset(dataset, tmp_path / "set", config_name=name)
    for name, dataset in data.items():
        for loaded in (load_transitions(tmp_path / "set", name), open_stream(tmp_path / "set", name)):
            assert (loaded.sha256, loaded.task) == (dataset.sha256, None)
    for load in (load_transitions, open_stream):
        with pytest.raises(UnknownTaskError, match=r"unknown task 'three'.* Nor is it .* has one, two"):
            load(tmp_path / "set", "three")


def test_a_file_of_another_task_by_its_name(tmp_path):
    import numpy as np

    np.savez(tmp_path / "OfflineCarCircle-v0.npz", **to_dsrl(make_columns()))
    with pytest.raises(DatasetError, match=r"the file of OfflineCarCircle-v0, not of OfflineBallCircle-v0"):
        load_transitions(tmp_path / "OfflineCarCircle-v0.npz", "ballcircle")
    assert load_transitions(tmp_path / "OfflineCarCircle-v0.npz", "carcircle").sha256 == make_dataset().sha256
