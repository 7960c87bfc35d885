"""CDT through the trainer and the commands: resuming, saving, and acting with and without feedback."""

import json

import pytest
import torch
from training_factory import assert_same_training, newest_checkpoint, tiny_config

from spi_diffusers.cli import main
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.pipelines import BaselinePolicyPipeline
from spi_diffusers.training.export import save_policy
from spi_diffusers.training.trainer import Trainer

TINY = {"cdt.embedding_dim": 8, "cdt.num_layers": 1, "cdt.num_heads": 2, "cdt.context": 4}


@pytest.fixture(scope="module")
def data():
    whole = load_transitions(None, "ballcircle")
    return whole.select_episodes(torch.arange(0, whole.num_episodes, 20))


def trainer_of(folder, data, **overrides):
    return Trainer(tiny_config(folder, algorithm="cdt", **TINY, **overrides), data, progress=False)


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(data, tmp_path):
    trainer_of(tmp_path / "whole", data).train()
    stopped = trainer_of(tmp_path / "parts", data)
    stopped.train(lambda progress: progress.stop() if progress.step == 9 else None)
    assert stopped.step == 9
    trainer_of(tmp_path / "parts", data, resume=True).train()
    assert_same_training(newest_checkpoint(tmp_path / "whole"), newest_checkpoint(tmp_path / "parts"))


def test_the_saved_policy_acts_as_the_trained_one(data, tmp_path):
    trainer = trainer_of(tmp_path / "run", data)
    trainer.train()
    trained = trainer.policy()
    saved = BaselinePolicyPipeline.from_pretrained(str(save_policy(trainer, tmp_path / "policy")))
    best = data.episodes.best_return_within(20)
    controllers = [policy.controller(20) for policy in (trained, saved)]
    for controller in controllers:
        assert controller.target_return.item() == pytest.approx(best)
        controller.reset()
    for row in range(6):
        observation = data.transitions.observation[row]
        actions = [controller.act(observation) for controller in controllers]
        torch.testing.assert_close(*actions)
        for controller in controllers:
            controller.observe(1.0, 0.0)


def test_it_is_trained_and_played_by_the_commands(tmp_path, capsys):
    run = tmp_path / "run"
    tiny = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    tiny += ["--updates", "3", "--batch_size", "8", "--device", "cpu", "--threads", "1", "--quiet"]
    start = ["train", "--task", "ballcircle", "--algorithm", "cdt", "--output_dir", str(run), *tiny]
    assert main(start) == 0
    play = ["evaluate", str(run), "--episodes", "2", "--cost-limit", "5", "40"]
    play += ["--no-plots", "--no-video", "--quiet"]
    assert main(play) == main([*play, "--no-feedback"]) == 0
    assert "cdt, told the limit, no feedback" in " ".join(capsys.readouterr().out.split())
    entries = json.loads((run / "evaluation" / "results.json").read_text())["entries"]
    told = {(entry["extraction"], entry["cost_limit"], entry["feedback"]) for entry in entries}
    assert told == {("limit", limit, fed) for limit in (5.0, 40.0) for fed in (True, False)}
    assert all(entry.get("risk") is None for entry in entries)
    assert main(["play", str(run), "--quiet", "--output", str(tmp_path / "episode.mp4")]) == 0
    assert " of 10" in capsys.readouterr().out  # the task's first limit
    assert main([*play, "--risk", "0.2"]) == 2
    assert "a choice of extraction, risk or sampling has no effect" in capsys.readouterr().err
    assert main(["export", str(run / "policy")]) == 2
    assert "a policy of cdt cannot be exported: it looks at the steps before" in capsys.readouterr().err
    assert main([*start[:-1], "--cost-limit", "10"]) == 2
    assert "cost_limit has no effect on training cdt" in capsys.readouterr().err
