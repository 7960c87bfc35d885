"""Every algorithm in the 3 x 3 Pixel world: from the start to the goal or into the trap, as theory says."""

import numpy as np
import pytest
import torch
from algorithm_testbed import Trained, World, train
from constrained_mdp import ConstrainedMDP, Values, evaluate
from pixel_world_data import collect_pixel_world

from spi_diffusers.envs.pixel_world import move_of, transition_table, white_policy

COLUMNS, GAMMA = 3, 0.9
MOSTLY_RANDOM = ("white", "safe", "random", "random")
#: Cost limit per episode of 30 steps. Falling is worth 1 at the brink; a rate of 1 / 30 allows only a third.
LIMIT = 1.0

NETWORK = {"hidden_dims": [64, 64], "gamma": GAMMA, "target_update_rate": 0.05}
CONSTRAINED = {**NETWORK, "vae_hidden_dim": 64, "reward_scale": 1.0, "critic_pairs": 1, "num_candidates": 20}
LAGRANGIAN = {**CONSTRAINED, "latent_clip": 3.0}
#: Settings of each algorithm that learns values, by the name of its group in `TrainConfig`.
SETTINGS = {
    "diffusion-ql": (
        "diffusion_ql",
        {**NETWORK, "q_weight": 10.0, "learning_rate": 1e-3, "activation": "silu"},
    ),
    "bcq-lag": ("bcq_lag", {**LAGRANGIAN, "selection": "lagrangian"}),
    "bear-lag": ("bear_lag", {**LAGRANGIAN, "mmd_sigma": 20.0, "mmd_threshold": 0.5}),
    "cpq": ("cpq", {**CONSTRAINED, "actor_learning_rate": 3e-4}),
    "coptidice": (
        "coptidice",
        {
            "hidden_dims": [64, 64],
            "gamma": GAMMA,
            "alpha": 0.02,
            "reward_scale": 1.0,
            "learning_rate": 1e-3,
            "actor_learning_rate": 1e-3,
        },
    ),
}


def pixel_moves(actions: np.ndarray) -> np.ndarray:
    """Moves of actions (N, 2) as probabilities, (N, 4)."""
    return np.eye(4)[[move_of(action) for action in actions]]


def pixel_world(*behaviours: str, episodes: int) -> World:
    table = transition_table(COLUMNS)
    start = np.eye(len(table.reward))[table.start]
    mdp = ConstrainedMDP(table.next_state, table.reward, table.cost, table.terminated, start, GAMMA)
    data = collect_pixel_world(COLUMNS, episodes, seed=0, behaviors=behaviours, max_episode_steps=30)
    return World(mdp, table.observations(), pixel_moves, data)


def trained(world: World, algorithm: str, cost_limit: float, updates: int) -> Trained:
    group, settings = SETTINGS[algorithm]
    named = {f"{group}.{name}": value for name, value in settings.items()}
    return train(world, algorithm, named, updates=updates, cost_limit=cost_limit)


def assert_at_the_goal(values: Values) -> None:
    """At most one move in two episodes is wasted, and at most one episode in twenty ends in the trap."""
    shortest = GAMMA ** (COLUMNS - 2)  # the goal is entered at step index n - 2
    assert values.reward >= shortest * (1 + GAMMA) / 2
    assert values.cost <= GAMMA**COLUMNS / 20


@pytest.mark.parametrize(("algorithm", "falls"), [("bc", True), ("bc-safe", False)])
def test_cloning_follows_the_majority_of_what_it_may_imitate(algorithm, falls):
    """Two episodes of three walk into the trap; of the episodes that cost nothing none does."""
    world = pixel_world("white", "white", "safe", episodes=60)
    made = train(world, algorithm, {"bc.hidden_dims": [64, 64]}, updates=500, cost_limit=0.0)
    values = evaluate(world.mdp, world.play(made.act))
    if falls:
        assert (values.reward, values.cost) == pytest.approx((0.0, GAMMA**COLUMNS))
        assert evaluate(world.mdp, white_policy(COLUMNS)).cost == pytest.approx(values.cost)
    else:
        assert (values.reward, values.cost) == pytest.approx((GAMMA ** (COLUMNS - 2), 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", list(SETTINGS))
def test_learning_values_leads_to_the_goal_though_most_of_the_data_does_not(algorithm):
    """The trap earns nothing, so even a algorithm without a cost avoids it."""
    world = pixel_world(*MOSTLY_RANDOM, episodes=200)
    made = trained(world, algorithm, LIMIT, updates=1200)
    assert_at_the_goal(evaluate(world.mdp, world.play(made.act)))


@pytest.mark.slow
def test_cpq_sees_that_a_limit_of_every_step_cannot_be_broken():
    """An episode costs 1 at most, and 10 is allowed; so whatever the policy does is within."""
    world = pixel_world(*MOSTLY_RANDOM, episodes=200)
    made = trained(world, "cpq", 30.0, updates=800)
    observation = torch.from_numpy(world.observations)[~world.mdp.terminated.all(axis=1)]
    critics = made.algorithm.critics
    assert critics.threshold == pytest.approx(10.0)
    _, cost = critics.policy_values(made.normalizer(observation), made.act(observation, torch.Generator()))
    assert cost.max() <= critics.threshold


@pytest.mark.slow
def test_spi_extracts_the_way_to_the_goal():
    world = pixel_world(*MOSTLY_RANDOM, episodes=200)
    settings = {
        "spi.gamma": GAMMA,
        "spi.eta": 0.1,
        "spi.target_update_rate": 0.05,
        "spi.ema_decay": 0.99,
        "spi.imitation_share": 0.25,
        "network.hidden_dims": [64, 64],
        "learning_rate": 3e-3,
        "lr_schedule": "cosine",
    }
    pipeline = train(world, "spi", settings, updates=1500).spi_pipeline(world)
    table = world.play(lambda observation, g: pipeline(observation, cost_limit=LIMIT, generator=g).actions)
    assert_at_the_goal(evaluate(world.mdp, table))
