import dataclasses

import pytest
from data_factory import make_dataset

from spi_diffusers.data.describe import describe_dataset, description_tables
from spi_diffusers.data.survey import common_length, remarks
from spi_diffusers.data.tasks import get_task


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


def test_episodes_longer_and_shorter_than_the_setting_are_told():
    data = make_dataset(lengths=(3, 2, 4))
    assert remarks(data, 4) == []
    (longer,) = remarks(data, 2)
    assert "2 of 3 episodes are longer than 2 steps" in longer
    assert "set max_episode_steps=4" in longer
    (shorter,) = remarks(data, 9)
    assert "no episode has more than 4" in shorter
    assert remarks(dataclasses.replace(data, task=get_task("ballcircle")), 200) == []
