"""The processor that a collection's card names."""

from spi_diffusers.collection.processor import processor_name


def test_the_model_that_linux_tells(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel\t\t: 5\nmodel name\t: Some(R)  Chip @ 2GHz\n\nprocessor\t: 1\n")
    assert processor_name(info) == "Some(R) Chip @ 2GHz"


def test_elsewhere_at_least_the_architecture(tmp_path):
    info = tmp_path / "cpuinfo"
    assert processor_name(info)
    info.write_text("processor\t: 0\nBogoMIPS\t: 50.00\nmodel name\t:\n")
    assert processor_name(info) == processor_name(tmp_path / "missing")


def test_here():
    assert processor_name().strip()
    assert processor_name().isprintable()
