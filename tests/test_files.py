import os
import re
from pathlib import Path

import pytest

import spi_diffusers
from spi_diffusers.config.layers import make_train_config
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import source_kind
from spi_diffusers.evaluation.results import Results, merge_results, read_results
from spi_diffusers.files import (
    find_local_policy,
    folder_aside,
    local_path,
    nearest,
    read_file,
    replace_file,
    replace_folder,
    short_name,
    written_aside,
)


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


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_appears_complete_or_leaves_what_was_there(tmp_path, replace):
    target = tmp_path / "a" / "set"
    with folder_aside(target, replace=replace) as aside:
        (aside / "old").touch()
        assert not target.exists()

    def fill(fails=False):
        with folder_aside(target, replace=replace) as aside:
            (aside / "new").touch()
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(fails=True)
    assert os.listdir(target) == ["old"]
    if replace:
        fill()
    else:
        with pytest.raises(OSError, match="not empty"):
            fill()
    assert os.listdir(target) == ["new" if replace else "old"]
    assert os.listdir(target.parent) == ["set"]


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


def test_the_home_folder_is_found_at_one_place():
    package = Path(spi_diffusers.__file__).parent
    files = [path for path in package.rglob("*.py") if re.search("expanduser|Path.home", path.read_text())]
    assert files == [package / "files.py"]


def test_a_tilde_is_the_home_folder_wherever_a_path_comes_in(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "run" / "policy").mkdir(parents=True)
    (home / "run" / "policy" / "model_index.json").write_text("{}")
    (home / "c.yaml").write_text("output_dir: ~/runs/a\nseed: 3\n")
    rows = "".join(f"{row},0.5,1,0,0\n" for row in range(3))
    (home / "log.csv").write_text(f"observation_0,action_0,reward,cost,episode\n{rows}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert make_train_config({"output_dir": "~/runs/b", "task": "ballcircle"}).output_dir == f"{home}/runs/b"
    config = make_train_config({"task": "ballcircle"}, "~/c.yaml")
    assert (config.output_dir, config.seed) == (f"{home}/runs/a", 3)
    assert find_local_policy("~/run") == home / "run" / "policy"
    assert short_name("~/run/policy") == "run"
    assert (source_kind("~/log.csv"), len(load_transitions("~/log.csv"))) == ("file", 3)
    assert Results().save("~/r/results.json") == home / "r" / "results.json"
    assert read_results("~/r/results.json") == merge_results("~/r/results.json", []) == []
    with written_aside("~/x/y.txt") as aside:
        aside.write_text("new")
    assert (home / "x" / "y.txt").read_text() == "new"
    assert local_path("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    assert os.listdir(tmp_path) == ["home"]


def test_a_path_that_no_library_opens_is_refused_at_once(tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    message = r"caf\\xe9.*: has a name that is not UTF-8; rename it"
    with pytest.raises(ValueError, match=message):
        make_train_config({"task": "ballcircle", "output_dir": str(folder / "run")})
    with pytest.raises(ValueError, match=message):
        load_transitions(folder / "log.csv")
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=message):
        make_train_config({"task": "ballcircle"})


def test_what_cannot_be_read_is_named_and_a_pipe_is_not_waited_for(tmp_path):
    (tmp_path / "text").write_bytes(b"hello")
    assert (read_file(tmp_path / "text"), read_file(tmp_path / "text", 2)) == (b"hello", b"he")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is no regular file"):
        read_file(tmp_path / "pipe")
    (tmp_path / "memory").symlink_to("/proc/self/mem")  # its first page cannot be read
    with pytest.raises(OSError, match=r"Input/output error: .*memory"):
        read_file(tmp_path / "memory")
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_file(tmp_path / "nothing")


def test_replace_file_keeps_the_old_content_until_the_new_is_complete(tmp_path):
    file = tmp_path / "a.json"
    replace_file(file, b"old")
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"
    blocked = tmp_path / "folder"
    (blocked / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        replace_file(blocked, b"a folder cannot be replaced by a file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]


def test_replace_folder_replaces_what_was_there(tmp_path):
    for name, content in (("new", "1"), ("target", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(content)
    replace_folder(tmp_path / "new", tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
