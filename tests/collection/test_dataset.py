"""Which episodes of a collection become its dataset, and by what that is known again."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from collection_factory import collect_one, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.collection import dataset
from spi_diffusers.collection.config import CollectionSpec
from spi_diffusers.collection.dataset import is_collected, thin_episodes
from spi_diffusers.data.tasks import get_task

TASK = get_task("ballcircle")
CONFIG = tiny_config(steps=600)
SETTINGS = {"seed": 0, "max_bytes": 10**6, "full_precision": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("bullet_safety_gym")
    folder = tmp_path_factory.mktemp("collected") / "ball"
    collect_one(TASK, folder, CONFIG, **SETTINGS)
    return folder


def test_a_collection_is_known_by_the_same_settings(folder):
    assert is_collected(CollectionSpec(TASK, folder, CONFIG, **SETTINGS))
    assert is_collected(
        CollectionSpec(
            TASK, folder, tiny_config(steps=600, cost_targets=list(CONFIG.cost_targets)), **SETTINGS
        )
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
def test_a_collection_with_other_settings_is_another(folder, change):
    settings = SETTINGS | {name: value for name, value in change.items() if name in SETTINGS}
    config = replace(CONFIG, **{name: value for name, value in change.items() if name not in SETTINGS})
    assert not is_collected(CollectionSpec(TASK, folder, config, **settings))


def test_another_task_and_a_folder_that_does_not_exist(folder, tmp_path):
    assert not is_collected(CollectionSpec(get_task("carrun"), folder, CONFIG, **SETTINGS))
    assert not is_collected(CollectionSpec(TASK, tmp_path / "nowhere", CONFIG, **SETTINGS))


def test_a_dataset_whose_files_are_gone_is_not_finished(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "ball")
    for name in ("episodes.parquet", "train-00000-of-00001.parquet"):
        path = tmp_path / "ball" / TASK.name / name
        content = path.read_bytes()
        path.unlink()
        assert not is_collected(CollectionSpec(TASK, tmp_path / "ball", CONFIG, **SETTINGS))
        path.write_bytes(content)
    assert is_collected(CollectionSpec(TASK, tmp_path / "ball", CONFIG, **SETTINGS))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"collection": 3}'])
def test_a_dataset_without_a_record_is_not_known(tmp_path, content):
    (tmp_path / TASK.name).mkdir()
    (tmp_path / TASK.name / "stats.json").write_text(content)
    assert not is_collected(CollectionSpec(TASK, tmp_path, CONFIG, **SETTINGS))


def test_the_record_is_told_beside_the_statistics(folder):
    stats = json.loads((folder / TASK.name / "stats.json").read_text())
    assert stats["collection"]["steps"] == 600
    assert stats["collection"]["max_bytes"] == 10**6
    assert stats["num_episodes"] > 0


def thin(lengths, returns, costs, num_transitions, *, cost_limits=(10.0, 20.0, 40.0), seed=0):
    columns = (np.asarray(column) for column in (lengths, returns, costs))
    kept = thin_episodes(*columns, num_transitions, cost_limits=cost_limits, seed=seed)
    assert kept == sorted(set(kept))
    return kept


def test_crowded_cells_are_thinned_and_lonely_ones_kept(monkeypatch):
    monkeypatch.setattr(dataset, "_BINS", 2)
    # 100 episodes in one corner, one in each of the other three.
    kept = thin(
        [10] * 103, [*np.linspace(0, 1, 100), 100, 0, 100], [0] * 100 + [0, 50, 50], 80, cost_limits=()
    )
    assert len(kept) == 8
    assert {100, 101, 102} <= set(kept)


def test_the_best_within_limits_are_chosen_first():
    rng = np.random.default_rng(0)
    costs, returns = rng.integers(0, 60, 500).astype(float), rng.normal(size=500)
    lengths = rng.integers(10, 30, 500)
    kept = thin(lengths, returns, costs, 2000)
    assert lengths[kept].sum() <= 2000
    assert lengths[kept].sum() > 2000 - 30  # no episode is longer, so nothing more would fit
    for limit in (10, 20, 40):
        within = np.flatnonzero(costs <= limit)
        assert set(within[np.argsort(-returns[within])[:8]]) <= set(kept)


def test_the_plane_is_covered_besides_the_best(monkeypatch):
    monkeypatch.setattr(dataset, "_BINS", 2)
    # 100 episodes at (0, 0..1), one in each of the other three corners; the best ones are at cost 0.
    costs, returns = [0] * 100 + [0, 50, 50], [*np.linspace(0, 1, 100), 100, 0, 100]
    kept = thin([10] * 103, returns, costs, 80, cost_limits=(10.0,))
    assert len(kept) == 8
    assert {98, 99, 100} <= set(kept)  # 40% of 80 are the best three within 10
    assert {101, 102} <= set(kept)


@given(
    points=st.lists(
        st.tuples(st.integers(0, 50), st.integers(-9, 99), st.integers(1, 20)), min_size=1, max_size=60
    ),
    wanted=st.integers(1, 400),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_thinning_keeps_its_budget_and_the_best(points, wanted, share, seed):
    costs, returns, lengths = map(np.array, zip(*points, strict=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dataset, "_BEST_SHARE", share)
        kept = thin(lengths, returns, costs, wanted, seed=seed)
        assert kept == thin(lengths, returns, costs, wanted, seed=seed)
    assert lengths[kept].sum() <= wanted
    if lengths.sum() <= wanted:
        assert len(kept) == len(points)
    assert bool(kept) == (wanted >= lengths.min())
    within = np.flatnonzero(costs <= 10)
    if len(within) and kept:
        best = within[np.argmax(returns[within])]
        assert best in kept or lengths[best] > share * wanted
