import copy
import dataclasses
import os
import signal
import threading

import pytest
import torch
from training_factory import assert_same_training, newest_checkpoint, read_metrics, run, tiny_config

from spi_diffusers.config.validation import ConfigError
from spi_diffusers.pipelines.saving import in_half_precision
from spi_diffusers.training.checkpoint import CheckpointStore, first_non_finite
from spi_diffusers.training.trainer import Trainer, TrainingDivergedError


def stop_at(trainer, update, number=signal.SIGTERM):
    """Send this process a signal just before an update."""
    draw, drawn = trainer.sampler.draw, []

    def draw_and_send():
        drawn.append(1)
        if len(drawn) == update + 1:  # the first draw is the first update's own batch
            os.kill(os.getpid(), number)
        return draw()

    trainer.sampler.draw = draw_and_send


def test_training_changes_the_weights_and_logs_every_few_updates(small_dataset, tmp_path):
    config = tiny_config(tmp_path, updates=20)
    fresh = Trainer(config, small_dataset, progress=False)
    trainer, result = run(config, small_dataset)
    assert (result.step, result.stopped_by) == (20, None)
    for name in ("noise_model", "ema_noise_model", "critics", "target_critics"):
        before, after = getattr(fresh.algorithm, name), getattr(trainer.algorithm, name)
        assert not torch.equal(next(before.parameters()), next(after.parameters()))
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 15, 18, 20]
    assert set(lines[0]) == {
        *("step", "lr", "critic/reward_loss", "critic/safety_loss"),
        *("critic/reward_value", "critic/safety_value", "policy/noise_loss", "policy/guidance_loss"),
    }
    assert [line["lr"] for line in lines] == [
        config.learning_rate_at(k - 1) for k in (3, 6, 9, 12, 15, 18, 20)
    ]
    assert trainer.checkpoints.steps() == [15, 20]
    assert result.metrics["policy/noise_loss"] == lines[-1]["policy/noise_loss"]


def test_logged_losses_are_means_over_the_updates_since_the_last_line(small_dataset, tmp_path):
    run(tiny_config(tmp_path / "each", updates=6, log_every=1), small_dataset)
    run(tiny_config(tmp_path / "three", updates=6, log_every=3), small_dataset)
    each = [line["critic/reward_loss"] for line in read_metrics(tmp_path / "each")]
    three = [line["critic/reward_loss"] for line in read_metrics(tmp_path / "three")]
    assert three == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3])


def test_the_optimisers_follow_the_schedule(small_dataset, tmp_path):
    trainer, _ = run(tiny_config(tmp_path, updates=4, learning_rate=1e-3), small_dataset)
    for optimizer in trainer.algorithm.optimizers().values():
        assert optimizer.param_groups[0]["lr"] == trainer.config.learning_rate_at(3)


def test_the_seed_decides_everything_and_torchs_own_random_state_nothing(small_dataset, tmp_path):
    checkpoints = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.rand(len(checkpoints))
        run(tiny_config(tmp_path / name, seed=seed), small_dataset)
        checkpoints.append(newest_checkpoint(tmp_path / name))
    assert_same_training(checkpoints[0], checkpoints[1])
    key = "noise_model/net.0.weight"
    assert not torch.equal(checkpoints[0].tensors[key], checkpoints[2].tensors[key])
    state = torch.get_rng_state()
    Trainer(tiny_config(tmp_path / "d"), small_dataset, progress=False).policy()
    assert torch.equal(torch.get_rng_state(), state)


def test_overlapping_the_two_halves_gives_the_same_result(small_dataset, tmp_path):
    run(tiny_config(tmp_path / "a", overlap=False), small_dataset)
    run(tiny_config(tmp_path / "b", overlap=True), small_dataset)
    assert_same_training(newest_checkpoint(tmp_path / "a"), newest_checkpoint(tmp_path / "b"))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"mixed_precision": "no", "spi.guidance": "chain"},
        {"spi.next_action": "dataset", "overlap": True},
        {"algorithm": "spi-paper", "lr_schedule": "constant"},
    ],
    ids=["default", "chain in float32", "recorded next action", "paper"],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(small_dataset, tmp_path, overrides):
    run(tiny_config(tmp_path / "whole", **overrides), small_dataset)
    trainer = Trainer(tiny_config(tmp_path / "parts", **overrides), small_dataset, progress=False)
    stop_at(trainer, 7)
    result = trainer.train()
    assert (result.step, result.stopped_by) == (7, signal.SIGTERM)
    assert trainer.checkpoints.steps() == [5, 7]
    _, result = run(tiny_config(tmp_path / "parts", resume=True, **overrides), small_dataset)
    assert (result.step, result.stopped_by) == (20, None)
    assert_same_training(newest_checkpoint(tmp_path / "whole"), newest_checkpoint(tmp_path / "parts"))
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")


