"""`spi train` as a user meets it."""

import json
import re
import shutil

import numpy as np
import torch
from command_line import TINY, fails

from spi_diffusers.cli import main
from spi_diffusers.config.layers import make_train_config
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.writing import write_parquet_dataset


def test_train_leaves_a_policy_that_loads_with_its_config_and_origin(run_folder, small_file):
    from spi_diffusers.pipelines import SPIPolicyPipeline

    policy = run_folder / "policy"
    pipeline = SPIPolicyPipeline.from_pretrained(str(policy))
    assert pipeline(
        np.zeros(8), cost_limit=10.0, generator=torch.Generator().manual_seed(0)
    ).actions.shape == (2,)
    assert pipeline.config.task == "OfflineBallCircle-v0"
    assert pipeline.config.gamma == 0.99
    config = json.loads((policy / "train_config.json").read_text())
    assert config == json.loads((run_folder / "train_config.json").read_text())
    assert make_train_config(config_file=policy / "train_config.json").to_dict() == config
    info = json.loads((policy / "train_info.json").read_text())
    assert (info["algorithm"], info["train_seed"], info["updates"]) == ("spi", 0, 5)
    assert info["dataset"] == {
        "id": str(small_file),
        "sha256": load_transitions(small_file, "ballcircle").sha256,
    }
    assert [line["step"] for line in map(json.loads, (run_folder / "metrics.jsonl").open())] == [5]
    assert not list(run_folder.rglob("*.pkl")) + list(run_folder.rglob("*.bin"))


def test_a_second_run_into_the_same_folder_is_refused(capsys, run_folder, small_file):
    line = fails(
        capsys,
        "train",
        "--task",
        "ballcircle",
        "--dataset",
        str(small_file),
        "--output_dir",
        str(run_folder),
        *TINY,
    )
    assert "holds a run already" in line


def test_the_settings_that_would_be_used_are_printed_and_nothing_is_made(capsys, tmp_path):
    words = ["train", "--task", "carrun", "--algorithm", "spi-paper", "--output_dir", str(tmp_path / "run")]
    assert main([*words, "--spi.eta", "0.5", "--print-config"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["task"], config["updates"]) == ("OfflineCarRun-v0", 15_000)
    assert (config["spi"]["conditioned"], config["spi"]["mu"]) == (False, 0.25)
    assert not (tmp_path / "run").exists()


def test_help_of_train_shows_the_defaults_that_are_used(capsys):
    assert main(["train", "--help-all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    default = make_train_config({"task": "dronerun"})  # which has no preset of its own
    shown = {
        "log_every": default.log_every,
        "updates": "the algorithm's",
        "learning_rate": "0.001",
        "batch_size": "the algorithm's",
    }
    for name, value in shown.items():
        assert re.search(rf"--{name.replace('_', '-')} \w+ [^(]*\(default: {value}\)", text), name


def test_help_of_an_algorithm_shows_what_it_alone_uses(capsys):
    assert main(["train", "--algorithm", "spi", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--max-grad-norm", "--learning-rate", "--network.activation", "--spi.eta"):
        assert f" {option} " in text, option
    assert "--updates N Number of training updates (default: 15000)" in text
    assert main(["train", "--algorithm", "bcq-lag", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--updates N Number of training updates (default: 4500)" in text
    assert "--max-grad-norm" not in text


def test_data_of_no_task_ends_in_a_policy_for_an_environment_of_ones_own(capsys, small_file, tmp_path):
    data = load_transitions(small_file, "ballcircle")
    write_parquet_dataset(data, tmp_path / "set", config_name="robot")
    words = [
        "train",
        "--task",
        "robot",
        "--dataset",
        str(tmp_path / "set"),
        "--quiet",
    ]
    assert main([*words, *TINY, "--output_dir", str(tmp_path / "run")]) == 0
    assert "Next: act with it in your own environment" in capsys.readouterr().out
    for command in ("evaluate", "play"):
        assert "there is no simulator to play it in" in fails(capsys, command, str(tmp_path / "run"))


def test_resuming_through_the_saved_config_is_a_finished_run(capsys, run_folder):
    before = (run_folder / "policy" / "train_info.json").read_bytes()
    (run_folder / "policy" / "notes.md").write_text("the user's own")
    assert main(["train", "--config", str(run_folder / "train_config.json"), "--resume", "--quiet"]) == 0
    assert "Trained 5 updates" in capsys.readouterr().out
    assert (run_folder / "policy" / "train_info.json").read_bytes() == before
    assert (run_folder / "policy" / "notes.md").read_text() == "the user's own"


def test_a_policy_that_replaces_another_does_not_inherit_its_results(run_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    words = [
        "train",
        "--config",
        str(run / "train_config.json"),
        "--output_dir",
        str(run),
        "--resume",
        "--quiet",
    ]
    for turn in (9, 8):
        for name in ("evaluation", "evaluation-bullet"):
            (run / name).mkdir(exist_ok=True)
            (run / name / "results.json").write_text(str(turn))
        (run / "policy" / "model_index.json").unlink()  # so the policy is made again
        assert main(words) == 0
    assert not list(run.glob("evaluation*"))
    for name in ("evaluation", "evaluation-bullet"):
        assert (run / f"replaced1-{name}" / "results.json").read_text() == "9"
        assert (run / f"replaced2-{name}" / "results.json").read_text() == "8"


def test_interrupted_outside_the_updates_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("spi_diffusers.training.train.run_training", interrupt)
    words = ["train", "--task", "ballcircle", "--output-dir", str(tmp_path)]
    assert main(words) == 130
    assert capsys.readouterr().err == "spi train: interrupted\n"
    (tmp_path / "checkpoints" / "step-00000005").mkdir(parents=True)
    assert main(words) == 130
    line = "spi train: interrupted; the checkpoint is kept; go on with the same command and --resume\n"
    assert capsys.readouterr().err == line
