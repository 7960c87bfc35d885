"""Files of arrays, npz and HDF5, become datasets."""

import warnings
import zipfile

import h5py
import numpy as np
import pytest
import torch
from array_factory import formats, write_hdf5, write_npz
from data_factory import make_columns, make_dataset, to_dsrl

from spi_diffusers.data.arrays import DSRL_NAMES
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.loading import load_tables, load_transitions
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.tasks import get_task

BALL = get_task("ballcircle")


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
