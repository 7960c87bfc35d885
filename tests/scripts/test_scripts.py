"""Scripts as a user starts them: the same commands, and the same kind of errors."""

import subprocess
import sys
from pathlib import Path


def test_the_scripts_are_the_same_commands():
    scripts = Path(__file__).parents[2] / "scripts"
    for name, command in (("train", "spi train"), ("evaluate", "spi evaluate")):
        result = subprocess.run(
            [sys.executable, str(scripts / f"{name}.py"), "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(scripts.parent)},
        )
        assert result.stdout.startswith(f"usage: {command} ")


def test_scripts_tell_errors_as_the_command_does(tmp_path):
    scripts = Path(__file__).parents[2] / "scripts"
    words = [sys.executable, str(scripts / "demo.py"), "--updates", "-1", "--output", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    message = "demo.py: error: updates must be a whole number of at least 1"
    assert done.stderr.strip().splitlines()[-1].startswith(message), done.stderr
