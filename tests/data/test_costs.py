"""Data with several costs: from columns to the parquet layout and back, and what is made of them."""

import numpy as np
import pytest
import torch
from data_factory import make_columns

from spi_diffusers.commands.train import next_step
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.costs import names_from_metadata, summed_costs
from spi_diffusers.data.describe import describe_dataset, description_tables, save_description
from spi_diffusers.data.loading import load_tables, load_transitions
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.streaming import open_stream
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.data.writing import write_parquet_dataset

SPEED, ENERGY = [0.0, 1.0, 0.0, 1.0], [200.0, 600.0, 0.0, 600.0]


def make_data(**changes) -> TransitionDataset:
    """Two episodes of two steps: costs of (1, 800) and (1, 600)."""
    columns = make_columns(lengths=(2, 2), terminated=())
    costs = {"cost": np.stack([SPEED, ENERGY], axis=1)} | changes
    return TransitionDataset.from_columns(columns | costs, cost_names=["speed", "energy"])


def test_each_cost_has_its_own_unit_and_their_sum_is_the_cost_by_hand():
    """Units: 2 / 2 = 1, and (200^2 + 2 * 600^2) / 1400 = 542.857."""
    data = make_data()
    unit = 760_000 / 1400
    summed = [200 / unit, 1 + 600 / unit, 0.0, 1 + 600 / unit]
    np.testing.assert_allclose(data.transitions.cost, summed, rtol=1e-6)
    assert data.transitions.costs.tolist() == np.stack([SPEED, ENERGY], axis=1).tolist()
    units = Units.of(data)
    assert units.costs == pytest.approx((1.0, unit))
    assert units.cost == pytest.approx(np.square(summed).sum() / sum(summed))


@pytest.mark.parametrize("scale", [0.003, 5000.0])
def test_units_of_the_costs_do_not_matter_to_their_sum(scale):
    costs = np.stack([SPEED, ENERGY], axis=1).astype(np.float32)
    np.testing.assert_allclose(summed_costs(costs * [scale, 1.0]), summed_costs(costs), rtol=1e-5)


def test_an_episode_keeps_a_limit_if_all_its_costs_do():
    episodes = make_data().episodes
    assert episodes.cost_returns.tolist() == [[1.0, 800.0], [1.0, 600.0]]
    assert episodes.keep((1.0, 700.0)).tolist() == [False, True]
    assert episodes.keep((0.5, 900.0)).tolist() == [False, False]
    assert episodes.best_return_within((0.5, 900.0)) is None
    assert episodes.usual_cost_limits(None) == ((1.0, 650.0), (1.0, 700.0), (1.0, 750.0))
    assert repr(episodes).endswith("cost return 1 to 1 and 600 to 800")
    with pytest.raises(ValueError, match=r"2 cost\(s\), so a cost limit needs as many numbers, got 700"):
        episodes.keep(700.0)


def test_one_cost_is_as_before():
    data = TransitionDataset.from_columns(make_columns(lengths=(2, 2), terminated=()))
    assert data.cost_names == ("cost",)
    assert torch.equal(data.transitions.costs[:, 0], data.transitions.cost)
    assert torch.equal(data.episodes.cost_returns[:, 0], data.episodes.cost_return)
    again = data.with_costs({"cost": data.transitions.cost.numpy()})
    assert again.sha256 == data.sha256
    assert data.with_costs({"a": np.ones(4), "b": np.ones(4)}).sha256 != data.sha256


def test_written_data_is_read_again(tmp_path):
    data = make_data()
    folder = write_parquet_dataset(data, tmp_path / "set", config_name="two")
    read = load_transitions(folder)
    assert (read.cost_names, read.sha256) == (("speed", "energy"), data.sha256)
    assert torch.equal(read.transitions.cost, data.transitions.cost)
    card = (folder / "README.md").read_text()
    assert "* License: cc-by-4.0\n* Costs: speed, energy, with a limit for each. The table above" in card
    assert " within (1, 650), " in card
    assert "at least 0, of several costs a float32 list of fixed size |" in card
    assert read.select_episodes(torch.tensor([1])).episodes.cost_returns.tolist() == [[1.0, 600.0]]
    with pytest.raises(DatasetError, match="several costs cannot be streamed"):
        open_stream(folder)


