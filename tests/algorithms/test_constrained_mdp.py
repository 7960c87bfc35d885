"""The exact side of the testbed: linear program, evaluation and tolerances, against independent answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from circuit import CAREFUL_EPISODES, FORKS, GAMMA, JUMP, STEPS, WALK, circuit, circuit_moves, circuit_world
from constrained_mdp import (
    ConstrainedMDP,
    constrained_optimum,
    deterministic_policies,
    episode_sums,
    evaluate,
    frontier,
    neighbours,
    value_iteration,
)

from spi_diffusers.envs.pixel_world import transition_table, white_policy


def one_state() -> ConstrainedMDP:
    """One state for ever: the first move earns 1, the second earns 3 and costs 2."""
    stay, never = np.zeros((1, 2), dtype=np.int64), np.zeros((1, 2), dtype=bool)
    return ConstrainedMDP(stay, np.array([[1.0, 3.0]]), np.array([[0.0, 2.0]]), never, np.ones(1), 0.5)


def random_mdp(seed: int) -> ConstrainedMDP:
    generator = np.random.default_rng(seed)
    shape = (5, 3)
    return ConstrainedMDP(
        generator.integers(5, size=shape),
        generator.random(shape),
        generator.random(shape) * (generator.random(shape) < 0.5),
        generator.random(shape) < 0.1,
        generator.dirichlet(np.ones(5)),
        0.8,
    )


def test_the_program_by_hand():
    """1 / (1 - gamma) = 2 steps count. Cost 1 allows the costly move in a quarter of them."""
    free = constrained_optimum(one_state())
    assert (free.reward, free.cost) == pytest.approx((6.0, 4.0))
    bound = constrained_optimum(one_state(), 1.0)
    assert (bound.reward, bound.cost) == pytest.approx((2 * (0.75 * 1 + 0.25 * 3), 1.0))
    assert bound.policy[0] == pytest.approx([0.75, 0.25])
    assert constrained_optimum(one_state(), 0.0).reward == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no policy keeps"):
        constrained_optimum(replace(one_state(), cost=np.array([[1.0, 2.0]])), 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_without_a_limit_it_is_value_iteration(seed):
    mdp = random_mdp(seed)
    assert constrained_optimum(mdp).reward == pytest.approx(mdp.start @ value_iteration(mdp))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_upper_hull_of_the_deterministic_policies(seed):
    """A random policy at the start may pick one of them for good, so the optimum is the best mix of two."""
    mdp = random_mdp(seed)
    points = [evaluate(mdp, policy) for policy in deterministic_policies(mdp)]
    reward, cost = (np.array([getattr(p, name) for p in points]) for name in ("reward", "cost"))
    hull = frontier(points)
    assert constrained_optimum(mdp).reward == pytest.approx(hull[-1].reward)
    for threshold in np.linspace(cost.min(), hull[-1].cost, 7)[1:-1]:
        low, high = cost <= threshold, cost > threshold
        share = (threshold - cost[low][:, None]) / (cost[high] - cost[low][:, None])
        mixed = reward[low][:, None] * (1 - share) + reward[high] * share
        best = max(mixed.max(), reward[low].max())
        assert constrained_optimum(mdp, threshold).reward == pytest.approx(best)
        on_hull = np.interp(threshold, [values.cost for values in hull], [values.reward for values in hull])
        assert on_hull == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
def test_more_may_be_spent_more_is_earned_and_each_bit_earns_less(seed):
    mdp = random_mdp(seed)
    dearest = constrained_optimum(mdp).cost
    least = min(evaluate(mdp, policy).cost for policy in deterministic_policies(mdp))
    optima = [constrained_optimum(mdp, t) for t in np.linspace(least + 1e-6, dearest, 8)]
    rewards = np.array([optimum.reward for optimum in optima])
    assert (np.diff(rewards) >= -1e-9).all()
    assert (np.diff(rewards, n=2) <= 1e-9).all()
    assert all(o.cost <= t + 1e-6 for o, t in zip(optima, np.linspace(least + 1e-6, dearest, 8), strict=True))


def test_evaluation_agrees_with_the_pixel_worlds_own():
    world = transition_table(4)
    start = np.eye(len(world.reward))[world.start]
    mdp = ConstrainedMDP(world.next_state, world.reward, world.cost, world.terminated, start, GAMMA)
    values = evaluate(mdp, white_policy(4))
    assert values.cost == pytest.approx(GAMMA**4)
    assert constrained_optimum(mdp, 0.0).reward == pytest.approx(GAMMA**2)  # three moves to the goal
    shared = 0.5 * white_policy(4) + 0.125
    expected = (shared * world.action_values(shared, world.cost, GAMMA)).sum(axis=1)
    running = ~world.terminated.all(axis=1)
    assert evaluate(mdp, shared).state_cost[running] == pytest.approx(expected[running])


def test_the_circuits_trade_off_by_hand():
    """From state 0: laps of six steps for nothing, of four with one shortcut, of three with both."""
    mdp = replace(circuit(), start=np.eye(6)[0])
    walk = np.tile(np.eye(2)[WALK], (6, 1))
    one, both = walk.copy(), walk.copy()
    one[3], both[FORKS] = np.eye(2)[JUMP], np.eye(2)[JUMP]
    laps = [evaluate(mdp, policy) for policy in (walk, one, both)]
    rewards = [GAMMA ** (n - 1) / (1 - GAMMA**n) for n in (6, 4, 3)]
    assert [values.reward for values in laps] == pytest.approx(rewards)
    costs = [0.0, GAMMA**3 / (1 - GAMMA**4), (1 + GAMMA**2) / (1 - GAMMA**3)]
    assert [values.cost for values in laps] == pytest.approx(costs)
    assert constrained_optimum(mdp).reward == pytest.approx(rewards[-1])
    assert constrained_optimum(mdp, 0.0).reward == pytest.approx(rewards[0])
    sums = [episode_sums(mdp, policy, 12) for policy in (walk, one, both)]
    assert [(values.reward, values.cost) for values in sums] == [(2, 0), (3, 3), (4, 8)]


def test_the_neighbours_of_a_limit_and_what_may_be_off():
    mdp = circuit_world().started_as_the_data()
    points = [evaluate(mdp, policy) for policy in deterministic_policies(mdp)]
    found = neighbours(3.0, points)
    assert found.within.policy[FORKS, JUMP].tolist() == [0, 1]
    assert found.beyond.policy[FORKS, JUMP].tolist() == [1, 1]
    assert found.slack_cost == pytest.approx((found.beyond.cost - 3.0) / 4)
    best = constrained_optimum(mdp, 3.0)
    assert found.within.reward + 4 * found.slack_reward > best.reward > found.within.reward
    assert neighbours(8.0, points).beyond is None
    assert [values.policy[FORKS, JUMP].tolist() for values in frontier(points)] == [[0, 0], [0, 1], [1, 1]]


def test_the_data_covers_everything_and_its_states_are_known():
    world = circuit_world()
    rows = world.data.transitions
    assert (world.data.episodes.length == STEPS).all()
    states = world.states_of(rows.observation)
    assert np.array_equal(np.eye(6)[states], rows.observation.numpy())
    quarters = np.digitize(rows.action.numpy()[:, 0], [-0.5, 0.0, 0.5])
    counts = np.zeros((6, 4))
    np.add.at(counts, (states, quarters), 1)
    assert counts.min() > 100
    within = world.data.episodes.cost_return <= 30
    assert CAREFUL_EPISODES <= int(within.sum()) < CAREFUL_EPISODES + 30


def test_a_policys_table_comes_from_its_actions():
    world = circuit_world()
    assert circuit_moves(np.array([[-1.0], [0.0], [0.4], [0.9]])).tolist() == [
        [1, 0],
        [0.5, 0.5],
        [0.25, 0.75],
        [0, 1],
    ]

    def uniform(observation, generator):
        return torch.rand(len(observation), 1, generator=generator) * 2 - 1

    assert world.play(uniform)[:, JUMP] == pytest.approx(0.5, abs=0.1)
