"""BCQ-Lag and BEAR-Lag: their own losses by hand, and what they learn where the best action is known."""

import math

import pytest
import torch
from one_state_task import train

from spi_diffusers.algorithms import bcq_lag, bear_lag
from spi_diffusers.algorithms.bcq_lag import BCQLag, perturbation_loss
from spi_diffusers.algorithms.bcq_lag_config import BCQLagConfig
from spi_diffusers.algorithms.bear_lag import BEARLag, actor_loss, alpha_loss
from spi_diffusers.algorithms.bear_lag_config import BEARLagConfig

HIDDEN = {"hidden_dims": [32, 32], "vae_hidden_dim": 32, "critic_pairs": 1}


def test_the_candidate_whose_values_count_by_hand():
    reward, cost = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[0.0, 9.0, 1.0]])

    def chosen(*arguments, **options):
        return [value.item() for value in bcq_lag.next_values(reward, cost, *arguments, **options)]

    assert chosen("reward", 0.0) == [3.0, 9.0]
    assert chosen("lagrangian", 1.0) == [1.0, 0.0]  # scores 1, -6, 1: the first of the best
    assert chosen("lagrangian", 0.1) == [3.0, 9.0]  # scores 1, 2.1, 1.9
    assert chosen("sample", 0.0) == [3.0, 0.0]
    assert chosen("reward", 0.0, costliest=True) == [3.0, 9.0]
    assert [v.item() for v in bear_lag.next_values(reward, cost)] == [3.0, pytest.approx(10 / 3)]


def test_losses_by_hand():
    reward, cost = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 5.0])
    assert perturbation_loss(reward, cost, 0.5, 2.0).item() == pytest.approx(0.5 * 1.0 - 3.0)
    discrepancy, log_alpha = torch.tensor([0.1, 0.3]), torch.tensor(math.log(2.0))
    loss = actor_loss(reward, cost, discrepancy, log_alpha, 0.5, 2.0, 0.05)
    assert loss.item() == pytest.approx(0.5 * 1.0 + 2.0 * 0.15 - 3.0)
    only_support = actor_loss(reward, cost, discrepancy, log_alpha, 0.0, 2.0, 0.05, reward_weight=0.0)
    assert only_support.item() == pytest.approx(0.3)
    assert alpha_loss(log_alpha, discrepancy, 0.05).item() == pytest.approx(-2.0 * 0.15)


def test_bcq_lag_takes_the_costly_action_only_where_it_may():
    settings = {**HIDDEN, "gamma": 0.0, "reward_scale": 1.0, "learning_rate": 3e-3, "selection": "lagrangian"}
    settings |= {"latent_clip": 3.0, "proportional": 1.0, "integral": 0.05}
    free, metrics = train(BCQLag, BCQLagConfig(**settings), cost_limit=1.0)
    assert free.mean() > 0.4
    assert metrics["policy/multiplier"] < 0.1
    bound, metrics = train(BCQLag, BCQLagConfig(**settings), cost_limit=0.0)
    assert (bound > 0).float().mean() < 0.1
    assert metrics["policy/multiplier"] > 0.5


def test_bear_lag_takes_the_costly_action_only_where_it_may():
    settings = {**HIDDEN, "gamma": 0.0, "reward_scale": 1.0, "learning_rate": 3e-3, "mmd_threshold": 0.5}
    settings |= {"proportional": 1.0, "integral": 0.05, "mmd_sigma": 5.0}
    free, _ = train(BEARLag, BEARLagConfig(**settings), cost_limit=1.0)
    assert free.mean() > 0.3
    bound, metrics = train(BEARLag, BEARLagConfig(**settings), cost_limit=0.0)
    assert bound.mean() < 0.05
    assert metrics["policy/multiplier"] > 0.5


def test_bear_stays_near_the_data_until_it_may_climb():
    config = BEARLagConfig(**HIDDEN, support_updates=10**6, learning_rate=3e-3, gamma=0.0, latent_clip=3.0)
    _, metrics = train(BEARLag, config, cost_limit=1.0, updates=300)
    assert metrics["policy/mmd"] < 0.15
