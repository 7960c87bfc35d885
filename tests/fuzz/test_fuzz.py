"""Ten thousand mutated policy folders, datasets and configs: a clear error or a right load, nothing else."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import write_parquet_dataset

WORKER = Path(__file__).with_name("fuzz_worker.py")
#: Mutations of each input, and how many of them one process loads.
COUNTS = dict.fromkeys(("data.npz", "data.hdf5", "data.csv", "data-folder", "config.yaml"), 1200)
COUNTS |= {"policy": 3200, "config.json": 800}
SHARE = 100


def _columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ends = np.zeros(30, dtype=np.float32)
    ends[[9, 19, 29]] = 1
    return {
        "observations": rng.normal(size=(30, 3)).astype(np.float32),
        "next_observations": rng.normal(size=(30, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(30, 2)).astype(np.float32),
        "rewards": rng.normal(size=30).astype(np.float32),
        "costs": rng.integers(0, 2, size=30).astype(np.float32),
        "terminals": np.zeros(30, dtype=np.float32),
        "timeouts": ends,
    }


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small good input of each kind."""
    from pipeline_factory import make_pipeline

    folder, columns = tmp_path_factory.mktemp("bases"), _columns()
    make_pipeline().save_pretrained(folder / "policy")
    np.savez_compressed(folder / "data.npz", **columns)
    with h5py.File(folder / "data.hdf5", "w") as file:
        for name, values in columns.items():
            file.create_dataset(name, data=values, chunks=values.shape, compression="gzip")
    with (folder / "data.csv").open("w", newline="") as file:
        table = csv.writer(file)
        names = [f"observation_{i}" for i in range(3)] + ["action_0", "action_1", "reward", "cost", "episode"]
        table.writerow(names)
        for row in range(30):
            values = [*columns["observations"][row], *columns["actions"][row], columns["rewards"][row]]
            table.writerow([*values, columns["costs"][row], row // 10])
    from_dsrl = {
        "observation": columns["observations"],
        "next_observation": columns["next_observations"],
        "action": columns["actions"],
        "reward": columns["rewards"],
        "cost": columns["costs"],
        "terminated": columns["terminals"] > 0,
        "truncated": columns["timeouts"] > 0,
    }
    dataset = TransitionDataset.from_columns(from_dsrl, task=None, source="made for a test")
    write_parquet_dataset(dataset, folder / "data-folder", config_name="small")
    settings = {"task": "ballcircle", "seed": 3, "updates": 100, "spi": {"eta": 0.3}, "trackers": ["wandb"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def _work(bases: Path, name: str, first: int, count: int) -> list[dict[str, object]]:
    words = [sys.executable, str(WORKER), name.replace("-", ".").split(".")[0], str(bases / name)]
    process = subprocess.run([*words, str(first), str(count)], capture_output=True, text=True, timeout=1200)
    assert process.returncode == 0, (process.returncode, process.stdout[-1000:], process.stderr[-2000:])
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first"), [(name, n) for name in COUNTS for n in range(0, COUNTS[name], SHARE)]
)
def test_mutated_inputs(bases: Path, name: str, first: int) -> None:
    assert _work(bases, name, first, SHARE) == []
