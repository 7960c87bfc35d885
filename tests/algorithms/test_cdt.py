"""CDT: targets, losses and windows by hand, one update, and a constrained problem with a known optimum."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from algorithm_testbed import train
from circuit import CAREFUL_EPISODES, HASTY_EPISODES, JUMP, STEPS, circuit_moves, circuit_world
from constrained_mdp import constrained_optimum

from spi_diffusers.algorithms.base import PolicySizes
from spi_diffusers.algorithms.cdt import CDT, Windows, frontier, gaussian_terms
from spi_diffusers.algorithms.networks import Compute
from spi_diffusers.config.algorithm_settings import CDTConfig
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.data.units import Units
from spi_diffusers.pipelines import BaselinePolicyPipeline
from spi_diffusers.training.build import build_normalizer, build_sampler

TINY = {"context": 3, "embedding_dim": 8, "num_layers": 1, "num_heads": 2}


def make_data():
    """Two episodes of 2 and 4 steps: rewards 1 to 6, costs 0 1 | 1 0 0 2."""
    ends = torch.tensor([False, True, False, False, False, True])
    observation = torch.arange(18.0).reshape(6, 3)
    return TransitionDataset.from_columns(
        {
            "observation": observation.numpy(),
            "next_observation": observation.numpy() + 1,
            "action": np.linspace(-1, 1, 12, dtype=np.float32).reshape(6, 2),
            "reward": np.arange(1, 7, dtype=np.float32),
            "cost": np.array([0, 1, 1, 0, 0, 2], dtype=np.float32),
            "terminated": ends.numpy(),
            "truncated": np.zeros(6, dtype=bool),
        }
    )


def make_cdt(**options):
    torch.manual_seed(0)
    data = make_data()
    sizes = PolicySizes(data.observation_dim, data.action_dim, 4, episodes=data.episodes)
    return CDT(CDTConfig(**{**TINY, **options}), sizes, Compute())


def draw(batch_size=64, **options):
    data = make_data()
    config = TrainConfig(
        dataset="memory",
        algorithm="cdt",
        cdt=CDTConfig(**{**TINY, **options}),
        batch_size=batch_size,
        mixed_precision="no",
    )
    return build_sampler(config, data, build_normalizer(data), Units()).draw()


def test_a_window_holds_the_steps_that_follow_and_what_is_to_come():
    windows = draw()
    assert isinstance(windows, Windows)
    assert windows.observation.shape == (64, 3, 3)
    # By the step of its first row and what is to come of the return.
    by_hand = {
        (0, 3.0): ([0, 1, 1], [3, 2, 2], [1, 1, 1], [True, True, False]),
        (1, 2.0): ([1, 1, 1], [2, 2, 2], [1, 1, 1], [True, False, False]),
        (0, 18.0): ([0, 1, 2], [18, 15, 11], [3, 2, 2], [True, True, True]),
        (1, 15.0): ([1, 2, 3], [15, 11, 6], [2, 2, 2], [True, True, True]),
        (2, 11.0): ([2, 3, 3], [11, 6, 6], [2, 2, 2], [True, True, False]),
        (3, 6.0): ([3, 3, 3], [6, 6, 6], [2, 2, 2], [True, False, False]),
    }
    seen = set()
    columns = (windows.step, windows.return_to_go, windows.cost_to_go, windows.valid)
    for row in zip(*columns, strict=True):
        first = (int(row[0][0]), float(row[1][0]))
        assert [column.tolist() for column in row] == list(map(list, by_hand[first]))
        seen.add(first)
    assert seen == set(by_hand)
    assert draw(context=1).valid.shape == (64, 1)


def test_the_target_return_is_the_best_within_the_limit():
    data = make_data()
    assert frontier(data.episodes) == ([1.0, 3.0], [3.0, 18.0])
    # Of equal costs the best counts, and what costs more without earning more is left out.
    episodes = replace(
        data.episodes,
        cost_return=torch.tensor([5.0, 5.0, 9.0, 2.0]),
        return_=torch.tensor([4.0, 7.0, 6.0, 1.0]),
    )
    assert frontier(episodes) == ([2.0, 5.0], [1.0, 7.0])
    actor = make_cdt().actor
    limits = torch.tensor([0.0, 1.0, 2.9, 3.0, 100.0])
    assert actor.target_return(limits).tolist() == [3.0, 3.0, 3.0, 18.0, 18.0]
    assert (actor.config.return_scale, actor.config.cost_scale) == (18.0, 3.0)


def test_the_terms_of_a_gaussian_by_hand():
    """N(0, 1) at 1, and N(1, e^2) at 1: log p is -1/2 - c and -1 - c, the entropies 1/2 + c and 3/2 + c."""
    mean, log_std = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    surprise, entropy = gaussian_terms(mean, log_std, torch.ones(1, 2))
    c = 0.5 * math.log(2 * math.pi)
    assert surprise.tolist() == [pytest.approx(0.75 + c)]
    assert entropy.tolist() == [pytest.approx(1 + c)]


@pytest.mark.parametrize("stochastic", [True, False])
def test_the_loss_counts_the_steps_that_are_there(stochastic):
    cdt, windows = make_cdt(stochastic=stochastic, dropout=0.0, cost_weight=0.5), draw(batch_size=8)
    with torch.no_grad():
        loss, entropy, _ = cdt.losses(windows)
        mean, log_std, costly = cdt.actor(
            *(
                getattr(windows, name)
                for name in ("observation", "action", "return_to_go", "cost_to_go", "step")
            )
        )
    policy, cost, count = 0.0, 0.0, 0
    for row, step in windows.valid.nonzero().tolist():
        action = windows.action[row, step]
        if stochastic:
            normal = torch.distributions.Normal(mean[row, step], log_std[row, step].exp())
            policy += (-normal.log_prob(action) - 0.1 * normal.entropy()).mean().item()
        else:
            policy += (mean[row, step] - action).square().mean().item()
        probability = costly[row, step].sigmoid().item()
        cost -= math.log(probability if windows.cost[row, step] > 0 else 1 - probability)
        count += 1
    assert 8 < count < 24
    assert loss.item() == pytest.approx((policy + 0.5 * cost) / count, rel=1e-5)
    assert (entropy is not None) == stochastic


def test_the_temperature_falls_while_actions_are_more_random_than_the_target():
    cdt, windows = make_cdt(temperature_learning_rate=0.5), draw()
    metrics, _ = cdt.update(windows, windows)
    assert metrics["policy/entropy"] > cdt.target_entropy == -2.0
    assert cdt.temperature.log.exp().item() == pytest.approx(0.1 * math.exp(-0.5), rel=1e-4)
    cdt.target_entropy = 10.0
    before = cdt.temperature.log.item()
    for _ in range(3):
        cdt._update_temperature(torch.tensor(1.0))
    assert cdt.temperature.log.item() > before - 0.5
    assert "temperature" not in make_cdt(stochastic=False).modules()


def test_dropout_follows_from_the_update_and_leaves_torchs_randomness_alone():
    windows, losses = draw(), []
    for updates in (1, 1, 2):
        cdt = make_cdt(dropout=0.5)
        cdt.updates, state = updates, torch.get_rng_state()
        losses.append(cdt.losses(windows)[0].item())
        assert torch.equal(torch.get_rng_state(), state)
    assert losses[0] == losses[1] != losses[2]


def test_a_bad_setting_is_refused():
    with pytest.raises(ValueError, match="num_heads must divide embedding_dim, got 3 and 8"):
        CDTConfig(embedding_dim=8, num_heads=3)


@pytest.mark.slow
def test_on_the_circuit_it_spends_the_limit_and_earns_what_the_data_earns_for_it():
    """Between the data's two behaviors it costs what it may, and lies on the line between them.

    Nothing beats the linear program of the mean reward for ever, by more than the one reward that an episode
    may be ahead.
    """
    world, episodes, number = circuit_world(), 60, HASTY_EPISODES
    settings = {"cdt.context": 5, "cdt.embedding_dim": 32, "cdt.num_layers": 1, "cdt.num_heads": 2}
    settings |= {"cdt.dropout": 0.0, "cdt.learning_rate": 2e-3, "cdt.max_grad_norm": 1.0}
    made = train(world, "cdt", settings, updates=300)
    pipe = BaselinePolicyPipeline(made.algorithm.actor, made.normalizer, max_episode_steps=STEPS)
    table = world.data.episodes
    assert len(table) == number + CAREFUL_EPISODES
    hasty, careful = (
        (float(table.cost_return[part].mean()), float(table.return_[part].mean()))
        for part in (slice(None, number), slice(number, None))
    )
    slope = (hasty[1] - careful[1]) / (hasty[0] - careful[0])
    for_ever = replace(world.mdp, gamma=0.999)
    for limit in (10.0, 20.0, 30.0):
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
        assert total[1] == pytest.approx(limit, abs=2.0)
        assert total[0] >= careful[1] + slope * (total[1] - careful[0]) - 1.0
        per_step = 1 - for_ever.gamma
        optimum = constrained_optimum(for_ever, total[1] / STEPS / per_step).reward * per_step * STEPS
        assert total[0] <= optimum + 1.0
