"""The notebooks run from top to bottom, with fewer updates and episodes than they have for a reader."""

import os
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.image import imread
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "docs" / "notebooks"


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("notebooks", "examples"):  # it may write beside itself
        shutil.copytree(NOTEBOOKS.parent / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setenv("NOTEBOOK_QUICK", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(tmp_path / "notebooks" / name, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path / "notebooks")}},
    ).execute()
    for figure in NOTEBOOKS.glob(f"{Path(name).stem}.png"):  # its page shows the committed one
        drawn = imread(tmp_path / "notebooks" / figure.name)
        assert np.abs(drawn - imread(figure)).mean() < 0.002


@pytest.mark.parametrize("name", sorted(path.name for path in NOTEBOOKS.glob("*.ipynb")))
def test_notebook_is_committed_without_outputs(name: str) -> None:
    cells = nbformat.read(NOTEBOOKS / name, as_version=4).cells
    assert all(
        not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code"
    )
