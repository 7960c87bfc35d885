"""What `ColumnChecker` refuses, through the one constructor that everything goes through."""

import numpy as np
import pytest
from data_factory import make_columns

from spi_diffusers.data.columns import COLUMNS, DatasetError
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset

BALL = get_task("ballcircle")


def with_value(name, row, value):
    columns = make_columns()
    values = columns[name].astype(np.float64 if columns[name].dtype != bool else np.float32)
    values[row] = value
    return columns | {name: values}


@pytest.mark.parametrize("name", COLUMNS)
def test_missing_column(name):
    columns = make_columns()
    del columns[name]
    with pytest.raises(DatasetError, match=rf"here: column '{name}' is missing; the file has .*'"):
        TransitionDataset.from_columns(columns, source="here")


@pytest.mark.parametrize("name", ["observation", "next_observation", "action", "reward", "cost"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_non_finite_value_names_column_and_first_row(name, value):
    columns = with_value(name, 4, value)
    columns[name][6] = np.nan
    with pytest.raises(DatasetError, match=rf"column '{name}' has .*not finite.*first in row 4"):
        TransitionDataset.from_columns(columns)


def test_plus_and_minus_infinity_do_not_cancel_out():
    columns = with_value("reward", 1, np.inf)
    columns["reward"][2] = -np.inf
    with pytest.raises(DatasetError, match=r"'reward' has 2 values that are not finite.*row 1"):
        TransitionDataset.from_columns(columns)


def test_large_float32_values_that_sum_beyond_float32_are_fine():
    columns = make_columns() | {"reward": np.full(9, 3e38, dtype=np.float32)}
    assert TransitionDataset.from_columns(columns).episodes.return_[0] > 8e38


@pytest.mark.parametrize("name", ["terminated", "truncated"])
@pytest.mark.parametrize("value", [0.5, 2, -1, np.nan])
def test_flag_that_is_neither_0_nor_1(name, value):
    with pytest.raises(DatasetError, match=rf"column '{name}' must hold only 0 and 1, but row 3"):
        TransitionDataset.from_columns(with_value(name, 3, value))


def test_negative_cost():
    with pytest.raises(
        DatasetError, match=r"'cost' has the negative value -0\.5 in row 5; a cost is at least 0"
    ):
        TransitionDataset.from_columns(with_value("cost", 5, -0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": np.zeros((9, 7))}, "'observation' has 7 dimensions, but OfflineBallCircle-v0 has 8"),
        ({"next_observation": np.zeros((9, 9))}, "'next_observation' has 9 dimensions, but"),
        ({"action": np.zeros((9, 3))}, "'action' has 3 dimensions, but OfflineBallCircle-v0 has 2"),
        ({"action": np.zeros(9)}, r"'action' must have shape \(rows, dimensions\), not \(9,\)"),
        ({"observation": np.zeros((9, 2, 4))}, r"'observation' must have shape .* not \(9, 2, 4\)"),
        ({"reward": np.zeros((9, 2))}, r"'reward' must have shape \(rows,\) or \(rows, 1\), not \(9, 2\)"),
        ({"cost": np.array(["a"] * 9)}, "'cost' must hold numbers, not <U1"),
        ({"reward": np.zeros(9, dtype=complex)}, "'reward' must hold numbers, not complex128"),
        ({"cost": np.zeros(8)}, "'cost' has 8 rows, but 'observation' has 9"),
        ({"truncated": np.zeros(9), "terminated": np.zeros(9)}, "no episode ends: neither 'terminated' nor"),
        ({"truncated": np.arange(9) == 4}, r"last episode \(rows 5 to 8\) has no end"),
        ({"episode_index": np.array([0, 0, 1, 1, 1, 2, 2, 2, 2])}, "'episode_index' holds 1 in row 2"),
        ({"episode_index": np.array([0, 0, 0, 1, 1, 0, 0, 0, 0])}, "one index for two episodes"),
        ({"frame_index": np.array([0, 1, 2, 0, 1, 0, 1, 3, 2])}, "'frame_index' holds 3 in row 7"),
        ({"frame_index": np.arange(4)}, "'frame_index' has 4 rows"),
        ({"episode_index": np.arange(4)}, "'episode_index' has 4 rows"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_shapes_and_ends(change, message):
    with pytest.raises(DatasetError, match=message) as error:
        TransitionDataset.from_columns(make_columns() | change, task=BALL, source="here")
    assert str(error.value).startswith("here: ")


def test_dimensions_must_agree_without_a_task_too():
    columns = make_columns() | {"next_observation": np.zeros((9, 7))}
    with pytest.raises(DatasetError, match="has 7 dimensions, but 'observation' has 8"):
        TransitionDataset.from_columns(columns)


def test_zero_rows():
    with pytest.raises(DatasetError, match="zero rows"):
        TransitionDataset.from_columns({name: values[:0] for name, values in make_columns().items()})


def test_any_distinct_episode_index_is_renumbered():
    columns = make_columns() | {"episode_index": np.array([7] * 3 + [40] * 2 + [3] * 4)}
    assert TransitionDataset.from_columns(columns).episode_index.tolist() == [0] * 3 + [1] * 2 + [2] * 4


def test_actions_outside_the_range_of_a_task():
    columns = with_value("action", 2, 1.002)
    with pytest.raises(
        DatasetError,
        match=r"'action' has 1 rows outside \[-1, 1\].*row 2.*clip_actions=True \(--clip-actions\)",
    ):
        TransitionDataset.from_columns(columns, task=BALL)
    clipped = TransitionDataset.from_columns(columns, task=BALL, clip_actions=True)
    assert clipped.transitions.action[2].tolist() == [1.0, 1.0]
    # Another robot's action units are its own: without a task there is no range to check.
    assert TransitionDataset.from_columns(columns).transitions.action[2, 0] == np.float32(1.002)


def test_rounding_beyond_the_action_range_is_clamped():
    data = TransitionDataset.from_columns(with_value("action", 2, -1.0009), task=BALL)
    assert data.transitions.action[2].tolist() == [-1.0, -1.0]


def test_messages_use_the_names_of_the_source():
    columns = with_value("cost", 1, np.nan)
    with pytest.raises(DatasetError, match=r"data\.npz: column 'costs' has"):
        TransitionDataset.from_columns(columns, source="data.npz", names={"cost": "costs"})
