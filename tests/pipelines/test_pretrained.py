"""Policies that come with the package and with a clone."""

from pathlib import Path

import numpy as np
import pytest
from pipeline_factory import make_pipeline

from spi_diffusers import pretrained
from spi_diffusers.data.tasks import TASKS, UnknownTaskError
from spi_diffusers.evaluation.certificate import own_certificate
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish import assemble

ROOT = Path(__file__).parents[2]
POLICIES = sorted((ROOT / "policies").glob("spi-*"))


def test_they_are_of_tasks_and_one_is_ballcircles():
    names = [folder.name for folder in POLICIES]
    assert "spi-ballcircle" in names
    assert set(names) <= {f"spi-{task.short_name}" for task in TASKS.values()}


@pytest.mark.parametrize("folder", POLICIES, ids=lambda folder: folder.name)
def test_it_is_small_and_publishable_as_it_is(folder):
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 3e6
    assert (folder / "student" / "config.json").is_file()
    files = read_policy_files(folder)
    assert files.replay is not None
    assert set(files.plots) == {"limits.png"}
    assert files.assessment is not None
    published = assemble(files, f"org/{folder.name}")
    held = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    stale = "run: python scripts/make_policies.py policies"
    assert {
        name: data if isinstance(data, bytes) else data.read_bytes() for name, data in published.items()
    } == held, stale


@pytest.mark.parametrize("folder", POLICIES, ids=lambda folder: folder.name)
def test_its_certificate_is_of_200_episodes_at_each_limit(folder):
    certificate = own_certificate(folder)
    assert [row.cost_limit for row in certificate.limits] == list(TASKS[certificate.task].cost_limits)
    assert {row.episodes for row in certificate.limits} == {200}


def test_readme_says_what_is_certified_of_ballcircles():
    (row,) = (
        row for row in own_certificate(ROOT / "policies" / "spi-ballcircle").limits if row.cost_limit == 20
    )
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"Told 20, this policy exceeds it in at most {row.over_bound:.1%} of all its episodes" in text
    assert (row.over, row.episodes) == (0, 200)
    assert "none of 200 did" in text


def test_it_is_loaded_by_its_task_and_acts():
    policy = pretrained("OfflineBallCircle-v0")
    controller = policy.controller(cost_limit=20)
    controller.reset()
    action = controller.act(np.zeros(policy.noise_model.config.observation_dim))
    assert action.shape == (policy.noise_model.config.action_dim,)


def test_it_is_looked_for_in_the_package_first(tmp_path, monkeypatch):
    make_pipeline().save_pretrained(tmp_path / "package" / "spi-carrun")
    monkeypatch.setattr(
        "spi_diffusers.pipelines.pretrained._PLACES", (tmp_path / "package", tmp_path / "clone")
    )
    assert pretrained("carrun").noise_model.config.observation_dim == 3
    with pytest.raises(FileNotFoundError, match=r"holds no policy for ballcircle \(it holds: carrun\)"):
        pretrained()


def test_an_unknown_task():
    with pytest.raises(UnknownTaskError, match="ballcircl"):
        pretrained("ballcircl")
