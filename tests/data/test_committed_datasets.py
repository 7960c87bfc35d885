"""The datasets that are committed beside the package: whole, small enough, and as their cards say."""

from pathlib import Path

import pytest

from spi_diffusers.data.loading import load_transitions
from spi_diffusers.hub.datasets import check_folder, find_files

#: Highest return as a share of DSRL's, where PPO-Lagrangian did not find better behavior: see the presets.
FALLS_SHORT = {"Hopper": "89%", "AntRun": "71%", "AntCircle": "23%", "Swimmer": "23%"}
FOLDER = Path(__file__).resolve().parents[2] / "datasets"
TASKS = sorted(path.name for path in FOLDER.glob("Offline*") if path.is_dir())


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_they_could_be_published_as_they_are():
    check_folder(find_files(FOLDER), progress=False)
    assert len(TASKS) == 11  # the paper's eight, and three on which no setting of training was chosen


@pytest.mark.parametrize("task", TASKS)
def test_a_dataset_reaches_what_dsrls_does(task, request):
    for name, reason in FALLS_SHORT.items():
        if name in task:
            request.applymarker(pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason))
    dataset = load_transitions(FOLDER, task)
    assert float(dataset.episodes.return_.max()) >= 0.9 * dataset.task.reward_max


@pytest.mark.parametrize("task", TASKS)
def test_a_dataset_is_small_and_spans_the_plane(task):
    assert size_of(FOLDER / task) <= 8_000_000
    dataset = load_transitions(FOLDER, task)
    episodes = dataset.episodes
    for limit in dataset.task.cost_limits:
        within = episodes.cost_return <= limit
        assert within.float().mean() >= 0.15, limit
        assert episodes.best_return_within(limit) >= 0.6 * float(episodes.return_.max()), limit
