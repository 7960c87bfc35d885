"""A million actions in batches, and a part of the million single ones; the script does all of them."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "many_actions.py"


@pytest.mark.slow
def test_a_million_actions_take_no_more_memory_or_handles_and_threads_act_alike():
    command = [sys.executable, str(SCRIPT), "--actions", "1000000", "--single", "20000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 4
