import gzip
import pickle
import sys
import warnings
import zipfile

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from data_factory import make_columns, make_dataset, to_dsrl

from spi_diffusers.data.arrays import DSRL_NAMES
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.loading import load_tables, load_transitions
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.writing import to_arrow

BALL = get_task("ballcircle")


def write_npz(path, arrays):
    np.savez_compressed(path, **arrays)


def write_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip")


FORMATS = [("data.npz", write_npz), ("data.hdf5", write_hdf5)]
formats = pytest.mark.parametrize(("file_name", "write"), FORMATS, ids=["npz", "hdf5"])


@formats
def test_round_trip_with_dsrls_types(tmp_path, file_name, write):
    columns = make_columns(terminated=(1,))
    arrays = to_dsrl(columns)
    arrays["costs"] = arrays["costs"].astype(np.int64)
    arrays["terminals"] = arrays["terminals"][:, None]
    arrays["timeouts"] = arrays["timeouts"][:, None].astype(bool)
    arrays["observations"] = arrays["observations"].astype(np.float64)
    write(tmp_path / file_name, arrays)
    data = load_transitions(tmp_path / file_name, "ballcircle")
    assert data.sha256 == make_dataset(terminated=(1,)).sha256
    assert data.task is BALL
    assert data.source == str(tmp_path / file_name)
    assert load_transitions(str(tmp_path / file_name)).task is None


@formats
def test_next_observation_is_derived_where_it_is_missing(tmp_path, file_name, write):
    # Episode 0 is truncated, 1 terminates, 2 is truncated after one step.
    columns = make_columns(lengths=(3, 2, 1), terminated=(1,))
    arrays = to_dsrl(columns)
    del arrays["next_observations"]
    write(tmp_path / file_name, arrays)
    with pytest.warns(
        UserWarning, match=r"no column of the next obs.*the last row of 2 truncated.*kept with its cost"
    ):
        data = load_transitions(tmp_path / file_name, BALL)
    batch = data.transitions
    for name in ("reward", "cost", "terminated", "truncated"):  # no row is lost, nor its cost
        assert getattr(batch, name).tolist() == columns[name].tolist()
    assert data.episodes.length.tolist() == [3, 2, 1]
    ends = np.cumsum([3, 2, 1]) - 1
    inside = np.setdiff1d(np.arange(6), ends)
    # Within an episode this is what the simulator really returned.
    assert batch.next_observation[inside].tolist() == columns["next_observation"][inside].tolist()
    assert torch.equal(batch.next_observation[ends], batch.observation[ends])


@formats
@pytest.mark.parametrize("column", ["observation", "action", "reward", "cost"])
def test_missing_columns_are_told_with_what_the_file_really_has(tmp_path, file_name, write, column):
    arrays = to_dsrl(make_columns())
    arrays["else"] = arrays.pop(DSRL_NAMES[column])
    write(tmp_path / file_name, arrays)
    missing = rf"no column with a usual name for the {column} \(--{column}-columns?\); .* It has .*'else'"
    with pytest.raises(DatasetError, match=rf"{file_name}: has {missing}"):
        load_transitions(tmp_path / file_name, BALL)
    write(tmp_path / file_name, {"else": arrays["else"]})
    everything = r"for the observation \(--.*the action \(--.*the reward \(--.*the cost \(--cost-column"
    with pytest.raises(DatasetError, match=everything):
        load_transitions(tmp_path / file_name, BALL)


@formats
def test_without_timeouts_every_end_must_be_the_tasks(tmp_path, file_name, write):
    arrays = to_dsrl(make_columns())
    del arrays["timeouts"]
    write(tmp_path / file_name, arrays)
    with pytest.raises(DatasetError, match=rf"{file_name}: no episode ends"):
        load_transitions(tmp_path / file_name, BALL)
    arrays["terminals"] = to_dsrl(make_columns())["timeouts"]
    write(tmp_path / file_name, arrays)
    assert load_transitions(tmp_path / file_name).sha256 == make_dataset(terminated=(0, 1, 2)).sha256
    del arrays["terminals"]
    write(tmp_path / file_name, arrays)
    with pytest.raises(DatasetError, match=rf"{file_name}: nothing tells where an episode ends"):
        load_transitions(tmp_path / file_name, BALL)


# ---- other names


