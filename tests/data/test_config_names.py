import pytest

from spi_diffusers.data.config_names import resolve_task
from spi_diffusers.data.tasks import UnknownTaskError, get_task

BALL = get_task("ballcircle")


@pytest.mark.parametrize("dataset", [None, "embedded", "dsrl", "x.npz", "org/name", "YYY-45/DSRL"])
def test_a_task_is_the_same_whatever_the_dataset(dataset):
    assert resolve_task("BallCircle", dataset) == resolve_task(BALL, dataset) == (BALL, BALL.name)
    assert resolve_task(None, dataset) == (None, None)


def test_another_name_is_that_of_a_config_where_there_can_be_configs(tmp_path):
    assert resolve_task("robot", tmp_path) == resolve_task("robot", "org/name") == (None, "robot")


@pytest.mark.parametrize(
    "dataset", [None, "embedded", "dsrl", "YYY-45/DSRL", "org/x.csv", "org/x.npz", "nowhere", "/no/where"]
)
def test_another_name_is_an_unknown_task_where_there_are_no_configs(dataset):
    with pytest.raises(UnknownTaskError, match="unknown task 'robot'"):
        resolve_task("robot", dataset)


def test_a_file_has_no_configs(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(UnknownTaskError, match="unknown task 'robot'"):
        resolve_task("robot", tmp_path / "data")
