"""Units taken from the data, in memory and streamed."""

import pytest
import torch
from data_factory import make_columns

from spi_diffusers.data.streaming import open_stream
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.pipelines import SPIPolicyPipeline


def make_data(rewards, costs):
    columns = make_columns(lengths=(2, 2), terminated=())
    return TransitionDataset.from_columns(
        columns | {"reward": torch.tensor(rewards).numpy(), "cost": torch.tensor(costs).numpy()}
    )


@pytest.mark.parametrize(
    ("rewards", "costs", "expected"),
    [
        # sqrt((9 + 16 + 16 + 9) / 4), and (1 + 9 + 9) / (1 + 3 + 3)
        ([3.0, -4.0, 4.0, -3.0], [0.0, 1.0, 3.0, 3.0], (12.5**0.5, 19 / 7)),
        ([2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 50.0], (2.0, 50.0)),
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], (1.0, 1.0)),
        ([1e-30, 0.0, 0.0, 0.0], [1e30, 0.0, 0.0, 0.0], (1e-17, 1e17)),
    ],
    ids=["by hand", "constant and rare", "zero", "extreme"],
)
def test_units_by_hand(rewards, costs, expected):
    units = Units.of(make_data(rewards, costs))
    assert (units.reward, units.cost) == pytest.approx(expected, rel=1e-6)
    settings = {"task": None, "max_episode_steps": 2, "gamma": 0.9, "format_version": 2}
    SPIPolicyPipeline.check_settings(**settings, reward_unit=units.reward)


def test_costs_of_zero_and_one_have_a_unit_of_exactly_one(small_dataset):
    assert set(small_dataset.transitions.cost.tolist()) == {0.0, 1.0}
    assert Units.of(small_dataset).cost == 1.0


@pytest.mark.parametrize("k", [1e-3, 0.37, 1e4])
def test_units_of_streamed_data_are_the_same(tmp_path, k):
    data = make_data([3.0 * k, -4.1 * k, 4.0 * k, 0.1 * k], [0.0, 0.3 * k, 1.1 * k, 0.7 * k])
    folder = write_parquet_dataset(data, tmp_path / "set", config_name="set")
    stored = open_stream(folder)
    (folder / "set" / "stats.json").unlink()
    assert Units.of(stored) == Units.of(open_stream(folder, progress=False)) == Units.of(data)
