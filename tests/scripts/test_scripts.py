"""Scripts as a user starts them: the same commands, and the same kind of errors."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest


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


def test_scripts_tell_errors_as_the_command_does(tmp_path, monkeypatch, capsys):
    script = str(Path(__file__).parents[2] / "scripts" / "demo.py")
    monkeypatch.setattr(sys, "path", [str(Path(script).parent), *sys.path])  # as Python does
    monkeypatch.setattr(sys, "argv", [script, "--updates", "-1", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 2
    message = "demo.py: error: updates must be a whole number of at least 1"
    said = capsys.readouterr().err
    assert said.strip().splitlines()[-1].startswith(message), said
