"""A folder of an older format, read by a package that is one version ahead of today's."""

import json

import pytest
import torch
from pipeline_factory import make_pipeline

from spi_diffusers.pipelines import SPIPolicyPipeline, migrations, spi_policy
from spi_diffusers.pipelines.migrations import MIGRATIONS, migrate


def test_there_is_a_step_from_every_older_version_to_the_next():
    assert sorted(MIGRATIONS) == list(range(1, spi_policy.FORMAT_VERSION))


def test_what_is_up_to_date_or_newer_or_no_version_at_all_is_left_as_it_is():
    for version in (spi_policy.FORMAT_VERSION, 99, "new", [1], None):
        assert migrate({"format_version": version, "gamma": 0.9}) == {"format_version": version, "gamma": 0.9}


@pytest.fixture
def one_version_ahead(monkeypatch):
    """As if version 1 had called the reserve `reserve`, in shares of 10."""

    def rename(index):
        index = dict(index)
        index["budget_reserve"] = 10 * index.pop("reserve")
        return index

    monkeypatch.setattr(spi_policy, "FORMAT_VERSION", 2)
    monkeypatch.setitem(migrations.MIGRATIONS, 1, rename)


@pytest.fixture
def old_folder(tmp_path):
    make_pipeline(budget_reserve=2.0).save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "model_index.json"
    index = json.loads(path.read_text())
    index["reserve"] = index.pop("budget_reserve") / 10
    path.write_text(json.dumps(index))
    return tmp_path / "old"


def test_an_older_policy_loads_acts_and_is_saved_in_the_newest_version(
    old_folder, one_version_ahead, tmp_path
):
    before = (old_folder / "model_index.json").read_bytes()
    pipe = SPIPolicyPipeline.from_pretrained(str(old_folder))
    assert (pipe.config.budget_reserve, pipe.config.format_version) == (2.0, 2)
    assert pipe(torch.zeros(3), cost_limit=10.0).actions.shape == (2,)
    assert (old_folder / "model_index.json").read_bytes() == before

    pipe.save_pretrained(tmp_path / "new")
    index = json.loads((tmp_path / "new" / "model_index.json").read_text())
    assert (index["budget_reserve"], index["format_version"]) == (2.0, 2)
    assert "reserve" not in index


def test_a_folder_without_a_version_is_of_the_first(old_folder, one_version_ahead):
    path = old_folder / "model_index.json"
    index = json.loads(path.read_text())
    del index["format_version"]
    path.write_text(json.dumps(index))
    assert SPIPolicyPipeline.from_pretrained(str(old_folder)).config.budget_reserve == 2.0


def test_without_the_step_the_old_setting_is_named(old_folder):
    with pytest.raises(ValueError, match="unknown field 'reserve'"):
        SPIPolicyPipeline.from_pretrained(str(old_folder))
