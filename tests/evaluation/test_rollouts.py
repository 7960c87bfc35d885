import numpy as np
import pytest
from ball_circle_policies import BallCircler, RandomPolicy

from spi_diffusers.envs import episode_seeds, make_env
from spi_diffusers.evaluation.rollouts import rollout


def test_figures_are_those_of_episodes_played_one_by_one():
    policy = BallCircler()
    played = rollout(policy, "ballcircle", episodes=3, seed=5, cost_limit=20, progress=False)

    for number, seed in enumerate(episode_seeds(5, 3)):
        env = make_env("ballcircle")
        observation, _ = env.reset(seed=seed)
        return_ = cost_return = 0.0
        policy.reset(0, 20, episodes=1, max_episode_steps=200, feedback=True)
        for _ in range(200):
            action = policy.act(observation[None], np.array([True]))[0]
            observation, reward, terminated, truncated, info = env.step(action)
            policy.observe(np.array([reward]), np.array([info["cost"]]), np.array([terminated or truncated]))
            return_, cost_return = return_ + reward, cost_return + info["cost"]
        env.close()
        assert (terminated, truncated) == (False, True)
        assert played.returns[number] == pytest.approx(return_, abs=1e-9)
        assert played.cost_returns[number] == cost_return
    assert played.lengths.tolist() == [200] * 3
    assert not played.terminated.any()
    assert played.returns.min() > 100, "the controller drives round"
    assert 15 <= played.cost_returns.min() <= played.cost_returns.max() <= 24, "and spends its budget"


def test_same_seed_same_numbers_another_seed_others(step_costs):
    def play(seed):
        return rollout(BallCircler(0.2), "ballcircle", episodes=4, seed=seed, cost_limit=10, progress=False)

    first, again, other = play(0), play(0), play(1)
    for name in ("returns", "cost_returns", "lengths", "terminated"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    np.testing.assert_array_equal(step_costs[:200], step_costs[200:400])
    assert not np.isin(first.returns, other.returns).any()


def test_many_episodes_are_played_in_parts_that_are_the_same_episodes(monkeypatch):
    how = {"seed": 3, "cost_limit": 10, "progress": False}
    together = rollout(BallCircler(), "ballcircle", episodes=5, **how)
    monkeypatch.setattr("spi_diffusers.evaluation.rollouts.SIDE_BY_SIDE", 2)
    policy = BallCircler()
    parts = rollout(policy, "ballcircle", episodes=5, **how)
    assert policy.told[1] == 1, "two, two, and the last one"
    for name in ("returns", "cost_returns", "lengths", "terminated"):
        assert getattr(parts, name).shape == (5,)
        np.testing.assert_allclose(getattr(parts, name), getattr(together, name), atol=1e-9)
    noisy = rollout(BallCircler(0.2), "ballcircle", episodes=4, **how)
    first = rollout(BallCircler(0.2), "ballcircle", episodes=2, **how)
    np.testing.assert_array_equal(noisy.returns[:2], first.returns)


def test_a_used_policy_starts_over():
    policy = BallCircler(0.2)
    first = rollout(policy, "ballcircle", episodes=2, seed=0, cost_limit=10, progress=False)
    rollout(policy, "ballcircle", episodes=1, seed=7, cost_limit=10, progress=False)
    again = rollout(policy, "ballcircle", episodes=2, seed=0, cost_limit=10, progress=False)

    np.testing.assert_array_equal(first.returns, again.returns)


def test_feedback_tells_what_every_step_cost(step_costs):
    policy = BallCircler()
    played = rollout(policy, "ballcircle", episodes=2, seed=0, cost_limit=15, progress=False)

    assert policy.told == (15.0, 2, 200, True)
    assert len(policy.calls) == len(policy.costs) == 200
    assert all(observation.dtype == np.float32 for observation, _ in policy.calls)
    np.testing.assert_array_equal(np.array(policy.costs), step_costs)
    np.testing.assert_array_equal(np.sum(step_costs, axis=0), played.cost_returns)
    assert np.min(step_costs) >= 0


def test_without_feedback_only_the_limit_is_told():
    policy = BallCircler()
    rollout(policy, "ballcircle", episodes=2, seed=0, cost_limit=15, feedback=False, progress=False)
    assert policy.told == (15.0, 2, 200, False)
    assert policy.costs == [None] * 200


def test_without_a_limit_nothing_is_told():
    policy = BallCircler()
    rollout(policy, "ballcircle", episodes=1, seed=0, cost_limit=None, progress=False)
    assert policy.told == (None, 1, 200, False)
    assert policy.costs == [None] * 200


def test_only_episodes_that_go_on_are_asked_for(step_costs):
    policy = RandomPolicy(4)  # the drone falls out of the sky
    played = rollout(policy, "dronecircle", episodes=4, seed=0, cost_limit=10, progress=False)

    assert played.terminated.all()
    assert len(set(played.lengths)) > 1
    assert len(policy.batch_sizes) == played.lengths.max() == len(step_costs)
    alive = [int((played.lengths > step).sum()) for step in range(played.lengths.max())]
    assert policy.batch_sizes == alive


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "episodes must be an integer of at least 1, got 0"),
        ({"episodes": 2.0}, "episodes must be an integer"),
        ({"cost_limit": -1}, "a cost limit must be a finite number of at least 0"),
        ({"cost_limit": float("nan")}, "a cost limit must be"),
        ({"seed": -1}, "seed must be a non-negative integer"),
        ({"seed": None}, "seed must be a non-negative integer"),
        ({"task": "moonwalk"}, "unknown task 'moonwalk'"),
    ],
)
def test_bad_arguments(changes, message):
    arguments = {"task": "ballcircle", "episodes": 1, "seed": 0, "cost_limit": 10, **changes}
    with pytest.raises(ValueError, match=message):
        rollout(BallCircler(), progress=False, **arguments)


class BrokenPolicy(BallCircler):
    def __init__(self, actions):
        super().__init__()
        self.actions = actions

    def act(self, observation, active):
        return self.actions


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((2, 3)), r"actions of shape \(2, 3\) at step 0, expected \(2, 2\)"),
        (np.zeros(2), r"actions of shape \(2,\)"),
        (np.array([[0, 0], [0, np.nan]]), r"gave \[0.0, nan\] for observation 1 at step 0"),
    ],
)
def test_actions_that_cannot_be_executed(actions, message):
    with pytest.raises(ValueError, match=message):
        rollout(BrokenPolicy(actions), "ballcircle", episodes=2, seed=0, cost_limit=10, progress=False)


def test_progress_bar_shows_the_mean_cost(capsys):
    # Long enough for tqdm to draw more than the empty bar.
    rollout(BallCircler(), "ballcircle", episodes=10, seed=0, cost_limit=10)

    shown = capsys.readouterr().err
    assert "ballcircle, 10 episodes, limit 10" in shown
    assert "mean cost" in shown
