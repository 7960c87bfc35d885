"""Training on data that stays in its files: resume, kill, memory, evaluation, processes, and the Hub."""

import json
import multiprocessing
import os
import random
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_client import run_client
from hub_faults import Fault
from hub_server import HubServer
from training_factory import (
    assert_same_training,
    newest_checkpoint,
    read_metrics,
    start_job,
    tiny_config,
)

from spi_diffusers.data.streaming import StreamedDataset, open_stream, sample_episodes
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.writing import write_parquet_dataset
from spi_diffusers.models.evaluation_critic import NUM_WEIGHTS
from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.training import evaluation_stage, export
from spi_diffusers.training.build import open_training_data
from spi_diffusers.training.processes import make_accelerator
from spi_diffusers.training.run_folder import RunFolderError
from spi_diffusers.training.train import run_training
from spi_diffusers.training.trainer import Trainer

#: 1200 rows in parts of 25: three buffers an epoch.
STREAMING = {"streaming": True, "shuffle_buffer": 400, "batch_size": 64, "updates": 40}


@pytest.fixture(scope="module")
def folder(small_dataset, tmp_path_factory):
    return write_parquet_dataset(small_dataset, tmp_path_factory.mktemp("streamed") / "set")


def run(config):
    return run_training(config, progress=False)


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    run(tiny_config(output, folder, **STREAMING))
    return output


def test_the_run_says_that_it_streamed(uninterrupted, small_dataset):
    checkpoint = newest_checkpoint(uninterrupted)
    assert checkpoint.state["config"]["streaming"] is True
    assert checkpoint.state["dataset_sha256"] == small_dataset.sha256
    assert (uninterrupted / "policy" / "model_index.json").is_file()


@pytest.mark.parametrize("overrides", [{}, {"spi.next_action": "dataset"}], ids=["", "recorded next action"])
def test_a_resumed_run_equals_an_uninterrupted_one(folder, tmp_path, overrides):
    whole, parts = (tiny_config(tmp_path / n, folder, **STREAMING, **overrides) for n in ("whole", "parts"))
    stream = open_stream(folder, "ballcircle")
    Trainer(whole, stream, progress=False).train()
    trainer = Trainer(parts, stream, progress=False)
    draw, drawn = trainer.sampler.draw, []
    trainer.sampler.draw = lambda: (
        drawn.append(1),
        len(drawn) == 24 and os.kill(os.getpid(), signal.SIGTERM),
        draw(),
    )[2]
    assert trainer.train().stopped_by == signal.SIGTERM
    Trainer(replace(parts, resume=True), stream, progress=False).train()
    assert_same_training(newest_checkpoint(tmp_path / "whole"), newest_checkpoint(tmp_path / "parts"))
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")


def streamed_job(overrides):
    run(tiny_config(**overrides))


def test_a_killed_run_resumes_to_the_same_weights(folder, uninterrupted, tmp_path):
    chance, kills = random.Random(0), 0
    settings = {"output_dir": str(tmp_path), "dataset": str(folder), "resume": True}
    metrics = tmp_path / "metrics.jsonl"
    for _ in range(3):
        process = start_job(streamed_job, settings | STREAMING)
        size = metrics.stat().st_size if metrics.exists() else 0
        deadline = time.monotonic() + 60
        while process.is_alive() and not (metrics.exists() and metrics.stat().st_size != size):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2
    process = start_job(streamed_job, settings | STREAMING)
    process.join()
    assert process.exitcode == 0
    assert_same_training(newest_checkpoint(uninterrupted), newest_checkpoint(tmp_path))
    assert read_metrics(uninterrupted) == read_metrics(tmp_path)


