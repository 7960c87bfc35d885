"""A saved policy, a copy of it to be damaged, and one whose predictions are known."""

import shutil
from pathlib import Path

import pytest
from pipeline_factory import full_pipeline, pipeline_by_hand


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "policy"
    full_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "policy"))


@pytest.fixture(scope="module")
def pipe():
    return pipeline_by_hand()
