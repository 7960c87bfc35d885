"""Output folders that are held for a run, by real processes."""

import os
import re
import signal
import subprocess
import sys

import pytest

from spi_diffusers.files import remove_folder
from spi_diffusers.locks import FolderInUseError, held

HOLD = """
import sys, time
from spi_diffusers.locks import held
with held(sys.argv[1], "training"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a folder until it is killed."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_told_who_holds_the_folder_and_a_killed_one_holds_nothing(tmp_path, holder):
    who = rf"another training \(process {holder.pid} on .+, since 20\d\d-.+ UTC\) works in this folder"
    for _ in range(2):  # to be refused changes nothing
        with pytest.raises(FolderInUseError, match=f"^{re.escape(str(tmp_path / 'run'))}: {who}"):
            held(tmp_path / "run", "evaluation").__enter__()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with held(tmp_path / "run", "evaluation"):
        pass
    assert os.listdir(tmp_path / "run") == []


def test_threads_of_one_process_are_told_apart_and_one_may_wait(tmp_path):
    with held(tmp_path, "training"), pytest.raises(FolderInUseError, match=f"process {os.getpid()} "):
        held(tmp_path, "training", wait=0.01).__enter__()


@pytest.mark.parametrize("beside", [False, True])
def test_what_nothing_came_of_is_removed(tmp_path, beside):
    folder = tmp_path / "outputs" / "run"
    with held(folder, "training", beside=beside):
        assert folder.exists() != beside
        with pytest.raises(FolderInUseError):
            held(folder, "training", beside=beside).__enter__()
    assert os.listdir(tmp_path) == []


def test_who_removes_the_folder_does_not_free_the_next_ones_lock(tmp_path):
    folder = tmp_path / "run"
    first = held(folder, "collection")
    first.__enter__()
    remove_folder(folder)
    with held(folder, "training"):
        first.__exit__(None, None, None)
        with pytest.raises(FolderInUseError, match="another training"):
            held(folder, "collection").__enter__()
    assert os.listdir(tmp_path) == []


def test_what_came_of_it_stays_also_if_the_current_folder_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with held("run", "training"):
        (tmp_path / "run" / "result").touch()
        monkeypatch.chdir("/")
    assert os.listdir(tmp_path / "run") == ["result"]


def test_a_file_and_a_folder_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"file: is a file; name a folder"):
        held(tmp_path / "file", "training").__enter__()
    with pytest.raises(OSError, match=r"^[^:]*/file/run: cannot be written to: Not a directory$"):
        held(tmp_path / "file" / "run", "training").__enter__()
