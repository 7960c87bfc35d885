"""Two real processes over gloo, started by torchrun."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_factory import assert_same_training, newest_checkpoint, read_metrics, tiny_config

from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.training.train import run_training
from spi_diffusers.training.trainer import Trainer

REPOSITORY = Path(__file__).parents[2]


def torchrun(*arguments, timeout=120):
    paths = [str(REPOSITORY), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def runs(small_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    result = torchrun(Path(__file__).with_name("distributed_worker.py"), small_file, folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_two_processes_train_as_one_does_on_the_same_global_batch(runs, small_file, tmp_path):
    config = tiny_config(
        tmp_path,
        small_file,
        mixed_precision="no",
        lr_schedule="constant",
        **{"spi.guidance_scale": "none"},
    )
    fresh = Trainer(config, load_transitions(small_file, "ballcircle"), progress=False)
    start = {name: value.clone() for name, value in fresh.algorithm.noise_model.state_dict().items()}
    fresh.train()
    one, two = newest_checkpoint(tmp_path), newest_checkpoint(runs / "none")
    assert one.tensors.keys() == two.tensors.keys()
    for name, value in one.tensors.items():
        torch.testing.assert_close(
            two.tensors[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    key = "net.0.weight"  # and they did not agree by standing still
    assert (one.tensors[f"noise_model/{key}"] - start[key]).abs().max() > 1e-3
    for first, second in zip(read_metrics(tmp_path), read_metrics(runs / "none"), strict=True):
        assert first == pytest.approx(second, rel=1e-4, abs=1e-5)


def test_the_processes_stay_identical_bit_for_bit(runs):
    first, second = (load_file(runs / f"default-weights.rank{rank}") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_two_processes_resume_bit_for_bit(runs):
    assert_same_training(newest_checkpoint(runs / "none"), newest_checkpoint(runs / "parts"))
    assert read_metrics(runs / "none") == read_metrics(runs / "parts")


_ON_A_NODE_OF_ITS_OWN = """
import os, sys
from training_factory import tiny_config
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.training.trainer import Trainer

data, shared, own = sys.argv[1:]
options = {"mixed_precision": "no", "lr_schedule": "constant", "spi.guidance_scale": "none"}
config = tiny_config(shared if os.environ["RANK"] == "0" else own, data, updates=30, resume=True, **options)
Trainer(config, load_transitions(data, "ballcircle"), progress=False).train()
"""


@pytest.mark.slow
def test_a_process_that_does_not_see_the_runs_folder_does_not_start_anew(runs, small_file, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(_ON_A_NODE_OF_ITS_OWN)
    shared = shutil.copytree(runs / "parts", tmp_path / "shared")
    result = torchrun(script, small_file, shared, tmp_path / "own")
    assert result.returncode != 0
    assert re.search(r"CheckpointError: .*own/checkpoints/step-\d+/\S+ is missing", result.stderr)
    assert newest_checkpoint(shared).step == 20


@pytest.mark.slow
def test_two_processes_stream_the_batches_of_one(small_dataset, tmp_path):
    folder = write_parquet_dataset(small_dataset, tmp_path / "set")
    options = {"streaming": True, "shuffle_buffer": 300, "updates": 30, "mixed_precision": "no"}
    options |= {"lr_schedule": "constant", "spi.guidance_scale": "none"}
    config = tiny_config(tmp_path / "one", folder, **options)
    run_training(config, progress=False)
    settings = tmp_path / "one" / "train_config.json"
    script = REPOSITORY / "scripts" / "train.py"
    result = torchrun(script, "--config", settings, "--output_dir", tmp_path / "two", "--quiet")
    assert result.returncode == 0, result.stderr
    one, two = newest_checkpoint(tmp_path / "one"), newest_checkpoint(tmp_path / "two")
    assert two.state["num_processes"] == 2
    for name in ("pending/reward", "pending/observation", "pending/noise", "generator"):
        assert torch.equal(one.tensors[name], two.tensors[name]), name
    for name, value in one.tensors.items():
        torch.testing.assert_close(
            two.tensors[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
def test_the_script_trains_on_two_processes(small_file, tmp_path):
    result = torchrun(
        *(
            REPOSITORY / "scripts" / "train.py",
            "--task",
            "ballcircle",
            "--dataset",
            small_file,
            "--updates",
            "5",
        ),
        *("--output_dir", tmp_path, "--network.hidden_dims", "32", "32", "--device", "cpu", "--quiet"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Trained 5 updates") == 1
    assert newest_checkpoint(tmp_path).state["num_processes"] == 2
    assert (tmp_path / "policy" / "model_index.json").is_file()
