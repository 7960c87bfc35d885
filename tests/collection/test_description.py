"""The processor that a collection's card names."""

import pytest

from spi_diffusers.collection import description
from spi_diffusers.collection.description import processor_name


@pytest.fixture
def info(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(description, "_CPUINFO", file)
    return file


def test_the_model_that_linux_tells(info):
    info.write_text("processor\t: 0\nmodel\t\t: 5\nmodel name\t: Some(R)  Chip @ 2GHz\n\nprocessor\t: 1\n")
    assert processor_name() == "Some(R) Chip @ 2GHz"


def test_elsewhere_at_least_the_architecture(info):
    architecture = processor_name()
    assert architecture
    info.write_text("processor\t: 0\nBogoMIPS\t: 50.00\nmodel name\t:\n")
    assert processor_name() == architecture


def test_here():
    assert processor_name().strip()
    assert processor_name().isprintable()
