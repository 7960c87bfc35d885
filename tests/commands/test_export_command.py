"""`spi export` as a user meets it."""

from command_line import fails

from spi_diffusers.cli import main
from spi_diffusers.runtime import ExportedPolicy


def test_export_says_what_was_compared(capsys, run_folder, tmp_path):
    assert main(["export", str(run_folder), "--output-dir", str(tmp_path / "graph")]) == 0
    text = capsys.readouterr().out
    assert "Graph and pipeline on 1,000 random and 1,000 recorded observations: the same choice in" in text
    assert text.endswith(f"Written: {tmp_path / 'graph'}\n")
    assert ExportedPolicy(tmp_path / "graph").contract["extraction"] == "safe"


def test_what_cannot_be_used_is_one_line(capsys, run_folder, tmp_path):
    assert "no such folder" in fails(capsys, "export", str(tmp_path / "typo"))
    assert "no such file or folder" in fails(capsys, "export", str(run_folder), "--dataset", "typo.csv")
    assert "--to: unknown 'torchscript'; there are onnx" in fails(
        capsys, "export", str(run_folder), "--to", "torchscript"
    )
