"""`spi space` without Gradio, or a policy; with both, tests/spaces/test_page.py opens the page."""

import sys

from command_line import fails


def test_without_gradio_one_line_says_what_to_install(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "spi_diffusers.spaces.page", raising=False)
    line = fails(capsys, "space", str(tmp_path))
    assert line.startswith("spi space: error: the page needs Gradio (")
    assert line.endswith('): pip install "spi-diffusers[space]"')


def test_a_folder_that_is_not_there_is_refused(capsys):
    assert "no-folder: no such folder" in fails(capsys, "space", "no-folder")