def test_metrics_after_the_checkpoint_are_not_repeated(small_dataset, tmp_path):
    """A run killed at update 14 has logged 12, but its checkpoint is of update 10."""
    run(tiny_config(tmp_path / "whole", log_every=1), small_dataset)
    config = tiny_config(tmp_path / "parts", log_every=1)
    trainer = Trainer(config, small_dataset, progress=False)

    def die(*_args):
        raise KeyboardInterrupt

    draw, drawn = trainer.sampler.draw, []
    trainer.sampler.draw = lambda: drawn.append(1) or (die() if len(drawn) > 14 else draw())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "learn')  # the line at which it was killed
    run(dataclasses.replace(config, resume=True), small_dataset)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")


def test_ctrl_c_stops_cleanly_and_handlers_are_restored(small_dataset, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer = Trainer(tiny_config(tmp_path), small_dataset, progress=False)
    stop_at(trainer, 3, signal.SIGINT)
    result = trainer.train()
    assert (result.step, result.stopped_by) == (3, signal.SIGINT)
    assert newest_checkpoint(tmp_path).step == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_during_the_last_update_does_not_undo_the_end(small_dataset, tmp_path):
    trainer = Trainer(tiny_config(tmp_path), small_dataset, progress=False)
    stop_at(trainer, 20)
    assert trainer.train().stopped_by is None


def test_training_outside_the_main_thread_works(small_dataset, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tiny_config(tmp_path), small_dataset)[1]))
    thread.start()
    thread.join()
    assert results[0].step == 20


def test_divergence_is_an_error_that_names_metric_and_update_before_anything_is_saved(
    small_dataset, tmp_path
):
    config = tiny_config(tmp_path, updates=5, lr_schedule="constant")
    run(config, small_dataset)
    before = newest_checkpoint(tmp_path)
    trainer = Trainer(dataclasses.replace(config, updates=20, resume=True), small_dataset, progress=False)
    poison = trainer.sampler.draw

    def draw():
        inputs = poison()
        return inputs if trainer.step < 7 else dataclasses.replace(inputs, reward=inputs.reward * torch.nan)

    trainer.sampler.draw = draw
    with pytest.raises(
        TrainingDivergedError, match=r"critic/reward_loss is nan after update 9\. .*step 5 is intact"
    ):
        trainer.train()
    assert_same_training(newest_checkpoint(tmp_path), before)


def test_a_learning_rate_far_too_high_is_noticed(small_dataset, tmp_path):
    config = tiny_config(tmp_path, learning_rate=1e30, updates=50)
    with pytest.raises(TrainingDivergedError, match="after update"):
        run(config, small_dataset)
    store = CheckpointStore(tmp_path / "checkpoints")
    assert all(first_non_finite(store.load(step).tensors) is None for step in store.steps())


def test_a_weight_that_is_not_finite_is_not_saved(small_dataset, tmp_path):
    trainer = Trainer(tiny_config(tmp_path, checkpoint_every=1), small_dataset, progress=False)
    with torch.no_grad():
        trainer.algorithm.ema_noise_model.net[0].bias[0] = (
            torch.inf
        )  # the replica is refreshed after update 1
    with pytest.raises(TrainingDivergedError, match=r"target_noise_model/net.0.bias holds values"):
        trainer.train()
    assert trainer.checkpoints.steps() == []


def test_exported_modules_are_copies_that_compute_the_same(small_dataset, tmp_path):
    trainer, _ = run(tiny_config(tmp_path), small_dataset)
    parts = trainer.policy().components
    batch = small_dataset.transitions.gather(torch.arange(16))
    state, weight = parts["normalizer"](batch.observation), torch.linspace(0, 1, 16)
    for name in ("reward_critic", "safety_critic"):
        own = copy.deepcopy(getattr(trainer.algorithm, name))
        own.load_state_dict({key: in_half_precision(value) for key, value in own.state_dict().items()})
        expected = own(state, batch.action, weight).values
        assert torch.equal(parts[name](state, batch.action, weight).values, expected)
    noise_model = parts["noise_model"]
    expected = trainer.algorithm.ema_noise_model(batch.action, 2, state, weight).sample
    assert torch.equal(noise_model(batch.action, 2, state, weight).sample, expected)
    assert not torch.equal(trainer.algorithm.noise_model(batch.action, 2, state, weight).sample, expected)
    for name in ("noise_model", "reward_critic", "safety_critic"):
        assert all(p.is_contiguous() and p.dtype == torch.float32 for p in parts[name].parameters())
        assert not parts[name].training
    trainer.algorithm.critics.net[0].weight.data.zero_()
    assert parts["reward_critic"].net[0].weight.abs().sum() > 0
    assert parts["scheduler"].config.num_train_timesteps == 5


