import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_factory import save_policy_with_file_size_limit_job, start_job, tiny_config

from spi_diffusers.pipelines import SPIPolicyPipeline
from spi_diffusers.pipelines.saving import in_half_precision
from spi_diffusers.training.export import is_saved, make_policy, save_policy
from spi_diffusers.training.trainer import Trainer


@pytest.fixture(scope="module")
def trained(small_file, tmp_path_factory):
    from spi_diffusers.data.loading import load_transitions

    config = tiny_config(tmp_path_factory.mktemp("run"), small_file, updates=8)
    trainer = Trainer(config, load_transitions(small_file, "ballcircle"), progress=False)
    trainer.train()
    return trainer


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_saved_policy_acts_as_the_trained_networks_say(trained, tmp_path):
    folder = save_policy(trained, tmp_path / "policy")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]  # nothing aside is left
    pipeline = SPIPolicyPipeline.from_pretrained(str(folder))
    observation = trained.dataset.transitions.observation[:3]
    output = pipeline(observation, extraction="reward", generator=torch.Generator().manual_seed(0))
    state = trained.normalizer(observation).repeat_interleave(output.candidates.shape[1], dim=0)
    values = trained.algorithm.reward_critic(
        state, output.candidates.flatten(0, 1), output.safety_weights.flatten()
    ).values
    expected = values.amin(dim=0) * pipeline.config.reward_unit
    # The weights were rounded to 11 bits.
    torch.testing.assert_close(output.reward_values.flatten(), expected, rtol=0, atol=2e-3)
    assert pipeline.config.reward_unit == trained.units.reward != 1.0
    assert pipeline.config.max_episode_steps == 200


def test_the_papers_critics_take_half_the_room(trained, tmp_path):
    made, folder = make_policy(trained), save_policy(trained, tmp_path / "policy")
    loaded = SPIPolicyPipeline.from_pretrained(str(folder))
    for name, dtype in (("reward_critic", torch.float16), ("noise_model", torch.float32)):
        held = load_file(folder / name / "diffusion_pytorch_model.safetensors")
        assert {value.dtype for value in held.values()} == {dtype}
        before, after = (getattr(policy, name).state_dict() for policy in (made, loaded))
        assert {value.dtype for value in after.values()} == {torch.float32}
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_weights_that_half_precision_cannot_hold_stay_as_they_are():
    value = torch.tensor([1e6, 0.1])
    assert torch.equal(in_half_precision(value), value)
    assert in_half_precision(torch.tensor([0.1])).item() == 0.0999755859375


def test_a_policy_is_replaced_as_a_whole(trained, tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "old.txt").write_text("from another run")
    save_policy(trained, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert not (folder / "old.txt").exists()
    assert (folder / "model_index.json").is_file()
    info = json.loads((folder / "train_info.json").read_text())
    assert info == trained.policy().training_record["info"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_who_may_read_a_policy_is_what_the_umask_says(trained, tmp_path, umask):
    before = os.umask(umask)
    try:
        save_policy(trained, tmp_path / "policy")
        trained.policy().save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_a_policy_that_is_saved_already_is_known_as_such(trained, tmp_path, monkeypatch):
    folder = tmp_path / "policy"
    assert not is_saved(trained, folder)
    save_policy(trained, folder)
    (folder / "README.md").write_text("the user's own")
    assert is_saved(trained, folder)
    with monkeypatch.context() as changes:
        changes.setattr(trained, "config", dataclasses.replace(trained.config, seed=9))
        assert not is_saved(trained, folder)
    with monkeypatch.context() as changes:
        changes.setattr(trained, "step", 4)
        assert not is_saved(trained, folder)
    weights = folder / "noise_model" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert not is_saved(trained, folder)


def test_a_full_disk_leaves_the_old_policy_intact(trained, tmp_path):
    folder, report = tmp_path / "policy", tmp_path / "report.txt"
    save_policy(trained, folder)
    before = files(folder)
    settings = {"output_dir": str(trained.output_dir), "dataset": trained.config.dataset, "updates": 8}
    process = start_job(save_policy_with_file_size_limit_job, settings, str(folder), 4_000, str(report))
    process.join()
    assert process.exitcode == 0
    assert "policy: the policy cannot be saved: " in report.read_text()
    assert "File too large" in report.read_text()
    assert files(folder) == before
    assert {path.name for path in tmp_path.iterdir()} == {"policy", "report.txt"}


def test_a_dataset_without_a_task_gives_its_episodes_length_and_range_of_actions(tmp_path):
    from test_sampler import make_dataset

    dataset = make_dataset(lengths=(30, 30), terminated=(), low=-3.0, high=5.0)
    options = {"task": None, "dataset": "mine.npz", "action_low": -3.0, "action_high": 5.0, "updates": 2}
    trainer = Trainer(tiny_config(tmp_path, **options), dataset, progress=False)
    trainer.train()
    folder = save_policy(trainer, tmp_path / "policy")
    pipeline = SPIPolicyPipeline.from_pretrained(str(folder))
    assert (pipeline.config.task, pipeline.config.max_episode_steps) == (None, 30)
    actions = pipeline(np.zeros((50, 3)), cost_limit=5.0).actions
    assert actions.min() >= -3.0
    assert actions.max() <= 5.0
    assert actions.max() > 1.0  # in the environment's own range, not the model's


def test_data_without_a_task_and_without_any_cost_gives_a_policy_that_predicts_no_cost(tmp_path):
    from test_sampler import make_dataset

    dataset = make_dataset(lengths=(30, 30), terminated=(), max_cost=0)
    trainer = Trainer(
        tiny_config(tmp_path, task=None, dataset="mine.npz", updates=2), dataset, progress=False
    )
    trainer.train()
    folder = save_policy(trainer, tmp_path / "policy")
    pipeline = SPIPolicyPipeline.from_pretrained(str(folder))
    output = pipeline(np.zeros((2, 3)), cost_limit=5.0)
    assert output.expected_costs.max() == 0
    assert output.feasible.all()
