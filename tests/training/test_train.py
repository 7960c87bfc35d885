"""`train()` from Python: the policy of `spi train`, callbacks, and what happens when it is stopped."""

import multiprocessing.util
import os
import signal
import tempfile

import numpy as np
import pandas as pd
import pytest
import torch
from training_factory import start_job, train_until_sigterm_job

from spi_diffusers import SPIPolicyPipeline, evaluate, train
from spi_diffusers.config.validation import ConfigError
from spi_diffusers.locks import FolderInUseError
from spi_diffusers.training.run_folder import RunFolderError
from spi_diffusers.training.trainer import TrainingDivergedError

SMALL = {
    "updates": 12,
    "batch_size": 8,
    "log_every": 4,
    "network": {"hidden_dims": [8, 8]},
    "progress": False,
}


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    """Where runs without an output folder work."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    multiprocessing.util.get_temp_dir()  # noted before: the path of a process's socket must be short
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def weights(policy):
    return policy.noise_model.state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_policy_that_is_kept_in_memory_acts_is_evaluated_and_saved(small_file, tmp_path, temporary_folder):
    policy = train("ballcircle", dataset=small_file, **SMALL)
    assert isinstance(policy, SPIPolicyPipeline)
    assert list(temporary_folder.iterdir()) == []
    results = evaluate(policy, cost_limits=[10], episodes=1, extractions=["safe"], progress=False)
    assert [(entry.algorithm, entry.updates, entry.cost_limit) for entry in results] == [("spi", 12, 10.0)]
    policy.save_pretrained(tmp_path / "mine")
    saved = SPIPolicyPipeline.from_pretrained(tmp_path / "mine")
    assert_same(weights(policy), weights(saved))
    assert saved.training_record == policy.training_record
    assert saved.training_record["config"]["output_dir"] is None


def test_it_trains_what_the_command_trains_and_leaves_the_same_folder(small_file, tmp_path):
    from spi_diffusers.cli import main

    policy = train("ballcircle", dataset=small_file, output_dir=tmp_path / "python", seed=3, **SMALL)
    options = ["--updates", "12", "--batch_size", "8", "--network.hidden_dims", "8", "8", "--log_every", "4"]
    options += ["--seed", "3", "--quiet", "--output_dir", str(tmp_path / "command")]
    assert main(["train", "--task", "ballcircle", "--dataset", str(small_file), *options]) == 0
    assert_same(weights(policy), weights(SPIPolicyPipeline.from_pretrained(tmp_path / "command" / "policy")))
    left = [{path.name for path in (tmp_path / name).iterdir()} for name in ("python", "command")]
    assert left[0] == left[1]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_it_trains_on_a_table_with_usual_column_names(suffix, tmp_path):
    steps = np.arange(60)
    table = pd.DataFrame(
        {
            "observation_0": np.sin(steps),
            "observation_1": np.cos(steps),
            "action_0": np.sin(2 * steps),
            "reward": np.cos(3 * steps),
            "cost": 300.0 * (steps % 3 == 0),
            "episode": steps // 20,
        }
    )
    path = tmp_path / f"robot{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    policy = train(dataset=path, **SMALL)
    assert (policy.config.task, policy.config.max_episode_steps) == (None, 20)
    assert policy(np.zeros(2), cost_limit=3000.0).actions.shape == (1,)
    assert "robot" in policy.training_record["info"]["dataset"]["id"]


def test_a_baseline_has_its_own_pipeline_and_settings(small_file):
    policy = train(
        "ballcircle",
        dataset=small_file,
        algorithm="bc",
        cost_limit=20,
        updates=3,
        bc={"hidden_dims": [8]},
        progress=False,
    )
    assert (policy.config.algorithm, policy.config.cost_limit) == ("bc", 20.0)


def test_a_callback_sees_progress_acts_with_the_policy_and_stops(small_file):
    seen = []

    def stop_at_eight(progress):
        action = progress.policy()(torch.zeros(8)).actions
        seen.append((progress.step, progress.updates, "policy/noise_loss" in progress.metrics, len(action)))
        if progress.step == 8:
            progress.stop()

    policy = train("ballcircle", dataset=small_file, callback=stop_at_eight, **SMALL)
    assert seen == [(4, 12, True, 2), (8, 12, True, 2)]
    assert policy.training_record["info"]["updates"] == 8


def test_after_an_interrupt_a_run_goes_on_bit_for_bit(small_file, tmp_path):
    arguments = {"dataset": small_file, "seed": 1, **SMALL}
    whole = train("ballcircle", **arguments)

    def interrupt(progress):
        if progress.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train("ballcircle", output_dir=tmp_path / "run", callback=interrupt, **arguments)
    with pytest.raises(RunFolderError, match="holds a run already"):
        train("ballcircle", output_dir=tmp_path / "run", **arguments)
    resumed = train("ballcircle", output_dir=tmp_path / "run", resume=True, **arguments)
    assert_same(weights(whole), weights(resumed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updats": 3}, "unknown setting updats; did you mean updates"),
        ({"updates": "3"}, r"updates must be a whole number of at least 1, got '3' \(keyword\)"),
        ({"spi": {"eta": 2.0}}, r"spi\.eta must be a number in \[0, 1\], got 2\.0"),
        ({"spi": 0.3}, r"spi must be a group of settings, got 0\.3"),
        ({"updates": {}}, r"updates must be a whole number of at least 1, got \{\}"),
        ({"resume": True}, "resume=True needs the output_dir"),
        ({"output_dir": 3}, "output_dir must be text or null, got 3; put it in quotes"),
        ({"dataset": 3}, "dataset must be text or null, got 3; put it in quotes"),
        ({"dataset": ["a", "b"]}, r"dataset must be text or null, got \['a', 'b'\]"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        train("ballcircle", **settings)


def test_errors_without_an_output_folder_name_no_checkpoint(small_file):
    own = {**SMALL, "learning_rate": 1e30, "checkpoint_every": 1, "log_every": 1}
    with pytest.raises(TrainingDivergedError, match=r"after update \d+\. Try a lower"):
        train("ballcircle", dataset=small_file, **own)


@pytest.mark.parametrize("moment", ["loading", "updates"])
def test_sigterm_ends_it_and_leaves_no_temporary_folder(moment, small_file, temporary_folder):
    process = start_job(train_until_sigterm_job, str(temporary_folder), moment, str(small_file), SMALL)
    process.join()
    assert process.exitcode == -signal.SIGTERM
    assert list(temporary_folder.glob("spi-*")) == []


def test_signals_that_the_process_ignores_stay_ignored(small_file):
    """As under nohup, or in a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(
            "ballcircle", dataset=small_file, callback=lambda _: os.kill(os.getpid(), signal.SIGINT), **SMALL
        )
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_run_in_the_folder_is_refused_at_once(small_file, tmp_path):
    seen = []

    def again(progress):
        for resume in (False, True):
            with pytest.raises(FolderInUseError, match=rf"run: another training \(process {os.getpid()} on"):
                train("ballcircle", dataset=small_file, output_dir=tmp_path / "run", resume=resume, **SMALL)
        seen.append(progress.step)

    train("ballcircle", dataset=small_file, output_dir=tmp_path / "run", callback=again, **SMALL)
    assert seen == [4, 8, 12]
    assert not any(path.name.startswith(".") for path in (tmp_path / "run").iterdir())


def test_a_tilde_is_the_home_folder(small_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    train("ballcircle", dataset=small_file, output_dir="~/run", **SMALL).save_pretrained("~/mine")
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"run", "mine"}
    assert not (tmp_path / "~").exists()