def test_what_memory_decides_is_written_down_and_kept(folder, tmp_path, monkeypatch, caplog):
    config = tiny_config(tmp_path, folder, **STREAMING | {"streaming": "auto", "updates": 5})
    accelerator = make_accelerator(config)
    data = open_training_data(config, accelerator, progress=False)
    assert isinstance(data, TransitionDataset)
    monkeypatch.setattr("spi_diffusers.data.streaming.available_memory", lambda: 1000)
    with caplog.at_level("INFO", "spi_diffusers"):
        data = open_training_data(config, accelerator, progress=False)
    assert isinstance(data, StreamedDataset)
    assert "it is streamed, 400 transitions at a time" in caplog.text
    run(config)
    assert json.loads((tmp_path / "train_config.json").read_text())["streaming"] is True
    monkeypatch.undo()
    # With more memory, a resumed run still streams: its batches depend on it.
    again = replace(config, resume=True)
    assert isinstance(open_training_data(again, accelerator, progress=False), StreamedDataset)
    with pytest.raises(RunFolderError, match="streaming: True in the checkpoint, False now"):
        run(replace(again, streaming=False))
    with pytest.raises(RunFolderError, match="shuffle_buffer: 400 in the checkpoint, 500 now"):
        run(replace(again, shuffle_buffer=500))


def test_the_evaluation_sees_a_sample_of_whole_episodes(folder, small_dataset, tmp_path, monkeypatch):
    sizes = []
    config = tiny_config(tmp_path, folder, **STREAMING)

    def sample_and_tell(dataset, max_transitions, seed):
        sizes.append(max_transitions)
        return sample_episodes(dataset, 600, seed)

    monkeypatch.setattr(evaluation_stage, "sample_episodes", sample_and_tell)
    result = run(config)
    updates = round(export.EVALUATION_SHARE * config.updates)
    most = updates * evaluation_stage.BATCH_SIZE // NUM_WEIGHTS
    assert sizes == [min(most, evaluation_stage.MAX_TRANSITIONS)], "no more than the updates learn from"
    info = json.loads((result.policy_folder / "train_info.json").read_text())
    assert info["dataset"]["sha256"] == small_dataset.sha256
    assert SPIPolicyPipeline.from_pretrained(str(result.policy_folder)).evaluation_critic is not None


def test_streamed_training_learns_what_training_from_memory_learns(folder, small_dataset, tmp_path):
    """With a buffer for all rows only the order of the batches differs."""
    settings = {"updates": 400, "batch_size": 64, "log_every": 100, "checkpoint_every": 400}
    settings |= {"learning_rate": 3e-3, "network.hidden_dims": [32, 32]}
    config = tiny_config(tmp_path / "memory", folder, **settings)
    Trainer(config, small_dataset, progress=False).train()
    config = tiny_config(tmp_path / "stream", folder, streaming=True, **settings)
    Trainer(config, open_stream(folder, "ballcircle"), progress=False).train()
    memory, stream = (read_metrics(tmp_path / name) for name in ("memory", "stream"))
    for name in ("policy/noise_loss", "critic/reward_value", "critic/safety_loss"):
        assert stream[-1][name] == pytest.approx(memory[-1][name], rel=0.15, abs=0.02), name
        assert stream[-1][name] != memory[-1][name]


def test_errors_name_what_is_wrong(folder, small_dataset, tmp_path):
    with pytest.raises(ValueError, match="cannot be streamed; only the parquet layout can"):
        run(tiny_config(tmp_path, tmp_path / "x.npz", streaming=True))
    with pytest.raises(ValueError, match=r"shuffle_buffer must be at least batch_size \(32\), got 31"):
        tiny_config(tmp_path, folder, shuffle_buffer=31)
    with pytest.raises(ValueError, match="streaming must be"):
        tiny_config(tmp_path, folder, streaming="yes")
    with pytest.raises(ValueError, match="streaming=True, but the data is in memory"):
        Trainer(tiny_config(tmp_path, folder, streaming=True), small_dataset)


# ---- memory

ROWS_PER_GROUP = 25_000