def write_csv(path):
    rows = ["obs_0,action,reward,speed,energy,episode"]
    rows += [f"0.{k},0.5,1,{SPEED[k]},{ENERGY[k]},{k // 2}" for k in range(4)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_costs_are_called_as_their_columns(tmp_path):
    with pytest.warns(UserWarning, match="next observation"):
        data = load_tables(write_csv(tmp_path / "log.csv"), columns=ColumnNames(cost=("speed", "energy")))
    assert data.cost_names == ("speed", "energy")
    assert data.episodes.cost_returns.tolist() == [[1.0, 800.0], [1.0, 600.0]]


def test_costs_in_one_array_are_numbered(tmp_path):
    columns = make_columns(lengths=(2, 2), terminated=())
    np.savez(tmp_path / "log.npz", **columns | {"cost": np.stack([SPEED, ENERGY], axis=1)})
    assert load_transitions(tmp_path / "log.npz").cost_names == ("cost_0", "cost_1")


def test_what_follows_the_training_takes_a_limit_of_each():
    columns = make_columns(lengths=(2, 2), terminated=()) | {"cost": np.stack([SPEED, ENERGY], axis=1)}
    data = TransitionDataset.from_columns(
        columns, task=get_task("ballcircle"), cost_names=["speed", "energy"]
    )
    assert next_step("my run", data) == "spi evaluate 'my run' --cost-limit SPEED,ENERGY"
    assert next_step("run", make_data()).endswith(
        'has no DSRL task: policy.controller({"speed": ..., "energy": ...}) keeps count of its costs.'
    )


def test_a_description_has_each_cost(tmp_path):
    data = make_data()
    description = describe_dataset(data, [(1.0, 700.0)])
    assert description["cost_returns"]["energy"]["max"] == 800.0
    assert (description["limits"][0]["cost_limit"], description["limits"][0]["episodes"]) == ([1.0, 700.0], 1)
    cells = [list(column.cells) for table in description_tables(description) for column in table.columns]
    assert "cost return, energy" in cells[0]
    assert ["1, 700"] in cells
    assert all(path.is_file() for path in save_description(data, description, tmp_path))
    small = describe_dataset(
        make_data(cost=np.stack([SPEED, np.array(ENERGY) * 1e-5], axis=1)), [(1.0, 7e-3)]
    )
    (*_, energy, _) = zip(*(column.cells for column in description_tables(small)[0].columns), strict=True)
    figures = ("0.00600", "0.00650", "0.00700", "0.00700", "0.00750", "0.00800")
    assert energy == ("cost return, energy", *figures)
    idle = make_data(cost=np.stack([SPEED, np.zeros(4)], axis=1))
    assert any("'energy' is the wrong column" in remark for remark in describe_dataset(idle)["remarks"])


@pytest.mark.parametrize(
    ("names", "cost", "message"),
    [
        (["a", "a"], [[0.0, 1.0]], "2 costs need as many different names"),
        (["a"], [[0.0, 1.0]], "2 costs need as many different names"),
        (["a", "b"], [[0.0, -1.0]], "has the negative value -1 in row 0"),
        (["a", "b"], [[0.0, float("nan")]], "not finite"),
    ],
)
def test_bad_costs_are_refused(names, cost, message):
    columns = make_columns(lengths=(2, 2), terminated=())
    with pytest.raises(DatasetError, match=message):
        TransitionDataset.from_columns(columns | {"cost": np.repeat(cost, 4, axis=0)}, cost_names=names)


@pytest.mark.parametrize("text", [b"{", b"[1, 2]", b'"a"'])
def test_damaged_names_are_refused(text):
    with pytest.raises(DatasetError, match="its cost_names are damaged"):
        names_from_metadata({b"cost_names": text}, "file")