@formats
@pytest.mark.parametrize(
    ("renamed", "named"),
    [
        ({"costs": "cost", "terminals": "terminated", "timeouts": "truncated"}, {}),
        ({"costs": "infos/cost"}, {}),
        ({"observations": "obs", "next_observations": "next_obs", "actions": "act", "rewards": "reward"}, {}),
        ({"costs": "infos/damage"}, {"cost": "infos/damage"}),
        ({name: f"data/{name}" for name in DSRL_NAMES.values()}, "data/{}"),
        ({"terminals": "dones", "costs": "c"}, {"terminated": "dones", "cost": "c"}),
        ({"terminals": "done", "timeouts": None}, {"terminated": "done", "episode": "run"}),
    ],
    ids=str,
)
def test_other_names_are_usual_or_named(tmp_path, file_name, write, renamed, named):
    columns = make_columns(terminated=(1,))
    arrays = {renamed.get(name, name): values for name, values in to_dsrl(columns).items()}
    arrays.pop(None, None)
    arrays["run"] = np.repeat([7, 8, 9], (3, 2, 4))
    write(tmp_path / file_name, arrays)
    if isinstance(named, str):
        named = {role: named.format(name) for role, name in DSRL_NAMES.items()}
        named |= {role: (named[role],) for role in ("observation", "next_observation", "action")}
    data = load_tables(tmp_path / file_name, columns=ColumnNames(**named))
    assert data.sha256 == make_dataset(terminated=(1,)).sha256


@formats
def test_entries_of_a_group_are_one_vector_in_natural_order(tmp_path, file_name, write):
    columns = make_columns()
    arrays = to_dsrl(columns)
    for name in ("observations", "next_observations"):
        whole = arrays.pop(name)
        # Given in another order; a vector of one dimension may be (N,).
        arrays |= {f"{name}/z10": whole[:, 5:], f"{name}/z9": whole[:, 1:5], f"{name}/a": whole[:, 0]}
    write(tmp_path / file_name, arrays)
    assert load_transitions(tmp_path / file_name).sha256 == make_dataset().sha256
    del arrays["next_observations/a"]
    write(tmp_path / file_name, arrays)
    with pytest.raises(DatasetError, match="both need the same ones"):
        load_transitions(tmp_path / file_name)


@formats
def test_a_flag_that_may_tell_that_the_task_ended_is_not_passed_over(tmp_path, file_name, write):
    arrays = to_dsrl(make_columns())
    arrays["dones"] = arrays.pop("terminals")
    write(tmp_path / file_name, arrays)
    says = r"'dones' may say that the task itself ended \(--terminated-column dones\) or that .* say which"
    with pytest.raises(DatasetError, match=rf"{file_name}: column {says}"):
        load_transitions(tmp_path / file_name)


# ---- files that are not what they say


@pytest.mark.parametrize("kind", ["link", "soft link", "storage", "virtual"])
def test_values_in_other_files_are_not_read(tmp_path, kind):
    arrays = to_dsrl(make_columns())
    rewards = arrays.pop("rewards")
    write_hdf5(tmp_path / "other.hdf5", {"rewards": rewards})
    write_hdf5(tmp_path / "x.hdf5", arrays)
    with h5py.File(tmp_path / "x.hdf5", "a") as file:
        if kind == "link":
            file["rewards"] = h5py.ExternalLink("other.hdf5", "/rewards")
        elif kind == "soft link":
            file["outside"] = h5py.ExternalLink("other.hdf5", "/")
            file["rewards"] = h5py.SoftLink("/outside/rewards")
        elif kind == "storage":
            (tmp_path / "secret").write_bytes(rewards.tobytes())
            file.create_dataset(
                "rewards", shape=(9,), dtype="f4", external=[(str(tmp_path / "secret"), 0, 36)]
            )
        else:
            layout = h5py.VirtualLayout(shape=(9,), dtype="f4")
            layout[:] = h5py.VirtualSource("other.hdf5", "rewards", shape=(9,))
            file.create_virtual_dataset("rewards", layout)
    with pytest.raises(DatasetError, match=r"x\.hdf5: column 'rewards' keeps its values in another file"):
        load_transitions(tmp_path / "x.hdf5")


def test_links_inside_a_file_are_good_and_circles_do_no_harm(tmp_path):
    arrays = to_dsrl(make_columns())
    write_hdf5(tmp_path / "x.hdf5", {"raw/r": arrays.pop("rewards"), **arrays})
    with h5py.File(tmp_path / "x.hdf5", "a") as file:
        file["rewards"] = h5py.SoftLink("/raw/r")
        file["nowhere"] = h5py.SoftLink("/missing")
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
        file["raw/up"] = file["/"]
    assert load_transitions(tmp_path / "x.hdf5").sha256 == make_dataset().sha256


