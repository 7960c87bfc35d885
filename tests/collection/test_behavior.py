"""Behavior-policy and scripted runs in the real simulators."""

import numpy as np
import pytest
import torch
from collection_factory import tiny_config

from spi_diffusers.collection import scripted
from spi_diffusers.collection.behavior import BehaviorRun
from spi_diffusers.collection.scripted import ScriptedRun
from spi_diffusers.data.simulators import simulator_status
from spi_diffusers.data.tasks import get_task
from spi_diffusers.envs import make_env

pytest.importorskip("bullet_safety_gym")
BALL, CAR = get_task("ballcircle"), get_task("carcircle")


def assert_same_episodes(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        for name in ("observation", "action", "reward", "cost"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)
        assert a.terminated == b.terminated


@pytest.mark.parametrize(
    "name",
    [
        "ballcircle",
        pytest.param("carcircle", marks=pytest.mark.slow),
        pytest.param("dronecircle", marks=pytest.mark.slow),
        pytest.param("hoppervelocity", marks=pytest.mark.slow),  # whose episodes end within a round
    ],
)
def test_a_run_that_was_saved_and_loaded_continues_bit_for_bit(tmp_path, name):
    task = get_task(name)
    if not simulator_status(task.simulator).installed:
        pytest.skip(f"{name} has no simulator here")
    config = tiny_config(name, steps=3 * 3 * task.max_episode_steps, scripted_episodes=0)
    # Its simulators stay open from round to round; those of the one that goes on are new.
    whole, again = (BehaviorRun(task, config, seed=5) for _ in range(2))
    whole.play_round()
    whole.save(tmp_path / "state.safetensors")
    expected = whole.play_round()
    assert not whole.finished
    expected += whole.play_round()
    assert whole.finished
    assert whole.steps_done == whole.total_steps
    again.load(tmp_path / "state.safetensors")
    assert (again.rounds_done, again.steps_done) == (1, 3 * task.max_episode_steps)
    assert_same_episodes([*again.play_round(), *again.play_round()], expected)
    for one, other in zip(again.networks.parameters(), whole.networks.parameters(), strict=True):
        assert torch.equal(one, other)
    for name in ("multipliers", "average_cost"):
        assert torch.equal(getattr(again, name).nan_to_num(-1), getattr(whole, name).nan_to_num(-1))
    whole.close()
    again.close()


def test_the_stored_actions_are_those_that_were_executed():
    config = tiny_config()
    run = BehaviorRun(BALL, config, seed=5)
    episodes = run.play_round()
    run.close()
    # Where the environments' seeds come from; the one seed more is that of the shuffling.
    seeds = np.random.SeedSequence([5, 0]).generate_state(config.num_envs + 1, np.uint32).tolist()[:-1]
    assert len(episodes) == len(seeds)
    for episode, seed in zip(episodes, seeds, strict=True):
        assert (episode.action.view(np.uint32) & 0xFFF == 0).all()
        assert (abs(episode.action) <= 1).all()
        env = make_env(BALL, seed=seed)
        observation, _ = env.reset()
        np.testing.assert_array_equal(observation, episode.observation[0])
        for step, action in enumerate(episode.action):
            observation, reward, terminated, _, info = env.step(action)
            np.testing.assert_array_equal(observation, episode.observation[step + 1])
            assert np.float32(reward) == episode.reward[step]
            assert info["cost"] == episode.cost[step]
            assert not terminated
        env.close()


def test_full_precision_keeps_all_bits_of_actions():
    run = BehaviorRun(BALL, tiny_config(), seed=5, round_actions=False)
    (episode, *_) = run.play_round()
    run.close()
    assert (episode.action.view(np.uint32) & 0xFFF != 0).any()


def test_making_a_run_leaves_the_callers_random_stream_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    BehaviorRun(BALL, tiny_config(), seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_multipliers_of_targets_move_and_penalties_stay():
    run = BehaviorRun(BALL, tiny_config(cost_targets=[0.0, 80.0], penalties=[0.3]), seed=0)
    for budget, cost_return in ((0, 40.0), (1, 0.0), (2, 40.0)):
        run._learn_cost(0, budget, cost_return)
    run._learn_cost(2, 0, 1000.0)  # the last environment is a probe
    run._learn_cost(1, 0, 50.0)
    torch.testing.assert_close(run.average_cost, torch.tensor([41.0, 0.0]))
    run._update_multipliers()
    torch.testing.assert_close(run.multipliers, torch.tensor([0.7, 0.4, 0.3]))


def test_speed_beyond_its_target_earns_nothing_and_is_what_a_speed_budget_pays_for():
    task = get_task("hoppervelocity")  # a step faster than 0.7402 m/s costs 1
    config = tiny_config(task, cost_targets=[], penalties=[0.5], speed_targets=[0.5, 1.0], speed_penalty=0.2)
    run = BehaviorRun(task, config, seed=0)
    torch.testing.assert_close(run.multipliers, torch.tensor([0.5, 0.2, 0.2]))
    signals = np.array([[3.0, 1.0], [3.0, 1.0], [3.0, 1.0], [1.5, 0.0]])
    infos = [{"speed": speed} for speed in (2.0, 2.0, 2.0, 0.5)]
    learned = run._learned_signals(signals, infos, np.array([0, 1, 2, 2]))
    expected = [[3.0, 1.0], [3.0 - 1.6299, 1.6299], [3.0 - 1.2598, 1.2598], [1.5, 0.0]]
    np.testing.assert_allclose(learned, expected, atol=1e-12)
    np.testing.assert_array_equal(signals[:, 1], [1.0, 1.0, 1.0, 0.0])  # what is recorded is left alone


def test_with_speed_targets_the_episodes_still_have_the_tasks_own_rewards_and_costs():
    task = get_task("hoppervelocity")
    if not simulator_status(task.simulator).installed:
        pytest.skip("no MuJoCo here")
    run = BehaviorRun(task, tiny_config(task, cost_targets=[], penalties=[], speed_targets=[0.1]), seed=0)
    episodes = run.play_round()
    run.close()
    assert any((episode.cost > 0).any() for episode in episodes)
    for episode in episodes:
        # The task's reward: 1 + speed - 0.001 * squared action.
        speed = episode.reward - 1.0 + 1e-3 * np.square(episode.action).sum(axis=1)
        clear = abs(speed - 0.7402) > 1e-5
        np.testing.assert_array_equal(episode.cost[clear], (speed > 0.7402)[clear])


def test_a_scripted_run_that_was_saved_and_loaded_continues_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(scripted, "_EPISODES_PER_ROUND", 2)
    config = tiny_config("carcircle", scripted_episodes=5)
    whole = ScriptedRun(CAR, config, seed=1)
    whole.play_round()
    whole.save(tmp_path / "state.safetensors")
    expected = whole.play_round()
    again = ScriptedRun(CAR, config, seed=1)
    again.load(tmp_path / "state.safetensors")
    assert_same_episodes(again.play_round(), expected)
    assert again._best == whole._best
    assert again.steps_done == 4 * 300
    assert not again.finished
    whole.close()
    again.close()
