"""A saved policy, and a copy of it to be damaged."""

import shutil
from pathlib import Path

import pytest
from pipeline_factory import full_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "policy"
    full_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "policy"))
