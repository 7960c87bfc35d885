"""What killed processes, and living ones on other machines, have half written."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from spi_diffusers.files import written_aside
from spi_diffusers.leftovers import name_aside, remove_leftovers

KILLED = """
import os, signal, sys
from pathlib import Path
from spi_diffusers.files import written_aside
from spi_diffusers.leftovers import name_aside
with written_aside(sys.argv[1]) as aside:
    aside.write_text("half")
    name_aside(Path(sys.argv[1]).with_name("folder.v1")).mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "config.json"
    code = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False).returncode
    assert (code, len(os.listdir(tmp_path))) == (-signal.SIGKILL, 2)
    living = name_aside(path)
    living.write_text("half")
    (tmp_path / ".config.123.json").touch()
    before = living.with_name(re.sub(r"-[0-9a-f]{8}-\d+\.", "-00000000-0.", living.name))
    before.touch()  # of a process of our number that has ended
    with written_aside(path) as aside:
        aside.write_text("new")
    assert not before.exists()
    assert sum(name.startswith(".config.") for name in os.listdir(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(["config.json", living.name, ".config.123.json"])


@pytest.mark.parametrize("number", [os.getpid(), 2**22 + 1], ids=["our number", "no number of ours"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_what_another_machine_or_container_writes_is_left_alone_for_a_day(tmp_path, number, is_folder):
    ours = name_aside(tmp_path / "set.csv")
    other = ours.with_name(re.sub(r"[0-9a-f]{8}-\d+-[0-9a-f]{8}", f"0a1b2c3d-{number}-0a1b2c3d", ours.name))
    parts = [other / "rows" / "file", other / "rows", other] if is_folder else [other]
    parts[0].parent.mkdir(parents=True, exist_ok=True)
    parts[0].touch()
    for part in parts[1:]:  # a folder does not change with what is written in its files
        os.utime(part, (0, 0))
    remove_leftovers(tmp_path)
    assert other.exists()
    os.utime(parts[0], (time.time() - 25 * 3600,) * 2)
    remove_leftovers(tmp_path)
    assert not other.exists()


CONTAINER = """
import os, sys
from pathlib import Path
from spi_diffusers.files import written_aside
with written_aside(sys.argv[1]) as aside:
    print(os.getpid(), aside.name, flush=True)
    sys.stdin.readline()
    aside.write_text("by " + sys.argv[2])
"""


def test_two_containers_whose_processes_have_the_same_number_leave_each_other_alone(tmp_path):
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine makes no containers for us")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    words = [*apart, sys.executable, "-c", CONTAINER, str(tmp_path / "file")]
    with (
        subprocess.Popen([*words, "first"], **pipes) as first,
        subprocess.Popen([*words, "second"], **pipes) as second,
    ):
        numbers = [process.stdout.readline().split()[0] for process in (first, second)]
        second.communicate("go")
        assert (tmp_path / "file").read_text() == "by second"
        first.communicate("go")
    assert (numbers, first.returncode, second.returncode) == (["1", "1"], 0, 0)
    assert (tmp_path / "file").read_text() == "by first"
    assert os.listdir(tmp_path) == ["file"]
