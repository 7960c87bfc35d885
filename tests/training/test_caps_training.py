"""CAPS through the trainer and the commands: saving, and acting with and without feedback."""

import json

import torch
from training_factory import tiny_config

from spi_diffusers.cli import main
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.pipelines import BaselinePolicyPipeline
from spi_diffusers.training.export import save_policy
from spi_diffusers.training.trainer import Trainer


def test_the_saved_policy_acts_as_the_trained_one(tmp_path):
    whole = load_transitions(None, "ballcircle")
    data = whole.select_episodes(torch.arange(0, whole.num_episodes, 20))
    config = tiny_config(tmp_path / "run", algorithm="caps", **{"caps.hidden_dims": [8]})
    trainer = Trainer(config, data, progress=False)
    trainer.train()
    saved = BaselinePolicyPipeline.from_pretrained(str(save_policy(trainer, tmp_path / "policy")))
    observation = data.transitions.observation[:6]
    actions = [pipe(observation, cost_limit=20) for pipe in (trainer.policy(), saved)]
    torch.testing.assert_close(*actions)


def test_it_is_trained_and_played_by_the_commands(tmp_path, capsys):
    run = tmp_path / "run"
    start = ["train", "--task", "ballcircle", "--algorithm", "caps", "--output_dir", str(run)]
    start += ["--caps.hidden_dims", "8", "--updates", "3", "--batch_size", "8"]
    assert main([*start, "--device", "cpu", "--threads", "1", "--quiet"]) == 0
    play = ["evaluate", str(run), "--episodes", "2", "--cost-limit", "5", "40"]
    play += ["--no-plots", "--no-video", "--quiet"]
    assert main(play) == main([*play, "--no-feedback"]) == 0
    assert "caps, told the limit, no feedback" in " ".join(capsys.readouterr().out.split())
    entries = json.loads((run / "evaluation" / "results.json").read_text())["entries"]
    told = {(entry["extraction"], entry["cost_limit"], entry["feedback"]) for entry in entries}
    assert told == {("limit", limit, fed) for limit in (5.0, 40.0) for fed in (True, False)}
    assert main(["export", str(run / "policy")]) == 2
    assert "a policy of caps cannot be exported" in capsys.readouterr().err
