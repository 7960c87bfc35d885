"""SPI on the circuit: one model, safe extraction, every limit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from algorithm_testbed import train
from circuit import GAMMA, JUMP, STATES, STEPS, circuit_world
from constrained_mdp import deterministic_policies, episode_sums, evaluate, neighbours

LIMITS = (5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 80.0)
EPISODES = 30

WORLD = circuit_world()
#: Episodes start in state 0, as in the data.
EPISODE = replace(WORLD.mdp, start=np.eye(STATES)[0])
PURE = [episode_sums(EPISODE, policy, STEPS) for policy in deterministic_policies(EPISODE)]


@pytest.fixture(scope="module")
def pipeline():
    settings = {
        "spi.gamma": GAMMA,
        # Values count twenty times as much as imitation: the theory's optimum takes none into account.
        "spi.eta": 0.05,
        "spi.target_update_rate": 0.05,
        "spi.ema_decay": 0.99,
        "spi.imitation_share": 0.25,
        "network.hidden_dims": [64, 64],
        "learning_rate": 3e-3,
        "lr_schedule": "cosine",
    }
    return train(WORLD, "spi", settings, updates=3000).spi_pipeline(WORLD)


def episodes(pipeline, cost_limit: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and costs of whole episodes, the running cost fed back at every step, each (EPISODES,)."""
    generator, moves = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    state, reward, cost = np.zeros(EPISODES, dtype=np.int64), np.zeros(EPISODES), np.zeros(EPISODES)
    for step in range(STEPS):
        actions = pipeline(
            torch.from_numpy(WORLD.observations[state]),
            cost_budget=torch.from_numpy(cost_limit - cost).float(),
            steps_left=STEPS - step,
            generator=generator,
        ).actions
        move = (moves.random(EPISODES) < WORLD.moves(actions.numpy())[:, JUMP]).astype(np.int64)
        reward += WORLD.mdp.reward[state, move]
        cost += WORLD.mdp.cost[state, move]
        state = WORLD.mdp.next_state[state, move]
    return reward, cost


@pytest.fixture(scope="module")
def played(pipeline) -> tuple[np.ndarray, np.ndarray]:
    """Mean reward and cost of an episode at each limit, with the cost fed back."""
    columns = zip(*(episodes(pipeline, limit) for limit in LIMITS), strict=True)
    rewards, costs = (np.array([column.mean() for column in each]) for each in columns)
    return rewards, costs


@pytest.mark.slow
def test_with_the_cost_fed_back_every_limit_is_kept(played):
    """Costs are whole, and a budget is seen to be spent only afterwards: so one may be one too many."""
    rewards, costs = played
    assert (costs <= np.array(LIMITS) + 1.0).all()
    assert (np.diff(rewards) > -0.5).all()
    assert (np.diff(costs) > -0.5).all()


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True, reason="margins leave a part of some limits unspent: reward 16 where 20 is best"
)
def test_with_the_cost_fed_back_every_limit_is_used(played):
    for limit, reward in zip(LIMITS, played[0], strict=True):
        pure = neighbours(limit, PURE)
        assert reward >= pure.within.reward - pure.slack_reward


def without_feedback(pipeline, limit):
    """A table of moves, evaluated exactly, and the best one that keeps the threshold."""
    judged = WORLD.started_as_the_data()
    pure = neighbours(WORLD.threshold(limit), [evaluate(judged, p) for p in deterministic_policies(judged)])
    # The threshold is one of means, and a decision has half of the risk.
    moves = WORLD.play(lambda state, g: pipeline(state, cost_limit=limit, risk=0.999, generator=g).actions)
    return evaluate(judged, moves), pure


@pytest.mark.slow
@pytest.mark.parametrize("limit", [5.0, 30.0, 80.0])
def test_without_feedback_every_limit_is_kept(pipeline, limit):
    values, pure = without_feedback(pipeline, limit)
    assert values.cost <= WORLD.threshold(limit) + pure.slack_cost


unused = pytest.mark.xfail(strict=True, reason="the safest policy acts, at a cost of 0: no other fits")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [5.0, pytest.param(30.0, marks=unused), pytest.param(80.0, marks=unused)])
def test_without_feedback_every_limit_is_used(pipeline, limit):
    values, pure = without_feedback(pipeline, limit)
    assert values.reward >= pure.within.reward - pure.slack_reward
