import pickle
import warnings

import h5py
import numpy as np
import pytest
import torch
from data_factory import make_columns, make_dataset, to_dsrl

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.dsrl import DSRL_NAMES, load_hdf5, load_npz
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import get_task

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
    # Episode 0 is truncated, 1 terminates, 2 is truncated after one step: nothing of it can be kept.
    columns = make_columns(lengths=(3, 2, 1), terminated=(1,))
    arrays = to_dsrl(columns)
    del arrays["next_observations"]
    write(tmp_path / file_name, arrays)
    with pytest.warns(UserWarning, match=r"no 'next_observations'.*dropped the last row of 2 truncated"):
        data = load_transitions(tmp_path / file_name, BALL)
    batch = data.transitions
    assert batch.reward.tolist() == columns["reward"][[0, 1, 3, 4]].tolist()
    assert batch.truncated.tolist() == [False, True, False, False]
    assert batch.terminated.tolist() == [False, False, False, True]
    assert data.episodes.length.tolist() == [2, 2]
    observation = torch.from_numpy(columns["observation"])
    assert torch.equal(batch.next_observation, observation[[1, 2, 4, 4]])
    # Up to the terminal stand-in this is what the simulator really returned.
    assert torch.equal(batch.next_observation[:3], torch.from_numpy(columns["next_observation"])[[0, 1, 3]])


def test_only_one_step_episodes_and_no_next_observations_leave_nothing(tmp_path):
    arrays = to_dsrl(make_columns(lengths=(1, 1)))
    del arrays["next_observations"]
    write_npz(tmp_path / "data.npz", arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DatasetError, match=r"data\.npz: zero rows"):
            load_transitions(tmp_path / "data.npz")


@formats
@pytest.mark.parametrize("column", [name for name in DSRL_NAMES if name != "next_observation"])
def test_missing_column(tmp_path, file_name, write, column):
    arrays = to_dsrl(make_columns())
    del arrays[DSRL_NAMES[column]]
    write(tmp_path / file_name, arrays)
    with pytest.raises(
        DatasetError, match=rf"{file_name}: column '{DSRL_NAMES[column]}' is missing; the file"
    ):
        load_transitions(tmp_path / file_name, BALL)


@formats
def test_a_missing_column_is_told_with_what_the_file_really_has(tmp_path, file_name, write):
    arrays = to_dsrl(make_columns())
    arrays["cost"] = arrays.pop("costs")
    write(tmp_path / file_name, arrays)
    with pytest.raises(DatasetError, match=r"column 'costs' is missing; the file has .*'cost'"):
        load_transitions(tmp_path / file_name)


def test_arrays_in_a_group_are_shown_by_their_paths(tmp_path):
    arrays = {f"data/{name}": values for name, values in to_dsrl(make_columns()).items()}
    write_hdf5(tmp_path / "x.hdf5", arrays | {"version": np.ones(1)})
    with pytest.raises(
        DatasetError, match=r"'observations' is missing; the file has 'version', .*'data/observations'"
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
        load_hdf5(tmp_path / "a.hdf5")
    with pytest.raises(DatasetError, match="but an HDF5 file"):
        load_npz(tmp_path / "b.npz")


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
