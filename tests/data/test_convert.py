import json
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
import yaml
from data_factory import make_columns, make_dataset, to_dsrl, tree
from dataset_hub import point_client_at
from faulty_hub import FaultyHub, sha256
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.convert import convert_dataset
from spi_diffusers.data.delimited import CsvFormat
from spi_diffusers.data.download import download_dsrl_file
from spi_diffusers.data.loading import MissingDatasetError, load_transitions
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.tasks import DSRL_DATASET_REPO, EMBEDDED_FOLDER, UnknownTaskError, get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import write_parquet_dataset

BALL, CAR_RUN = get_task("ballcircle"), get_task("carrun")


def write_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)
    return path


def write_npz(path, arrays):
    np.savez(path, **arrays)
    return path


def convert(source, folder, **options):
    return {part.config: part.dataset for part in convert_dataset(source, folder, **options)}


@given(
    kind=st.sampled_from(["hdf5", "npz"]),
    lengths=st.lists(st.integers(2, 5), min_size=1, max_size=4),
    float_type=st.sampled_from(["float64", "float32", ">f4"]),
    cost_type=st.sampled_from(["float32", "int64", "uint8", "bool"]),
    flag_type=st.sampled_from(["float32", "float64", "bool", "int8"]),
    columns_of_one=st.sets(st.sampled_from(["rewards", "costs", "terminals", "timeouts"])),
    has_next=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_of_dsrl_files_whatever_their_types(
    tmp_path_factory, kind, lengths, float_type, cost_type, flag_type, columns_of_one, has_next, seed
):
    columns = make_columns(lengths=tuple(lengths), terminated=(0,), seed=seed)
    arrays = to_dsrl(columns)
    for name in ("observations", "next_observations", "actions", "rewards"):
        arrays[name] = arrays[name].astype(float_type)
    arrays["costs"] = arrays["costs"].astype(cost_type)
    for name in ("terminals", "timeouts"):
        arrays[name] = arrays[name].astype(flag_type)
    for name in columns_of_one:
        arrays[name] = arrays[name][:, None]
    expected = columns
    if not has_next:
        del arrays["next_observations"]
        ends = columns["terminated"] | columns["truncated"]  # where the observation stands in
        expected["next_observation"][ends] = expected["observation"][ends]
    folder = tmp_path_factory.mktemp("c")
    source = (write_hdf5 if kind == "hdf5" else write_npz)(folder / f"{BALL.short_name}.{kind}", arrays)
    if has_next:
        written = convert(source, folder / "set")
    else:
        with pytest.warns(UserWarning, match="took the following row"):
            written = convert(source, folder / "set")
    wanted = TransitionDataset.from_columns(expected).sha256
    assert written[BALL.name].sha256 == load_transitions(folder / "set", "ballcircle").sha256 == wanted


@pytest.fixture
def dsrl_folder(tmp_path):
    folder = tmp_path / "dsrl"
    folder.mkdir()
    write_hdf5(folder / BALL.dataset_file, to_dsrl(make_columns()))
    write_npz(folder / "OfflineCarRun-v0.npz", to_dsrl(make_columns(observation_dim=7)))
    (folder / "notes.txt").write_text("not data")
    return folder


def test_a_folder_of_files_gives_one_config_per_task_with_all_that_belongs_to_it(dsrl_folder, tmp_path):
    written = convert(dsrl_folder, tmp_path / "set", description="From *afar*.")
    assert set(written) == {BALL.name, CAR_RUN.name}
    assert load_transitions(tmp_path / "set", "ballcircle").sha256 == make_dataset().sha256
    assert load_transitions(tmp_path / "set", "carrun").sha256 == make_dataset(observation_dim=7).sha256
    names = {"train-00000-of-00001.parquet", "episodes.parquet", "stats.json", "cost_return.png"}
    for config in written:
        assert {path.name for path in (tmp_path / "set" / config).iterdir()} == names
    text = (tmp_path / "set" / "README.md").read_text()
    assert [c["config_name"] for c in yaml.safe_load(text.split("---")[1])["configs"]] == sorted(written)
    assert text.count("From *afar*.") == 2
    stats = {c: json.loads((tmp_path / "set" / c / "stats.json").read_text()) for c in written}
    assert (stats[BALL.name]["source"], stats[BALL.name]["license"]) == (BALL.dataset_file, "cc-by-4.0")
    assert stats[CAR_RUN.name]["license"] == "unknown"  # not a file of DSRL's own


def test_only_the_named_tasks(dsrl_folder, tmp_path):
    (dsrl_folder / "mine.npz").write_bytes(b"never looked at")
    assert set(convert(dsrl_folder, tmp_path / "set", tasks=["carrun"])) == {CAR_RUN.name}
    with pytest.raises(DatasetError, match=r"no file for OfflineDroneRun-v0; there are OfflineBallCircle-v0"):
        convert_dataset(dsrl_folder, tmp_path / "set", tasks=["carrun", "dronerun"])
    with pytest.raises(DatasetError, match=r"names of mine\.npz do not tell which task"):
        convert_dataset(dsrl_folder, tmp_path / "set")
    shutil.copy(dsrl_folder / BALL.dataset_file, dsrl_folder / "ballcircle.hdf5")
    with pytest.raises(DatasetError, match=r"both belong to OfflineBallCircle-v0"):
        convert_dataset(dsrl_folder, tmp_path / "set", tasks=["ballcircle"])


def test_parquet_layout_keeps_its_words(dsrl_folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    convert(dsrl_folder, first, license="mit", description="From *afar*.")
    convert(first, second)
    for task in (BALL, CAR_RUN):
        assert tree(second / task.name) == tree(first / task.name)
    assert set(convert(first, tmp_path / "third", tasks=[BALL])) == {BALL.name}
    assert not (tmp_path / "third" / CAR_RUN.name).exists()
    with pytest.raises(DatasetError, match=r"has no config for OfflineAntRun-v0\. Available: "):
        convert_dataset(first, second, tasks=["antrun"])
    with pytest.raises(ValueError, match="is the source itself"):
        convert_dataset(first, first, overwrite=True)


def test_a_table_of_no_task(tmp_path):
    columns = make_columns(lengths=(4, 5), terminated=(0, 1), observation_dim=3)
    log = {f"obs_{i}": values for i, values in enumerate(columns["observation"].T)}
    log |= {f"next_{i}": values for i, values in enumerate(columns["next_observation"].T)}
    log |= {"left": columns["action"][:, 0], "right": 50 * columns["action"][:, 1]}  # any range: no task
    log |= {"r": columns["reward"], "c": columns["cost"].astype(int), "run": np.repeat([7, 3], [4, 5])}
    log["done"] = columns["terminated"]
    pyarrow.csv.write_csv(pa.table(log), tmp_path / "log.csv")
    options = {
        "observation": ("obs_*",),
        "next_observation": ("next_*",),
        "action": ("left", "right"),
        "reward": "r",
        "cost": "c",
        "terminated": "done",
        "episode": "run",
    }
    written = convert(tmp_path / "log.csv", tmp_path / "set", name="robot", columns=ColumnNames(**options))
    columns["action"][:, 1] *= 50
    assert written["robot"].sha256 == TransitionDataset.from_columns(columns).sha256
    assert load_transitions(tmp_path / "set").sha256 == written["robot"].sha256
    unnamed = convert(tmp_path / "log.csv", tmp_path / "set", columns=ColumnNames(**options))
    assert unnamed["log"].sha256 == written["robot"].sha256
    write_npz(tmp_path / "log.npz", to_dsrl(columns))
    with pytest.raises(DatasetError, match=r"log\.npz: its name does not tell which task.*--task.*--name"):
        convert_dataset(tmp_path / "log.npz", tmp_path / "set")


def test_what_is_there_is_replaced_or_kept_only_when_asked(dsrl_folder, tmp_path):
    folder = write_parquet_dataset(make_dataset(task=BALL, seed=5), tmp_path / "set")
    before = tree(folder)
    with pytest.raises(
        FileExistsError, match=r"has OfflineBallCircle-v0 already; replace it with.*--overwrite"
    ):
        convert_dataset(dsrl_folder, folder)
    assert tree(folder) == before
    kept = convert(dsrl_folder, folder, keep_existing=True)
    assert kept[BALL.name] is None
    assert load_transitions(folder, BALL).sha256 == make_dataset(seed=5).sha256
    assert load_transitions(folder, CAR_RUN).sha256 == make_dataset(observation_dim=7).sha256
    convert(dsrl_folder, folder, tasks=[BALL], overwrite=True)
    assert load_transitions(folder, BALL).sha256 == make_dataset().sha256
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file; name a folder"):
        convert_dataset(dsrl_folder, tmp_path / "file")


def test_a_bad_file_in_the_middle_leaves_the_parts_before_it_complete(dsrl_folder, tmp_path):
    arrays = to_dsrl(make_columns(observation_dim=7))
    write_npz(dsrl_folder / "OfflineCarRun-v0.npz", arrays | {"rewards": np.full(9, np.nan)})
    parts = convert_dataset(dsrl_folder, tmp_path / "set", tasks=["ballcircle", "carrun"])
    assert next(parts).config == BALL.name
    with pytest.raises(
        DatasetError, match=r"OfflineCarRun-v0\.npz: column 'rewards' has 9 values that are not"
    ) as caught:
        next(parts)
    assert load_transitions(tmp_path / "set").sha256 == make_dataset().sha256
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [BALL.name, "README.md"]
    assert f". Written: {BALL.name}; to go on with the others, add keep_existing=True" in str(caught.value)
    write_npz(dsrl_folder / "OfflineCarRun-v0.npz", arrays)
    with pytest.raises(FileExistsError):  # so the advice is needed
        convert(dsrl_folder, tmp_path / "set", tasks=["ballcircle", "carrun"])
    again = convert(dsrl_folder, tmp_path / "set", tasks=["ballcircle", "carrun"], keep_existing=True)
    assert again[CAR_RUN.name].sha256 == make_dataset(observation_dim=7).sha256


@pytest.mark.parametrize("option", ["overwrite", "keep_existing"])
def test_a_call_that_goes_on_as_it_is_gets_no_advice(dsrl_folder, tmp_path, option):
    arrays = to_dsrl(make_columns(observation_dim=7))
    write_npz(dsrl_folder / "OfflineCarRun-v0.npz", arrays | {"rewards": np.full(9, np.nan)})
    with pytest.raises(DatasetError, match="values that are not finite") as caught:
        convert(dsrl_folder, tmp_path / "set", tasks=["ballcircle", "carrun"], **{option: True})
    assert "--keep-existing" not in str(caught.value)


BAD_ARRAYS = {
    "wrong dimensions": ({"observations": np.zeros((9, 5))}, "'observations' has 5 dimensions, but Offl"),
    "no ends": ({"timeouts": np.zeros(9)}, "no episode ends: neither 'terminals' nor 'timeouts'"),
    "mixed lengths": ({"costs": np.zeros(4)}, "column 'costs' has 4 rows, but 'observations' has 9"),
    "NaN": ({"actions": np.full((9, 2), np.nan)}, "'actions' has 18 values that are not finite"),
    "flags of two columns": ({"timeouts": np.zeros((9, 2))}, r"'timeouts' must have shape \(rows,\)"),
}


@pytest.mark.parametrize(("change", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays_write_nothing(tmp_path, change, message):
    source = write_hdf5(tmp_path / "data.hdf5", to_dsrl(make_columns()) | change)
    with pytest.raises(DatasetError, match=rf"data\.hdf5: .*{message}"):
        convert(source, tmp_path / "set", tasks=["ballcircle"])
    assert not (tmp_path / "set").exists()


def test_what_cannot_be_told_or_contradicts_itself(dsrl_folder, tmp_path):
    file = dsrl_folder / BALL.dataset_file
    with pytest.raises(UnknownTaskError, match="ballcircle"):
        convert_dataset(file, tmp_path / "set", tasks=["balcircle"])
    with pytest.raises(
        DatasetError, match=r"by its name the file of OfflineBallCircle-v0, not of OfflineCarRun"
    ):
        convert_dataset(file, tmp_path / "set", tasks=["carrun"])
    with pytest.raises(DatasetError, match="is one file, and so belongs to one task, not 2"):
        convert_dataset(file, tmp_path / "set", tasks=["carrun", "ballcircle"])
    with pytest.raises(ValueError, match="not both"):
        convert_dataset(file, tmp_path / "set", tasks=["carrun"], name="mine")
    with pytest.raises(DatasetError, match=r"notes\.txt: files with the suffix '\.txt' are not known"):
        convert_dataset(dsrl_folder / "notes.txt", tmp_path / "set")
    with pytest.raises(DatasetError, match="is local; revision='v1' applies to Hub datasets only"):
        convert_dataset(file, tmp_path / "set", revision="v1")
    for missing in ("nowhere.hdf5", "some/nowhere.csv", "/nowhere"):
        with pytest.raises(MissingDatasetError, match=f"{missing}: no such file or folder"):
            convert_dataset(missing, tmp_path / "set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"empty: holds no dataset.*\(it holds nothing\)"):
        convert_dataset(tmp_path / "empty", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_name_instead_of_a_task_frees_the_dimensions(tmp_path):
    source = write_npz(tmp_path / "x.npz", to_dsrl(make_columns(observation_dim=3, action_dim=5)))
    written = convert(source, tmp_path / "set", name="mine")
    assert (written["mine"].observation_dim, written["mine"].task) == (3, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, "must be a plain folder name") for name in ("../evil", "", ".x", "a/b", "a*", 'a"', "a[b]")),
        ("README.md", "that is the card"),
        ("OfflineCarCircle-v0", r"is a task of DSRL's, OfflineCarCircle-v0: .*--task carcircle"),
        ("CarCircle", r"is a task of DSRL's, OfflineCarCircle-v0: .*--task carcircle"),
        ("notes", r"set/notes: is a file, so a config cannot have its name"),
    ],
)
def test_a_name_that_cannot_be_a_configs_is_refused_before_anything_is_read(tmp_path, name, message):
    (tmp_path / "x.npz").write_bytes(b"never looked at")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes").write_text("mine")
    for options in ({}, {"overwrite": True}, {"keep_existing": True}):
        with pytest.raises((ValueError, FileExistsError), match=message):
            convert_dataset(tmp_path / "x.npz", tmp_path / "set", name=name, **options)
    assert list(tree(tmp_path)) == ["set/notes", "x.npz"]


# ---- DSRL's files on the Hub


def test_without_a_connection_dsrl_files_that_were_fetched_before_serve(
    dsrl_folder, tmp_path, monkeypatch, caplog
):
    content = (dsrl_folder / BALL.dataset_file).read_bytes()
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "kept"))
    with FaultyHub({DSRL_DATASET_REPO: {BALL.dataset_file: content}}) as hub:
        point_client_at(monkeypatch, hub.url)
        kept = download_dsrl_file(BALL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    written = convert(DSRL_DATASET_REPO, tmp_path / "set", tasks=[BALL])
    assert written[BALL.name].sha256 == make_dataset().sha256
    assert f"The Hub cannot be reached; taking {kept}, which was fetched before." in caplog.text
    stats = json.loads((tmp_path / "set" / BALL.name / "stats.json").read_text())
    assert stats["source"].endswith(f"{BALL.dataset_file}, commit unknown, SHA-256 {sha256(content)}")
    # What was never fetched is missing, and only that is named.
    with pytest.raises(DatasetError, match=rf"{DSRL_DATASET_REPO}: {CAR_RUN.dataset_file} of .* cannot be"):
        convert(DSRL_DATASET_REPO, tmp_path / "more", tasks=[BALL, CAR_RUN])
    kept.write_bytes(content[:-1] + b"?")
    with pytest.raises(DatasetError, match="is damaged, and the Hub cannot be reached"):
        convert(DSRL_DATASET_REPO, tmp_path / "more", tasks=[BALL])
    assert not (tmp_path / "more").exists()


def test_rows_of_a_converted_dataset_are_on_the_cpu_and_contiguous(dsrl_folder, tmp_path):
    batch = convert(dsrl_folder, tmp_path / "set", tasks=[BALL])[BALL.name].transitions
    assert batch.observation.dtype == torch.float32
    assert batch.observation.is_contiguous()


def test_a_source_inside_the_config_that_it_would_replace(tmp_path):
    folder = write_parquet_dataset(make_dataset(task=BALL), tmp_path / "set")
    log = write_npz(folder / BALL.name / "more.npz", to_dsrl(make_columns()))
    before = tree(folder)
    with pytest.raises(ValueError, match="holds the source itself"):
        convert_dataset(log, folder, tasks=[BALL], overwrite=True)
    assert tree(folder) == before


@pytest.mark.parametrize("kind", ["hdf5", "layout"])
def test_columns_are_named_alike_for_every_source(dsrl_folder, tmp_path, kind):
    source, ends = dsrl_folder, "timeouts"
    if kind == "layout":
        source, ends = write_parquet_dataset(make_dataset(task=BALL), tmp_path / "set"), "truncated"
    with pytest.raises(DatasetError, match=r"no column 'c' for the cost \(--cost-column\)"):
        convert(source, tmp_path / "new", tasks=[BALL], columns=ColumnNames(cost="c"))
    written = convert(source, tmp_path / "new", tasks=[BALL], columns=ColumnNames(terminated=ends))
    assert written[BALL.name].sha256 == make_dataset(terminated=(0, 1, 2)).sha256


def test_options_of_csv_files_are_refused_for_others(dsrl_folder, tmp_path):
    write_parquet_dataset(make_dataset(task=BALL), tmp_path / "set")
    for source in (dsrl_folder, tmp_path / "set", "embedded", dsrl_folder / BALL.dataset_file):
        with pytest.raises(DatasetError, match=r"--encoding \(csv=\) are for CSV files only"):
            convert(source, tmp_path / "new", csv=CsvFormat(decimal=","))
    assert not (tmp_path / "new").exists()


def test_tables_in_a_folder_of_files_are_not_skipped(dsrl_folder, tmp_path):
    (dsrl_folder / "OfflineBallRun-v0.csv").write_text("a\n")
    with pytest.raises(DatasetError, match=r"also holds OfflineBallRun-v0\.csv; convert tables one by one"):
        convert_dataset(dsrl_folder, tmp_path / "set")
    assert list(convert(dsrl_folder, tmp_path / "set", tasks=[BALL])) == [BALL.name]


def test_a_destination_that_stands_for_other_data(dsrl_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="embedded: is a reserved name of a dataset"):
        convert_dataset(dsrl_folder, "embedded")


def test_clipping_is_for_tasks_only(tmp_path):
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="those of robot may have any range"):
        convert(tmp_path / "log.csv", tmp_path / "set", name="robot", clip_actions=True)


def test_the_data_in_the_package_is_converted_to_the_same_files(tmp_path):
    convert("embedded", tmp_path / "set")
    assert tree(tmp_path / "set" / BALL.name) == tree(EMBEDDED_FOLDER / BALL.name)
