import importlib.metadata
import sys
from types import ModuleType

import gymnasium
import numpy as np
import pytest
from ball_circle_policies import BallCircler
from evaluation_factory import BALL_CIRCLE, make_train_info
from gymnasium.envs.registration import EnvSpec, registry

from spi_diffusers.evaluation.evaluate import evaluate_policy


def _evaluate(policy=None, **changes):
    arguments = {
        "train_info": make_train_info(train_seed=3),
        "extraction": "safe",
        "knows_limit": True,
        "cost_limits": [10, 20],
        "episodes": 2,
        "seeds": [0, 1],
        "progress": False,
        **changes,
    }
    return evaluate_policy(policy or BallCircler(), "ballcircle", **arguments)


def test_one_entry_per_limit_over_all_evaluation_seeds():
    rollouts = {}
    entries = _evaluate(
        on_rollout=lambda _, played: rollouts.update({(played.cost_limit, played.seed): played})
    )

    assert [entry.cost_limit for entry in entries] == [10, 20]
    assert set(rollouts) == {(10, 0), (10, 1), (20, 0), (20, 1)}
    for entry in entries:
        played = [rollouts[entry.cost_limit, seed] for seed in (0, 1)]
        costs = np.concatenate([p.cost_returns for p in played])
        assert (entry.episodes, entry.eval_seeds, entry.feedback) == (4, (0, 1), True)
        assert entry.cost_mean == costs.mean()
        assert entry.within_limit == (costs <= entry.cost_limit).mean()
        assert entry.reward_mean == pytest.approx(np.concatenate([p.returns for p in played]).mean())
        assert entry.steps_per_second == pytest.approx(800 / sum(p.seconds for p in played))
        assert (entry.algorithm, entry.train_seed) == ("spi", 3)
    assert entries[0].cost_mean < entries[1].cost_mean, "a higher limit is used"


def test_a_policy_that_knows_no_limit_is_played_once():
    rollouts = []
    entries = _evaluate(knows_limit=False, on_rollout=lambda _, played: rollouts.append(played))

    assert [(played.cost_limit, played.seed) for played in rollouts] == [(None, 0), (None, 1)]
    assert [entry.feedback for entry in entries] == [False, False]
    assert entries[0].cost_mean == entries[1].cost_mean
    assert entries[0].normalized_cost == pytest.approx(2 * entries[1].normalized_cost)


def test_default_limits_are_the_tasks():
    entries = _evaluate(cost_limits=None, knows_limit=False, seeds=[0], episodes=1)
    assert tuple(entry.cost_limit for entry in entries) == BALL_CIRCLE.cost_limits


def test_versions_name_what_the_numbers_depend_on():
    (entry,) = _evaluate(cost_limits=[10], seeds=[0], episodes=1)
    for package in ("torch", "gymnasium", "bullet-safety-gym", "pybullet"):
        assert entry.versions[package] == importlib.metadata.version(package)
    assert {"python", "spi-diffusers"} <= set(entry.versions)


def make_free_ride():
    """Stands in for the real dsrl's BallCircle, which does not install here: 0.5 a step, cost 1."""
    from bullet_safety_gym.envs.builder import EnvironmentBuilder

    class FreeRide(EnvironmentBuilder):
        def step(self, action):
            observation, _, terminated, truncated, _ = super().step(action)
            return observation, 0.5, terminated, truncated, {"cost": 1.0}

    return FreeRide(**gymnasium.spec(BALL_CIRCLE.env_id).kwargs)


def test_the_simulator_can_be_chosen(monkeypatch):
    monkeypatch.setitem(sys.modules, "dsrl", ModuleType("dsrl"))
    monkeypatch.setitem(registry, BALL_CIRCLE.name, EnvSpec(id=BALL_CIRCLE.name, entry_point=make_free_ride))
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.1.2" if name == "dsrl" else version(name)
    )
    (theirs,) = _evaluate(cost_limits=[10], seeds=[0], episodes=1, simulator="dsrl")
    assert (theirs.reward_mean, theirs.cost_mean) == (100, 200)
    assert theirs.versions["dsrl"] == "0.1.2"
    (own,) = _evaluate(cost_limits=[10], seeds=[0], episodes=1)
    assert own.reward_mean > 200
    assert "dsrl" not in own.versions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost_limits": []}, "cost_limits is empty"),
        ({"cost_limits": [10, 10.0]}, "cost_limits holds the same value twice"),
        ({"cost_limits": [10, -1]}, "a cost limit must be"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [0, 0]}, "seeds holds the same value twice"),
        ({"seeds": [0, -1]}, "seed must be a non-negative"),
        ({"episodes": 0}, "episodes must be"),
    ],
)
def test_bad_arguments_are_found_before_the_first_episode(changes, message):
    policy = BallCircler()
    with pytest.raises(ValueError, match=message):
        _evaluate(policy, **changes)
    assert policy.calls == []
