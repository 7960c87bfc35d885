import dataclasses

import numpy as np
import pytest
from data_factory import make_columns, make_dataset

from spi_diffusers.data.actions import ActionRange
from spi_diffusers.data.describe import describe_dataset, description_tables
from spi_diffusers.data.streaming import open_stream
from spi_diffusers.data.survey import common_length, remarks
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import write_parquet_dataset


def episodes_of(lengths, terminated=()):
    return make_dataset(lengths=lengths, terminated=terminated).episodes


@pytest.mark.parametrize(
    ("lengths", "terminated", "steps"),
    [
        ((5, 5, 5), (), 5),
        ((5,), (), 5),
        ((5,), (0,), 5),
        ((2, 5, 3, 5), (0, 2), 5),  # a time limit of 5, and two that ended before
        ((5,) * 9 + (3,), (), 5),  # one was interrupted
        ((5,) * 9 + (8,), (), 5),
        ((5,) * 8 + (3, 3), (), None),
        ((5,) * 8 + (8, 8), (8, 9), None),  # two that ended later than the time limit
        ((5, 5, 5), (0, 1, 2), 5),
        ((2, 5, 3), (0, 1, 2), None),  # nothing tells of a time limit
        ((2, 9, 7, 1), (0, 1, 2), None),  # the log ended in the last one
    ],
)
def test_the_length_of_nine_in_ten_truncated_episodes_is_found(lengths, terminated, steps):
    assert common_length(episodes_of(lengths, terminated)) == steps


def test_the_description_says_over_how_many_steps_a_limit_counts_or_asks():
    found = describe_dataset(make_dataset(lengths=(4, 4, 2), terminated=(2,)))
    assert (found["max_episode_steps"], found["remarks"]) == (4, [])
    assert "A limit counts over 4 steps." in str(description_tables(found)[0].caption)
    dataset = make_dataset(lengths=(3, 2, 7), terminated=(1,))
    asked = describe_dataset(dataset)
    assert asked["max_episode_steps"] is None
    assert "counts" not in str(description_tables(asked)[0].caption)
    (question,) = asked["remarks"]
    assert question == (
        f"{dataset.source}: over how many steps a cost limit counts is not clear: 3 episodes, of which 2 "
        "were truncated, have 2 to 7 steps (median 3). Give the most that an episode may have as "
        "max_episode_steps (--max-episode-steps)"
    )


def odd(change):
    """The remarks about three episodes of 3 steps, one of whose columns was changed."""
    columns = make_columns(lengths=(3, 3, 3))
    change(columns)
    return remarks(TransitionDataset.from_columns(columns, source="x"))


def test_nothing_is_odd_about_usual_data():
    assert odd(lambda columns: None) == []


def set_all(name, value, number=slice(None)):
    def change(columns):
        if columns[name].ndim == 1:
            columns[name][:] = value
        else:
            columns[name][:, number] = value

    return change


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (set_all("cost", 0), "x: no step costs anything, so a cost limit has no effect"),
        (set_all("reward", -2), "x: every reward is -2, so no action is better"),
        (set_all("observation", 7, [1, 4]), "x: number 1, 4 of the observation never changes"),
        (set_all("observation", 0), "x: every number of the observation never changes"),
        (set_all("action", 0.5), "x: every number of the action never changes"),
        (lambda columns: columns["action"].__imul__(1e-3), "stays within 0.1% of its range of -1 to 1"),
    ],
)
def test_columns_that_nothing_can_be_learned_from_are_told(change, remark):
    (found,) = odd(change)
    assert remark in found


def test_a_range_that_is_taken_from_the_data_is_told_with_its_numbers():
    columns = make_columns(lengths=(3, 3, 3))
    columns["action"][:, 1] = np.linspace(0, 3, 9)
    dataset = TransitionDataset.from_columns(columns, source="x")
    (found,) = remarks(dataset)
    assert "number 1 of the action is taken to be in [0, 3], as the data shows" in found
    assert remarks(dataset, range_given=True) == []
    assert "Actions are taken to lie in [-1, 1], [0, 3]." in str(
        description_tables(describe_dataset(dataset))[0].caption
    )
    stated = ActionRange((-1.0, 0.0), (1.0, 3.5))
    assert remarks(dataclasses.replace(dataset, action_range=stated)) == []


def test_one_episode_is_told_and_the_same_is_told_of_streamed_data(tmp_path):
    columns = make_columns(lengths=(5,))
    columns["cost"][:] = 0
    columns["observation"][:, 2] = 3
    columns["action"] *= 20
    dataset = TransitionDataset.from_columns(columns)
    write_parquet_dataset(dataset, tmp_path / "set", config_name="robot")
    stats = open_stream(tmp_path / "set", progress=False)
    (tmp_path / "set" / "robot" / "stats.json").unlink()
    scan = open_stream(tmp_path / "set", progress=False)
    expected = [text.removeprefix("memory: ") for text in remarks(dataset)]
    assert [text[:20] for text in expected] == [
        "has one episode: how",
        "no step costs anythi",
        "number 2 of the obse",
        "the range of actions",
    ]
    for stream in (stats, scan):
        assert [text.removeprefix(f"{stream.source}: ") for text in remarks(stream)] == expected
        assert stream.extremes.keys() == dataset.extremes.keys()
        for name, extremes in stream.extremes.items():
            np.testing.assert_array_equal(extremes, dataset.extremes[name])


def test_episodes_longer_and_shorter_than_the_setting_are_told():
    data = make_dataset(lengths=(3, 2, 4))
    assert remarks(data, 4) == []
    (longer,) = remarks(data, 2)
    assert "2 of 3 episodes are longer than 2 steps" in longer
    assert "set max_episode_steps=4" in longer
    (shorter,) = remarks(data, 9)
    assert "no episode has more than 4" in shorter
    assert remarks(dataclasses.replace(data, task=get_task("ballcircle")), 200) == []