@pytest.mark.parametrize("shape", [(10**12, 8), (4 * 10**7, 8)])
def test_declared_sizes_are_compared_before_anything_is_read(tmp_path, shape, little_memory):
    arrays = to_dsrl(make_columns())
    del arrays["observations"]
    write_hdf5(tmp_path / "x.hdf5", arrays)
    with h5py.File(tmp_path / "x.hdf5", "a") as file:  # sparse: nothing of it is in the file
        file.create_dataset("observations", shape=shape, dtype="f4", chunks=(1 << 16, 8))
    with pytest.raises(
        DatasetError, match=r"x\.hdf5: needs [\d,.]+ GB of memory, and 0\.0 GB are free; stream"
    ):
        load_transitions(tmp_path / "x.hdf5")


def test_an_archive_that_unfolds_to_more_than_memory_is_not_unfolded(tmp_path, little_memory):
    write_npz(tmp_path / "x.npz", to_dsrl(make_columns()))
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist() if "actions" not in name}
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        with archive.open("actions.npy", "w", force_zip64=True) as stream:
            header = {"descr": "<f4", "fortran_order": False, "shape": (12, 1 << 18)}
            np.lib.format.write_array_header_1_0(stream, header)
            for _ in range(12):
                stream.write(bytes(1 << 20))
    with pytest.raises(DatasetError, match=r"x\.npz: needs 0\.0 GB of memory, and 0\.0 GB are free"):
        load_transitions(tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        with archive.open("actions.npy", "w") as stream:
            header["shape"] = (10**12, 2)
            np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(DatasetError, match=r"'actions' declares the shape .* but holds 0 bytes"):
        load_transitions(tmp_path / "x.npz")


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_give_one_line_or_the_data(tmp_path, seed):
    write_hdf5(tmp_path / "good.hdf5", to_dsrl(make_columns(lengths=(20, 20))))
    write_npz(tmp_path / "good.npz", to_dsrl(make_columns(lengths=(20, 20))))
    rng, said = np.random.default_rng(seed), []
    pq.write_table(to_arrow(make_dataset(lengths=(20, 20))), tmp_path / "good.parquet")
    log = "obs_0,next_obs_0,act_0,reward,cost,episode\n" + "1.5,2,3,4,0,a\n" * 30
    (tmp_path / "good.csv.gz").write_bytes(gzip.compress(log.encode()))
    for name in ("good.hdf5", "good.npz", "good.parquet", "good.csv.gz"):
        content = (tmp_path / name).read_bytes()
        for _ in range(40):
            changed = bytearray(content)
            changed[place := rng.integers(len(changed))] ^= 1 << rng.integers(8)
            if rng.random() < 0.5:  # also a run of bytes
                changed[place : place + 8] = b"\xff" * len(changed[place : place + 8])
            path = tmp_path / f"x{name[4:]}"
            path.write_bytes(changed)
            try:
                load_transitions(path)
            except (DatasetError, ImportError) as error:  # a filter of another number
                said.append(str(error))
    assert len(said) > 20
    assert all(
        line.startswith(str(tmp_path / "x.")) and "\n" not in line and len(line) < 1000 for line in said
    )


def test_a_filter_that_is_missing_is_told_with_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    arrays = to_dsrl(make_columns())
    write_hdf5(tmp_path / "x.hdf5", {name: arrays[name] for name in arrays if name != "rewards"})
    with h5py.File(tmp_path / "x.hdf5", "a") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((9,))
        properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)  # Blosc's number
        space = h5py.h5s.create_simple((9,))
        h5py.h5d.create(file.id, b"rewards", h5py.h5t.IEEE_F32LE, space, properties)
    with pytest.raises(
        ImportError, match=r"x\.hdf5: column 'rewards' .* filter 32001.*pip install hdf5plugin"
    ):
        load_transitions(tmp_path / "x.hdf5")


@formats
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"observations": np.zeros((9, 5))},
            "column 'observations' has 5 dimensions, but OfflineBallCircle-v0",
        ),
        ({"actions": np.full((9, 2), np.nan)}, "column 'actions' has 18 values that are not finite.*row 0"),
        ({"timeouts": np.zeros(9)}, "no episode ends: neither 'terminals' nor 'timeouts'"),
        ({"rewards": np.zeros(4)}, "column 'rewards' has 4 rows"),
        ({"actions": np.full((9, 2), 3.0)}, "column 'actions' has 9 rows outside"),
        ({"costs": np.array([b"x"] * 9)}, "column 'costs' must hold numbers"),
    ],
    ids=["dimensions", "nan", "ends", "length", "range", "text"],
)
def test_bad_columns(tmp_path, file_name, write, change, message):
    write(tmp_path / file_name, to_dsrl(make_columns()) | change)
    with pytest.raises(DatasetError, match=f"{file_name}: .*{message}"):
        load_transitions(tmp_path / file_name, BALL)


