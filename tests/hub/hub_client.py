"""A process of its own that talks to the tests' Hub: what it imports has seen no other Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run_client(code, environment, folder=None, *arguments, timeout=180):
    """Run code that prints `ANSWERS` and JSON; returns that, and what it wrote to stderr."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "DSRL_"))}
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=clean | {"PYTHONPATH": str(REPOSITORY)} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert "ANSWERS" in process.stdout, process.stderr[-3000:]
    return json.loads(process.stdout.partition("ANSWERS")[2]), process.stderr
