import os

import pytest

from spi_diffusers.files import nearest, short_name, written_aside


def test_file_appears_complete_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "picture.png"
    with written_aside(path) as aside:
        assert aside.parent == path.parent
        assert aside.suffix == ".png"
        aside.write_text("new")
        assert not path.exists()

    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["picture.png"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.json"
    path.write_text("old")

    def write_half():
        with written_aside(path) as aside:
            aside.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()

    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_the_nearest_name_does_not_depend_on_capitals():
    assert nearest("BCQ-Lag", ["bc", "bcq-lag"]) == "; did you mean bcq-lag?"
    assert nearest("officle", ["README.md"]) == ""
    assert nearest("readme.md", ["README.md"], "a/") == "; did you mean a/README.md?"


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"cannot write .*file/results\.json"),
        written_aside(tmp_path / "file" / "results.json"),
    ):
        pass


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("outputs/demo", "demo"),
        ("outputs/demo/policy", "demo"),
        (".", "demo"),
        ("lab/spi-ball", "spi-ball"),
        ("lab/policy", "policy"),
    ],
)
def test_a_policy_is_called_after_its_run_or_its_repository(tmp_path, monkeypatch, policy, expected):
    (tmp_path / "outputs" / "demo" / "policy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outputs" / "demo" / "policy" if policy == "." else tmp_path)
    assert short_name(policy) == expected
