import shutil

import pytest
from data_factory import make_dataset

from spi_diffusers.data import memory
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.writing import write_parquet_dataset


@pytest.fixture(scope="session")
def written_template(tmp_path_factory):
    """A small dataset in a folder; not to be changed."""
    data = make_dataset(task=get_task("ballcircle"), terminated=(1,))
    target = tmp_path_factory.mktemp("template") / "set"
    return write_parquet_dataset(data, target, description="By *hand*.", source="a test")


@pytest.fixture
def written(written_template, tmp_path):
    """A copy of it."""
    return shutil.copytree(written_template, tmp_path / "set")


@pytest.fixture
def little_memory(tmp_path_factory, monkeypatch):
    """A container with 10 MB of memory left."""
    group = tmp_path_factory.mktemp("cgroup")
    for name, text in (("limit", "11000000"), ("usage", "1000000"), ("memory.stat", "cached 0")):
        (group / name).write_text(f"{text}\n")
    monkeypatch.setattr(memory, "_CGROUPS", ((str(group), "limit", "usage", "cached"),))
