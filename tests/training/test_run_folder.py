"""What may start or go on in a run's folder, and what is refused before anything in it changes."""

import shutil

import pytest
import torch
from training_factory import assert_same_training, newest_checkpoint, run, tiny_config

from spi_diffusers.pipelines.saving import in_half_precision
from spi_diffusers.training.run_folder import RunFolderError


def test_resuming_a_finished_run_changes_nothing(small_dataset, tmp_path):
    run(tiny_config(tmp_path), small_dataset)
    before = newest_checkpoint(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    trainer, result = run(tiny_config(tmp_path, resume=True), small_dataset)
    assert result.step == 20
    assert result.metrics == before.state["last_metrics"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines
    weights = trainer.policy().reward_critic.state_dict()
    expected = before.tensors["critics/net.0.weight"][:2]
    assert torch.equal(weights["net.0.weight"], in_half_precision(expected))


def test_resume_without_a_checkpoint_starts_at_the_beginning(small_dataset, tmp_path):
    run(tiny_config(tmp_path / "a"), small_dataset)
    run(tiny_config(tmp_path / "b", resume=True), small_dataset)
    assert_same_training(newest_checkpoint(tmp_path / "a"), newest_checkpoint(tmp_path / "b"))


def test_resume_without_a_checkpoint_spares_what_another_run_has_left(small_dataset, tmp_path):
    run(tiny_config(tmp_path), small_dataset)
    shutil.rmtree(tmp_path / "checkpoints")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match=r"without a checkpoint.*seed: 0 before, 7 now"):
        run(tiny_config(tmp_path, resume=True, seed=7), small_dataset)
    (tmp_path / "policy").mkdir()
    with pytest.raises(RunFolderError, match="holds a finished policy, but no checkpoint to resume from"):
        run(tiny_config(tmp_path, resume=True), small_dataset)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(RunFolderError, match="holds a run already"):
        run(tiny_config(tmp_path), small_dataset)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(RunFolderError, match=r"\(there is policy\)\. Choose another output_dir\."):
        run(tiny_config(tmp_path), small_dataset)
    (tmp_path / "metrics.jsonl").write_bytes(before[tmp_path / "metrics.jsonl"])
    (tmp_path / "policy").rmdir()
    run(tiny_config(tmp_path, resume=True), small_dataset)  # killed before its first checkpoint


def test_resuming_for_fewer_updates_than_were_made_is_refused(small_dataset, tmp_path):
    run(tiny_config(tmp_path, updates=10, lr_schedule="constant"), small_dataset)
    with pytest.raises(RunFolderError, match="has made 10 updates already, more than updates=5"):
        run(tiny_config(tmp_path, updates=5, lr_schedule="constant", resume=True), small_dataset)


def test_a_new_run_over_an_old_one_is_refused_and_nothing_is_touched(small_dataset, tmp_path):
    config = tiny_config(tmp_path)
    run(config, small_dataset)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match=r"holds a run already.*--resume.*output_dir"):
        run(config, small_dataset)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        run(tiny_config(tmp_path / "file"), small_dataset)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"seed": 1}, r"seed: 0 in the checkpoint, 1 now"),
        ({"learning_rate": 2e-3}, r"learning_rate: 0.001 in the checkpoint, 0.002 now"),
        ({"spi.gamma": 0.9, "batch_size": 16}, r"batch_size: 32 .*spi.gamma: 0.99 "),
        ({"network.hidden_dims": [32]}, r"network.hidden_dims: \[32, 32\] in the checkpoint, \[32\] now"),
        ({"updates": 40}, r"updates: 20 in the checkpoint, 40 now"),  # moves the cosine schedule
    ],
)
def test_resuming_with_other_settings_is_refused(small_dataset, tmp_path, overrides, complaint):
    run(tiny_config(tmp_path), small_dataset)
    with pytest.raises(RunFolderError, match=complaint):
        run(tiny_config(tmp_path, resume=True, **overrides), small_dataset)


def test_what_does_not_change_the_result_may_change_on_resume(small_dataset, tmp_path):
    config = tiny_config(tmp_path / "a", updates=10, lr_schedule="constant")
    run(config, small_dataset)
    run(tiny_config(tmp_path / "b", updates=20, lr_schedule="constant"), small_dataset)
    longer = {"updates": 20, "lr_schedule": "constant", "resume": True, "keep_checkpoints": 1}
    run(tiny_config(tmp_path / "a", checkpoint_every=6, log_every=5, **longer), small_dataset)
    assert_same_training(newest_checkpoint(tmp_path / "a"), newest_checkpoint(tmp_path / "b"))


def test_resuming_on_other_data_is_refused(small_dataset, tmp_path):
    run(tiny_config(tmp_path), small_dataset)
    other = small_dataset.select_episodes(torch.arange(5))
    with pytest.raises(RunFolderError, match=rf"the data differs.*{small_dataset.sha256[:16]}"):
        run(tiny_config(tmp_path, resume=True), other)
