import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spi_diffusers.data.tasks import (
    TASKS,
    UnknownTaskError,
    get_task,
    resolve_task,
    source_kind,
    task_of_file,
)


def test_there_are_dsrls_38_tasks_and_the_papers_eight():
    assert len(TASKS) == 38
    counts = {s: sum(t.simulator == s for t in TASKS.values()) for s in {t.simulator for t in TASKS.values()}}
    assert counts == {"bullet": 8, "velocity": 5, "safety_gymnasium": 16, "metadrive": 9}
    names = "ballcircle carcircle carrun dronecircle antvelocity halfcheetahvelocity hoppervelocity"
    assert " ".join(t.short_name for t in TASKS.values() if t.paper) == f"{names} walker2dvelocity"
    assert len({t.short_name for t in TASKS.values()}) == 38
    assert all(key == task.name for key, task in TASKS.items())


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda t: t.short_name)
def test_constants_are_consistent(task):
    assert task.reward_min < task.reward_max
    assert 0 <= task.cost_min < task.cost_max
    assert task.max_episode_steps in (100, 200, 300, 500, 1000)
    assert task.dataset_file.endswith(".hdf5")
    # DSRL's file names carry the (rounded) largest cost return and the number of trajectories.
    largest_cost = int(task.dataset_file.split("-")[-2])
    assert largest_cost == pytest.approx(task.cost_max, abs=5)
    assert task.short_name in task.dataset_file.lower()
    assert task.paper_cost_limit == (10 if task.paper else None)
    assert min(task.observation_dim, task.action_dim) > 0
    assert task.cost_limits == ((10, 20, 40) if task.simulator in ("bullet", "metadrive") else (20, 40, 80))
    assert all(limit < task.cost_max for limit in task.cost_limits[:2])


def test_known_constants():
    ball = get_task("OfflineBallCircle-v0")
    assert (ball.env_id, ball.max_episode_steps) == ("SafetyBallCircle-v0", 200)
    assert (ball.observation_dim, ball.action_dim) == (8, 2)
    assert (ball.reward_min, ball.reward_max) == (0.38312244415283203, 881.46337890625)
    assert ball.dataset_file == "SafetyBallCircle-v0-80-886.hdf5"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("OfflineBallCircle-v0", "OfflineBallCircle-v0"),
        ("offlineballcircle-v0", "OfflineBallCircle-v0"),
        (" BallCircle ", "OfflineBallCircle-v0"),
        ("hoppervelocity", "OfflineHopperVelocityGymnasium-v1"),
        ("OfflineHopperVelocity-v1", "OfflineHopperVelocityGymnasium-v1"),
        ("carbutton1", "OfflineCarButton1Gymnasium-v0"),
        ("easysparse", "OfflineMetadrive-easysparse-v0"),
    ],
)
def test_lookup_by_id_and_short_form(given, name):
    assert get_task(given).name == name
    assert get_task(get_task(given)) is TASKS[name]


def test_unknown_task_lists_close_matches_and_how_to_list_all():
    with pytest.raises(
        UnknownTaskError, match=r"balcircle.*ballcircle \(OfflineBallCircle-v0\).*TASKS"
    ) as error:
        get_task("balcircle")
    assert isinstance(error.value, KeyError)
    assert isinstance(error.value, ValueError)
    with pytest.raises(UnknownTaskError, match="hoppervelocity"):
        get_task("hopper")
    with pytest.raises(UnknownTaskError, match="`spi tasks` lists all 38"):
        get_task("")


def test_normalised_scores_by_hand():
    task = get_task("carrun")
    assert task.normalize_reward(task.reward_max) == 1.0
    assert task.normalize_reward(task.reward_min) == 0.0
    assert task.normalize_reward((task.reward_max + task.reward_min) / 2) == pytest.approx(0.5)
    assert task.normalize_cost(15.0, 10) == 1.5
    # DSRL adds 1 to both only for limit 0, where the ratio would not exist.
    assert task.normalize_cost(0.0, 0) == 1.0
    assert task.normalize_cost(3.0, 0) == 4.0
    np.testing.assert_allclose(task.normalize_cost(np.array([0.0, 5.0]), 20), [0.0, 0.25])


@pytest.mark.parametrize("limit", [-1, -1e-9, float("nan"), float("inf")])
def test_impossible_cost_limit(limit):
    with pytest.raises(ValueError, match="cost_limit must be a finite number of at least 0"):
        get_task("carrun").normalize_cost(1.0, limit)


def test_importing_tasks_needs_neither_torch_nor_numpy():
    code = "import sys, spi_diffusers.data.tasks; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("OfflineHopperVelocityGymnasium-v1.npz", "hoppervelocity"),
        ("some/ballcircle.csv.gz", "ballcircle"),
        ("SafetyBallCircle-v0-80-886.hdf5", "ballcircle"),
        ("log.csv", None),
    ],
)
def test_a_files_name_tells_its_task(name, task):
    assert task_of_file(Path(name)) == (None if task is None else get_task(task))


# ---- tasks and configs by name


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


def test_what_a_datasets_name_stands_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "log.csv").write_text("")
    (tmp_path / "arm" / "data").mkdir(parents=True)
    (tmp_path / "arm" / "data" / "metadata.json").write_text("{}")
    (tmp_path / "org" / "there").mkdir(parents=True)
    kinds = {
        "embedded": (None, "embedded"),
        "dsrl": ("dsrl",),
        "minari": ("minari:lab/arm-v0", "arm", tmp_path / "arm"),
        "folder": ("folder", "", ".", "org/there"),
        "file": ("log.csv",),
        "dsrl-hub": ("YYY-45/DSRL", "yyy-45/dsrl"),
        "hub": ("org/name", "org/my.set"),
        "missing": ("nowhere", "org/x.npz", "org/x.csv.gz", "a/b/c", "/no/where", "~/nowhere"),
    }
    for kind, names in kinds.items():
        assert {name: source_kind(name) for name in names} == dict.fromkeys(names, kind)