@formats
def test_zero_rows(tmp_path, file_name, write):
    write(tmp_path / file_name, {name: values[:0] for name, values in to_dsrl(make_columns()).items()})
    with pytest.raises(DatasetError, match=f"{file_name}: zero rows"):
        load_transitions(tmp_path / file_name)


@formats
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_file(tmp_path, file_name, write, share):
    path = tmp_path / file_name
    write(path, to_dsrl(make_columns(lengths=(300, 300))))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DatasetError, match=rf"{file_name}: .*(empty|cut off or damaged)"):
        load_transitions(path, BALL)


@formats
def test_damaged_file(tmp_path, file_name, write):
    path = tmp_path / file_name
    write(path, to_dsrl(make_columns(lengths=(300, 300))))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{file_name}: .*damaged"):
        load_transitions(path, BALL)


@pytest.mark.parametrize("file_name", ["data.npz", "data.hdf5"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + bytes(100), "a JPEG image"),
        (pickle.dumps({"observations": [1.0]}), "a Python pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><title>404</title>", "an HTML or XML page"),
        (b"hello", "something else"),
    ],
    ids=["jpeg", "pickle", "lfs", "html", "text"],
)
def test_foreign_file(tmp_path, file_name, content, kind):
    (tmp_path / file_name).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{file_name}: is not an? .* but {kind}"):
        load_transitions(tmp_path / file_name)


def test_each_format_recognises_the_other(tmp_path):
    write_npz(tmp_path / "a.npz", to_dsrl(make_columns()))
    write_hdf5(tmp_path / "b.hdf5", to_dsrl(make_columns()))
    (tmp_path / "a.npz").rename(tmp_path / "a.hdf5")
    (tmp_path / "b.hdf5").rename(tmp_path / "b.npz")
    with pytest.raises(DatasetError, match="is not an HDF5 file but a zip archive"):
        load_tables(tmp_path / "a.hdf5")
    with pytest.raises(DatasetError, match="but an HDF5 file"):
        load_tables(tmp_path / "b.npz")


class Bomb:
    """Unpickling this creates a file: the proof that no pickle was loaded is that there is none."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickled_arrays_are_refused_and_never_run(tmp_path):
    arrays = to_dsrl(make_columns())
    arrays["actions"] = np.array([Bomb(tmp_path / "exploded")], dtype=object)
    write_npz(tmp_path / "data.npz", arrays)
    with pytest.raises(
        DatasetError, match=r"data\.npz: column 'actions' is a pickled object array, and pickles"
    ):
        load_transitions(tmp_path / "data.npz")
    assert not (tmp_path / "exploded").exists()


def test_unrelated_arrays_of_a_file_are_ignored_even_pickled_ones(tmp_path):
    arrays = to_dsrl(make_columns()) | {"infos": np.array([{"a": 1}], dtype=object)}
    write_npz(tmp_path / "data.npz", arrays)
    assert load_transitions(tmp_path / "data.npz").sha256 == make_dataset().sha256


def test_clip_actions(tmp_path):
    write_npz(tmp_path / "data.npz", to_dsrl(make_columns()) | {"actions": np.full((9, 2), -3.0)})
    data = load_transitions(tmp_path / "data.npz", BALL, clip_actions=True)
    assert torch.equal(data.transitions.action, torch.full((9, 2), -1.0))


def test_a_file_with_dsrls_name_is_of_its_task(tmp_path):
    write_hdf5(tmp_path / BALL.dataset_file, to_dsrl(make_columns()))
    assert load_transitions(tmp_path / BALL.dataset_file).task is BALL
    write_hdf5(tmp_path / BALL.dataset_file, to_dsrl(make_columns(observation_dim=3)))
    with pytest.raises(DatasetError, match="has 3 dimensions, but OfflineBallCircle-v0 has 8"):
        load_transitions(tmp_path / BALL.dataset_file)


def test_two_arrays_of_one_name_are_refused(tmp_path):
    path = tmp_path / "twice.npz"
    np.savez(path, **to_dsrl(make_columns()))
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile says so, too
        archive.writestr("costs.npy", archive.read("costs.npy"))
    with pytest.raises(DatasetError, match=r"twice\.npz: has several arrays named 'costs'"):
        load_tables(path)


def test_entries_of_an_hdf5_file_that_are_no_arrays_are_told(tmp_path):
    for name, value, message in (
        ("empty", h5py.Empty("f4"), r"empty\.hdf5: column 'costs' is empty"),
        ("type", np.dtype("f4"), r"type\.hdf5: has no column .* for the cost"),
    ):
        path = tmp_path / f"{name}.hdf5"
        with h5py.File(path, "w") as file:
            for column, values in to_dsrl(make_columns()).items():
                file[column] = value if column == "costs" else values
        with pytest.raises(DatasetError, match=message):
            load_tables(path)
