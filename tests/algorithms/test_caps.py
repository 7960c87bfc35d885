"""CAPS: its losses by hand, one update, and a constrained problem with a known optimum."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from algorithm_testbed import train
from circuit import GAMMA, JUMP, STEPS, circuit_moves, circuit_world
from constrained_mdp import constrained_optimum, deterministic_policies, evaluate, neighbours
from random_inputs import make_random, random_inputs, twin_values

from spi_diffusers.algorithms.caps import CAPS, expectile_loss, head_weights
from spi_diffusers.config.algorithm_settings import CAPSConfig
from spi_diffusers.pipelines import BaselinePolicyPipeline


def test_expectile_and_weights_by_hand():
    assert expectile_loss(torch.tensor([2.0, -2.0, 0.0]), 0.75).tolist() == [3.0, 1.0, 0.0]
    advantage = torch.tensor([[0.0, 9.0], [math.log(2.0), -9.0]])
    weights = head_weights(advantage, 1.0, 2.0, 3)  # e^9 is cut at 100; 2^2 = 4, e^-18
    assert weights[[0, 2]].flatten().tolist() == pytest.approx([1.0, 100.0, 4.0, math.exp(-18)])
    assert weights[1].tolist() == pytest.approx([1.0 + 4.0, 100.0])
    assert torch.equal(head_weights(advantage, 1.0, 2.0, 2), weights[[0, 2]])


def test_an_update_by_hand():
    caps = make_random(CAPS, CAPSConfig(hidden_dims=[4], gamma=0.5, reward_scale=2.0, num_heads=2))
    batch, noise = random_inputs(caps)
    modules = caps.modules()
    with torch.no_grad():
        values, following = (modules["values"](o) for o in (batch.observation, batch.next_observation))
        reward, cost = twin_values(modules["target_critics"], batch.observation, batch.action)
        advantage = (reward.amin(0) - values[0], values[1] - cost.amax(0))
        goes_on = (~batch.terminated).float()
        recorded = twin_values(modules["critics"], batch.observation, batch.action)
        signals = (2.0 * batch.reward, batch.cost)
        proposed = caps.actor(batch.observation)[0]
    expected = {}
    for i, name in enumerate(("reward", "cost")):
        u = advantage[i]
        expected[f"value/{name}_loss"] = (torch.where(u > 0, 0.7, 0.3) * u.square()).mean()
        errors = [(twin - (signals[i] + 0.5 * goes_on * following[i])).square() for twin in recorded[i]]
        expected[f"critic/{name}_loss"] = sum(errors).mean()
        weight = (3.0 * u).exp().clamp_max(100.0)
        expected[f"policy/{name}_loss"] = (
            weight * (proposed[:, i] - batch.action).square().sum(dim=1)
        ).mean()
    metrics = caps.learn(batch, noise)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4
    )


def test_fewer_than_two_heads_are_refused():
    with pytest.raises(ValueError, match="num_heads must be at least 2"):
        CAPSConfig(num_heads=1)


@pytest.mark.slow
def test_on_the_circuit_it_keeps_every_limit_and_earns_more_for_a_larger_one():
    """Its heads are the ends of what can be had, by exact evaluation, and the budget moves between them.

    At a limit that never binds it earns what the best of all policies does, and with no budget its cost is
    within the tightest limit, both by a quarter of the distance to the next deterministic policy. It need not
    earn much there: the safe head knows no reward, and standing still costs nothing. Nothing beats the linear
    program, by more than the one reward that an episode may be ahead.
    """
    world, episodes = circuit_world(), 60
    settings = {"caps.hidden_dims": [64, 64], "caps.gamma": GAMMA, "caps.reward_scale": 1.0}
    # The optimum is the theory's where imitation hardly counts, and values are those of the best action.
    settings |= {
        "caps.beta": 30.0,
        "caps.cost_beta": 30.0,
        "caps.expectile": 0.9,
        "caps.target_update_rate": 0.05,
    }
    made = train(world, "caps", {**settings, "caps.learning_rate": 1e-3}, updates=1500)
    pipe = BaselinePolicyPipeline(made.algorithm.actor, made.normalizer, max_episode_steps=STEPS)
    judged = world.started_as_the_data()
    pure = [evaluate(judged, policy) for policy in deterministic_policies(judged)]
    free, safe = (
        evaluate(judged, circuit_moves(pipe(world.observations, cost_budget=budget, steps_left=STEPS)))
        for budget in (1000.0, 0.0)
    )
    loose, tight = (neighbours(world.threshold(limit), pure) for limit in (80.0, 5.0))
    assert free.reward >= loose.within.reward - loose.slack_reward
    assert safe.cost <= world.threshold(5.0) + tight.slack_cost
    for_ever, earned = replace(world.mdp, gamma=0.999), []
    for limit in (5.0, 20.0, 40.0):
        controller, random = pipe.controller(limit, num_envs=episodes), np.random.default_rng(1)
        controller.reset()
        state, total = np.zeros(episodes, dtype=np.int64), np.zeros(2)
        for _ in range(STEPS):
            jump = circuit_moves(controller.act(world.observations[state]))[:, JUMP]
            move = (random.random(episodes) < jump).astype(np.int64)
            reward, cost = world.mdp.reward[state, move], world.mdp.cost[state, move]
            controller.observe(reward, cost)
            total += reward.mean(), cost.mean()
            state = world.mdp.next_state[state, move]
        assert total[1] <= limit + 2.0
        per_step = 1 - for_ever.gamma
        optimum = constrained_optimum(for_ever, total[1] / STEPS / per_step).reward * per_step * STEPS
        assert total[0] <= optimum + 1.0
        earned.append(total[0])
    assert earned[0] < earned[1] < earned[2]
