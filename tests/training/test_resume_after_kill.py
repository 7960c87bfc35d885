"""Real processes, really killed: what is left must resume to the weights of an uninterrupted run."""

import random
import signal
import time

import pytest
import torch
from training_factory import (
    assert_same_training,
    cli_job,
    newest_checkpoint,
    read_metrics,
    start_job,
    train_job,
    train_with_file_size_limit_job,
)

from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.training.checkpoint import CheckpointStore

UPDATES = 40


@pytest.fixture(scope="module")
def settings(small_file):
    return {"dataset": str(small_file), "updates": UPDATES, "checkpoint_every": 4, "keep_checkpoints": 2}


@pytest.fixture(scope="module")
def uninterrupted(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start_job(train_job, settings | {"output_dir": str(folder)})
    process.join()
    assert process.exitcode == 0
    return folder


def finish(overrides):
    process = start_job(train_job, overrides | {"resume": True})
    process.join()
    assert process.exitcode == 0


def wait_for(condition, process, seconds=60.0):
    deadline = time.monotonic() + seconds
    while process.is_alive() and not condition():
        assert time.monotonic() < deadline, "the job takes too long"
        time.sleep(0.001)


def test_killed_at_random_moments(settings, uninterrupted, tmp_path):
    run = settings | {"output_dir": str(tmp_path), "resume": True}
    chance, kills = random.Random(0), 0
    for _ in range(6):
        process = start_job(train_job, run)
        metrics = tmp_path / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.exists() else 0
        # Once it trains (its first new line), let it go on for a moment.
        wait_for(lambda size=size, file=metrics: file.exists() and file.stat().st_size != size, process)
        time.sleep(chance.uniform(0.0, 0.05))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2, "hardly any process was killed before it was done"
    finish(run)
    assert_same_training(newest_checkpoint(uninterrupted), newest_checkpoint(tmp_path))
    assert read_metrics(uninterrupted) == read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("moment", "complete"),
    [
        ("half of the tensors", [4]),
        ("tensors, no state", [4]),
        ("complete, not renamed", [4]),
        ("renamed, not pruned", [4, 8]),
        ("half removed", [8, 12]),
    ],
)
def test_killed_while_a_checkpoint_is_written(settings, uninterrupted, tmp_path, moment, complete):
    run = settings | {"output_dir": str(tmp_path)}
    process = start_job(train_job, run, moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.steps() == complete
    assert store.load_newest().step == complete[-1]
    hidden = [path for path in store.folder.iterdir() if path.name.startswith(".")]
    assert bool(hidden) == (moment != "renamed, not pruned")
    finish(run)
    assert_same_training(newest_checkpoint(uninterrupted), newest_checkpoint(tmp_path))
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000036", "step-00000040"]


def test_a_full_disk_while_saving_is_a_clear_error_and_the_run_goes_on_later(
    settings, uninterrupted, tmp_path
):
    """Files cannot grow beyond a limit that is above the first checkpoints' size and then below."""
    folder, report = tmp_path / "run", tmp_path / "report.txt"
    run = settings | {"output_dir": str(folder)}
    process = start_job(train_job, run, "renamed, not pruned")  # leaves checkpoints 4 and 8
    process.join()
    before = newest_checkpoint(folder)
    process = start_job(train_with_file_size_limit_job, run | {"resume": True}, 20_000, str(report))
    process.join()
    assert process.exitcode == 0
    message = report.read_text()
    assert message.startswith("CheckpointWriteError: ")
    assert "step-00000012: the checkpoint cannot be written: File too large" in message
    assert "step 8 is intact" in message
    assert_same_training(newest_checkpoint(folder), before)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000008",
    ]
    finish(run)
    assert_same_training(newest_checkpoint(uninterrupted), newest_checkpoint(folder))


def test_sigterm_to_the_command_saves_a_checkpoint_and_resume_saves_the_policy(small_file, tmp_path):
    errors = tmp_path / "errors.txt"
    arguments = [
        *("train", "--task", "ballcircle", "--dataset", str(small_file), "--output_dir", str(tmp_path)),
        *("--updates", "100000", "--lr_schedule", "constant", "--network.hidden_dims", "32", "32"),
        *("--batch_size", "32", "--threads", "1", "--device", "cpu", "--log_every", "1", "--quiet"),
    ]
    process = start_job(cli_job, arguments, str(errors))
    wait_for((tmp_path / "metrics.jsonl").exists, process)
    process.terminate()
    process.join()
    assert process.exitcode == 128 + signal.SIGTERM
    stopped = newest_checkpoint(tmp_path)
    assert 0 < stopped.step < 100000
    assert f"Stopped after update {stopped.step} of 100000" in errors.read_text()
    assert not (tmp_path / "policy").exists()

    arguments[arguments.index("100000")] = str(stopped.step + 3)
    process = start_job(cli_job, [*arguments, "--resume"], str(errors))
    process.join()
    assert process.exitcode == 0
    policy = SPIPolicyPipeline.from_pretrained(str(tmp_path / "policy"))
    weights = newest_checkpoint(tmp_path).tensors
    for name, value in policy.noise_model.state_dict().items():
        assert torch.equal(value, weights[f"target_noise_model/{name}"])
