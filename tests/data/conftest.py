import shutil

import pytest
from data_factory import make_dataset
from streaming_factory import BALL, LENGTHS, split_files

from spi_diffusers.data import memory, parquet_rows, streaming
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.writing import to_arrow, write_parquet_dataset


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


# ---- read in parts


@pytest.fixture(scope="module")
def data():
    """Seven episodes of BallCircle, 53 rows."""
    return make_dataset(task=BALL, lengths=LENGTHS, terminated=(1, 4))


@pytest.fixture(scope="module")
def untouched(data, tmp_path_factory):
    """They in a folder; not to be changed."""
    return write_parquet_dataset(data, tmp_path_factory.mktemp("written") / "set")


@pytest.fixture
def folder(untouched, tmp_path):
    """A copy of it."""
    return shutil.copytree(untouched, tmp_path / "set")


@pytest.fixture(scope="module")
def split(data, tmp_path_factory):
    """They in three files without statistics; not to be changed."""
    return split_files(tmp_path_factory.mktemp("split"), to_arrow(data))


@pytest.fixture
def scans(monkeypatch):
    """The datasets whose rows were read for their statistics."""
    sources = []
    scan = streaming.scanned_summary

    def noted(rows, *args, **kwargs):
        sources.append(rows)
        return scan(rows, *args, **kwargs)

    monkeypatch.setattr(streaming, "scanned_summary", noted)
    return sources


@pytest.fixture
def small_batches(monkeypatch):
    """Rows are read four at a time."""
    monkeypatch.setattr(parquet_rows, "BATCH_ROWS", 4)
