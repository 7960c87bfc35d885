"""Files of arrays that are damaged, foreign, too large, or point to other files."""

import gzip
import pickle
import sys
import zipfile

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from array_factory import formats, write_hdf5, write_npz
from data_factory import make_columns, make_dataset, to_dsrl

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.loading import load_tables, load_transitions
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.writing import to_arrow

BALL = get_task("ballcircle")


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