def test_the_action_range_reaches_the_exported_policy(tmp_path):
    from test_sampler import make_dataset

    dataset = make_dataset(lengths=(20, 20), terminated=(), low=-3.0, high=5.0)
    options = {"task": None, "dataset": "mine.npz", "action_low": -3.0, "action_high": 5.0, "updates": 3}
    trainer, _ = run(tiny_config(tmp_path, **options), dataset)
    config = trainer.policy().noise_model.config
    assert (config.action_low, config.action_high) == (-3.0, 5.0)


def test_tensorboard_gets_the_metrics_and_a_resumed_run_repeats_none(small_dataset, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(tmp_path, trackers=["tensorboard"], log_every=2)
    trainer = Trainer(config, small_dataset, progress=False)
    stop_at(trainer, 8)
    trainer.train()
    run(dataclasses.replace(config, resume=True), small_dataset)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "spi-diffusers")).Reload()
    steps = [event.step for event in events.Scalars("policy/noise_loss")]
    assert steps == list(range(2, 21, 2))


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_an_error_that_names_the_extra(small_dataset, tmp_path, tracker):
    import importlib.util

    if importlib.util.find_spec(tracker):
        pytest.skip(f"{tracker} is installed")
    with pytest.raises(ImportError, match=rf"spi-diffusers\[{tracker}\]"):
        Trainer(tiny_config(tmp_path / "new", trackers=[tracker]), small_dataset)
    assert not (tmp_path / "new").exists()


def test_a_task_that_is_not_the_datas_and_a_device_that_is_not_there_are_refused(small_dataset, tmp_path):
    with pytest.raises(
        ConfigError, match=r"task=OfflineCarCircle-v0, but .* holds data of OfflineBallCircle-v0"
    ):
        Trainer(tiny_config(tmp_path, task="carcircle"), small_dataset)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device=cuda is not available"):
            Trainer(tiny_config(tmp_path, device="cuda"), small_dataset)


# ---- a callback


def test_a_callback_sees_what_is_logged_and_the_policy_as_it_is(small_dataset, tmp_path):
    seen, policies = [], []

    def look(progress):
        seen.append((progress.step, progress.updates, progress.metrics))
        assert progress.seconds > 0
        assert "step=" in repr(progress)
        policies.append(progress.policy())

    trainer = Trainer(tiny_config(tmp_path, updates=7), small_dataset, progress=False)
    trainer.train(callback=look)
    assert [(step, updates) for step, updates, _ in seen] == [(3, 7), (6, 7), (7, 7)]
    for (_, _, metrics), line in zip(seen, read_metrics(tmp_path), strict=True):
        assert metrics.items() <= line.items()
    first, _, last = (policy.noise_model.state_dict()["net.0.weight"] for policy in policies)
    assert not torch.equal(first, last)
    assert torch.equal(last, trainer.policy().noise_model.state_dict()["net.0.weight"])
    assert policies[0].training_record["info"]["updates"] == 3
    assert policies[0](small_dataset.transitions.observation[:2]).actions.shape == (2, 2)


def test_a_callback_changes_nothing(small_dataset, tmp_path):
    for name, callback in (("with", lambda progress: progress.policy()), ("without", None)):
        trainer = Trainer(tiny_config(tmp_path / name, updates=9), small_dataset, progress=False)
        trainer.train(callback=callback)
    assert_same_training(newest_checkpoint(tmp_path / "with"), newest_checkpoint(tmp_path / "without"))


def test_a_callback_stops_training_with_a_checkpoint_to_go_on_from(small_dataset, tmp_path):
    whole, parts = (tiny_config(tmp_path / name, updates=12) for name in ("whole", "parts"))
    run(whole, small_dataset)
    trainer = Trainer(parts, small_dataset, progress=False)
    result = trainer.train(callback=lambda progress: progress.stop() if progress.step == 6 else None)
    assert (result.step, result.stopped_by) == (6, None)
    assert trainer.checkpoints.steps()[-1] == 6
    run(dataclasses.replace(parts, resume=True), small_dataset)
    assert_same_training(newest_checkpoint(tmp_path / "whole"), newest_checkpoint(tmp_path / "parts"))
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")


def test_what_a_callback_raises_reaches_the_caller_and_a_checkpoint_is_kept(small_dataset, tmp_path):
    def fail(progress):
        raise ValueError("of the callback")

    trainer = Trainer(tiny_config(tmp_path), small_dataset, progress=False)
    with pytest.raises(ValueError, match="of the callback"):
        trainer.train(callback=fail)
    assert newest_checkpoint(tmp_path).step == 3


def test_an_interrupt_ends_a_callback_at_once_and_a_checkpoint_is_kept(small_dataset, tmp_path):
    reached = []

    def evaluate_for_long(progress):
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(progress.step)

    trainer = Trainer(tiny_config(tmp_path), small_dataset, progress=False)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(callback=evaluate_for_long)
    assert reached == []
    assert newest_checkpoint(tmp_path).step == 3
