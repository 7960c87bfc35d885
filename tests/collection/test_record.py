"""By what a finished collection is known again; what is under way is tested in test_collector.py."""

import json
import shutil
from dataclasses import replace

import pytest
from collection_factory import tiny_config

from spi_diffusers.collection.collector import collect
from spi_diffusers.collection.record import is_collected
from spi_diffusers.data.tasks import get_task

pytest.importorskip("bullet_safety_gym")
TASK = get_task("ballcircle")
CONFIG = tiny_config(steps=600)
SETTINGS = {"seed": 0, "max_bytes": 10**6, "full_precision": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected") / "ball"
    collect(TASK, folder, CONFIG, **SETTINGS)
    return folder


def test_the_same_settings(folder):
    assert is_collected(TASK, folder, CONFIG, **SETTINGS)
    assert is_collected(
        TASK, folder, tiny_config(steps=600, cost_targets=list(CONFIG.cost_targets)), **SETTINGS
    )


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"max_bytes": 10**6 + 1},
        {"full_precision": True},
        {"steps": 601},
        {"penalties": (0.0, 0.3)},
    ],
)
def test_other_settings(folder, change):
    settings = SETTINGS | {name: value for name, value in change.items() if name in SETTINGS}
    config = replace(CONFIG, **{name: value for name, value in change.items() if name not in SETTINGS})
    assert not is_collected(TASK, folder, config, **settings)


def test_another_task_and_a_folder_that_does_not_exist(folder, tmp_path):
    assert not is_collected(get_task("carrun"), folder, CONFIG, **SETTINGS)
    assert not is_collected(TASK, tmp_path / "nowhere", CONFIG, **SETTINGS)


def test_a_dataset_whose_files_are_gone_is_not_finished(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "ball")
    for name in ("episodes.parquet", "train-00000-of-00001.parquet"):
        path = tmp_path / "ball" / TASK.name / name
        content = path.read_bytes()
        path.unlink()
        assert not is_collected(TASK, tmp_path / "ball", CONFIG, **SETTINGS)
        path.write_bytes(content)
    assert is_collected(TASK, tmp_path / "ball", CONFIG, **SETTINGS)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"collection": 3}'])
def test_a_dataset_without_a_record_is_not_known(tmp_path, content):
    (tmp_path / TASK.name).mkdir()
    (tmp_path / TASK.name / "stats.json").write_text(content)
    assert not is_collected(TASK, tmp_path, CONFIG, **SETTINGS)


def test_the_record_is_told_beside_the_statistics(folder):
    stats = json.loads((folder / TASK.name / "stats.json").read_text())
    assert stats["collection"]["steps"] == 600
    assert stats["collection"]["max_bytes"] == 10**6
    assert stats["num_episodes"] > 0
