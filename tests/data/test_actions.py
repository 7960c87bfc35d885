"""The range of actions that a source states or its values show, and discrete actions."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_factory import make_columns

from spi_diffusers.data.actions import ActionRange, seen_range
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.describe import describe_dataset
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.streaming import open_stream, sample_episodes
from spi_diffusers.data.survey import found_range
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import to_arrow, write_parquet_dataset

STATED = ActionRange((0.0, -2.0), (3.0, 2.0))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ([-0.2, -1.0005], [0.1, 0.0], ((-1, -1), (1, 1))),
        ([0.0, -0.5], [3.0, 0.5], ((0, -1), (3, 1))),
        ([5.0, 0.5], [5.0, 0.5], ((0, -1), (10, 1))),  # one that never changes lies in the middle
        ([-1.5, 1.0], [-1.5, 7.0], ((-3, 1), (0, 7))),
    ],
)
def test_a_dimension_within_the_usual_range_keeps_it_and_others_have_what_was_seen(low, high, expected):
    assert seen_range(np.float32(low), np.float32(high)) == expected


def test_a_stated_range_is_kept_by_the_parquet_layout_in_memory_and_streamed(tmp_path):
    dataset = TransitionDataset.from_columns(make_columns(), action_range=STATED)
    write_parquet_dataset(dataset, tmp_path / "set", config_name="robot")
    loaded, stream = load_transitions(tmp_path / "set"), open_stream(tmp_path / "set", progress=False)
    assert loaded.action_range == stream.action_range == found_range(loaded) == found_range(stream) == STATED
    assert loaded.sha256 == dataset.sha256
    assert loaded.select_episodes(loaded.episodes.episode_index[:1]).action_range == STATED
    assert sample_episodes(stream, 5, 0).action_range == STATED
    described = describe_dataset(loaded)
    assert (described["action_low"], described["action_high"]) == ([0, -2], [3, 2])
    task = get_task("ballcircle")
    assert found_range(TransitionDataset.from_columns(make_columns(), task=task)) == ((-1, -1), (1, 1))


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"low": 0, "high": 1}', '{"low": [0], "high": [1]}', '{"low": [0, 1], "high": [1, 1]}'],
)
def test_a_damaged_range_is_refused(tmp_path, text):
    table = to_arrow(TransitionDataset.from_columns(make_columns()))
    pq.write_table(table.replace_schema_metadata({b"action_range": text.encode()}), tmp_path / "x.parquet")
    with pytest.raises(DatasetError, match=r"x\.parquet.*range"):
        load_transitions(tmp_path / "x.parquet")


def table_of(**actions):
    rows = len(next(iter(actions.values())))
    values = np.arange(rows) / 10
    return pa.table(
        {"obs_0": values, "obs_1": values, **actions, "reward": values, "cost": values, "episode": [0] * rows}
    )


@pytest.mark.parametrize(
    ("actions", "few"),
    [
        ({"action": np.arange(40) % 3}, r"column 'action' .* 3 values \(0, 1, 2\): discrete actions"),
        ({"action": np.arange(40) % 2 == 0}, "has 2 values"),
        ({"action_0": np.ones(40) / 3, "action_1": np.arange(40) % 9}, r"'action_1' .*\(0, 1, 2, 3, 4, "),
        ({"action": [[0, k % 2] for k in range(40)]}, "column 'action' is typed as integers"),
        ({"action": np.arange(40) % 3 / 1.0}, None),  # floats are taken at their word
        ({"action": np.arange(40)}, None),  # and as many integers as a motor's steps
    ],
)
@pytest.mark.filterwarnings("ignore:.*took the following row")
def test_integers_of_few_values_are_discrete_actions(tmp_path, actions, few):
    pq.write_table(table_of(**actions), tmp_path / "log.parquet")
    if few is None:
        assert len(load_transitions(tmp_path / "log.parquet")) == 40
        return
    with pytest.raises(DatasetError, match=rf"log\.parquet: .*{few}"):
        load_transitions(tmp_path / "log.parquet")


def test_streamed_integers_of_few_values_are_discrete_actions_unless_a_task_says_otherwise(tmp_path):
    columns = make_columns()
    columns["action"] = np.sign(columns["action"])
    write_parquet_dataset(TransitionDataset.from_columns(columns), tmp_path / "set", config_name="robot")
    (file,) = (tmp_path / "set" / "robot").glob("train-*.parquet")
    table = pq.read_table(file)
    action = pa.array(columns["action"].astype(int).tolist(), pa.list_(pa.int64(), 2))
    pq.write_table(table.set_column(table.column_names.index("action"), "action", action), file)
    for load in (load_transitions, lambda folder: open_stream(folder, progress=False)):
        with pytest.raises(DatasetError, match=r"robot.*'action' is typed as integers .* 2 values \(-1, 1\)"):
            load(tmp_path / "set")
    assert len(load_transitions(file, "ballcircle")) == 9