def write_large(folder, rows):
    """Many rows that hardly need any space on disk, because one row group is repeated."""
    config = folder / "large"
    config.mkdir(parents=True)
    card = "---\nconfigs:\n- config_name: large\n  data_files: large/train-*.parquet\n---\n"
    (folder / "README.md").write_text(card)
    rng, size = np.random.default_rng(0), ROWS_PER_GROUP
    ends = np.arange(size) % 1000 == 999

    def vectors(width):
        return pa.FixedSizeListArray.from_arrays(
            pa.array(np.tile(rng.random((500, width), np.float32), (size // 500, 1)).reshape(-1)), width
        )

    table = pa.table(
        {
            "observation": vectors(60),
            "next_observation": vectors(60),
            "action": vectors(8),
            "reward": pa.array(np.ones(size, np.float32)),
            "cost": pa.array(np.zeros(size, np.float32)),
            "terminated": pa.array(np.zeros(size, bool)),
            "truncated": pa.array(ends),
        }
    )
    with pq.ParquetWriter(
        config / "train-00000-of-00001.parquet", table.schema, compression="zstd"
    ) as writer:
        for _ in range(rows // size):
            writer.write_table(table, row_group_size=size)
    return folder


def memory_job(dataset, output, report):
    """Train a little on little data, then on much, and report how much the peak has grown, in MB."""

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    options = {"task": None, "batch_size": 4096, "updates": 30, "shuffle_buffer": 50_000}
    options |= {"streaming": True}
    run(tiny_config(f"{output}/small", Path(dataset) / "small", **options | {"updates": 2}))
    before = peak()
    run(tiny_config(f"{output}/large", Path(dataset) / "large", **options))
    Path(report).write_text(json.dumps({"before": before, "after": peak()}))


@pytest.mark.slow
def test_memory_stays_bounded_with_data_larger_than_the_bound(tmp_path):
    write_large(tmp_path / "data" / "small", ROWS_PER_GROUP)
    write_large(tmp_path / "data" / "large", 60 * ROWS_PER_GROUP)
    stream = open_stream(tmp_path / "data" / "large", progress=False)
    megabytes = stream.rows.tensor_bytes / 1e6
    assert megabytes > 800
    report = tmp_path / "report.json"
    process = multiprocessing.get_context("spawn").Process(
        target=memory_job, args=(str(tmp_path / "data"), str(tmp_path), str(report))
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    peaks = json.loads(report.read_text())
    # The buffer takes 28 MB, the episodes of the evaluation 110 MB; loading takes all, several times.
    assert peaks["after"] - peaks["before"] < megabytes / 3, peaks
    assert newest_checkpoint(tmp_path / "large").step == 30


# ---- the Hub

CLIENT = """
import json, sys
from spi_diffusers.cli import main
print("ANSWERS" + json.dumps([main(arguments) for arguments in json.loads(sys.argv[1])]))
"""


def test_from_the_hub_nothing_is_kept_on_disk_and_the_weights_are_those_of_local_files(
    folder, uninterrupted, tmp_path
):
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    arguments = ["train", "--task", "ballcircle", "--dataset", "org/set", "--quiet"]
    for name, value in STREAMING.items():
        arguments += [f"--{name}", str(value).lower()]
    config = newest_checkpoint(uninterrupted).state["config"]
    arguments += ["--network.hidden_dims", "32", "32", "--network.time_embed_dim", "8", "--threads", "1"]
    arguments += ["--device", "cpu", "--log_every", "3", "--checkpoint_every", "5"]
    with HubServer() as hub:
        repo = hub.store.put("datasets", "org/set", files, private=True)
        hub.faults.set(
            Fault("drop within", "GET", "/get/", skip=4),
            Fault("status", "GET", "/resolve/.*train-0", skip=6, number=503),
        )
        commands = json.dumps([[*arguments, "--output_dir", "run"]])
        codes, errors = run_client(CLIENT, hub.environment(tmp_path / "home"), tmp_path, commands)
        assert codes == [0]
        assert len(hub.faults.happened) == 2
    assert f"StreamedDataset: org/set@{repo.head.oid} (OfflineBallCircle-v0)" in errors
    assert not list((tmp_path / "home").rglob("*.parquet"))
    assert not list((tmp_path / "home").rglob("*.arrow"))
    first, second = newest_checkpoint(uninterrupted), newest_checkpoint(tmp_path / "run")
    assert second.state["config"]["streaming"] is config["streaming"] is True
    assert_same_training(first, second)
