import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.tasks import EMBEDDED_FOLDER
from spi_diffusers.data.writing import TRAIN_FILE

REPOSITORY = Path(__file__).parents[2]
TASK = "OfflineBallCircle-v0"


def build(*arguments):
    return subprocess.run(
        [sys.executable, "scripts/build_embedded_data.py", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )


def test_script_writes_the_embedded_rows_again_byte_for_byte(tmp_path):
    run = build("--output", str(tmp_path / "again"))
    assert run.returncode == 0, run.stderr
    assert "1142 episodes" in run.stdout
    assert load_transitions(tmp_path / "again").sha256 == load_transitions().sha256
    made = (REPOSITORY / "datasets" / TASK / TRAIN_FILE, EMBEDDED_FOLDER / TASK / TRAIN_FILE)
    assert made[0].read_bytes() == made[1].read_bytes()  # so that git keeps them once
    assert (
        "`spi data collect --task ballcircle --output datasets" in (EMBEDDED_FOLDER / "README.md").read_text()
    )
    committed, rebuilt = EMBEDDED_FOLDER / TASK / TRAIN_FILE, tmp_path / "again" / TASK / TRAIN_FILE
    stats = json.loads((EMBEDDED_FOLDER / TASK / "stats.json").read_text())
    assert stats["files"][0]["bytes"] == committed.stat().st_size
    if pq.read_metadata(committed).created_by == pq.read_metadata(rebuilt).created_by:
        assert rebuilt.read_bytes() == committed.read_bytes()
