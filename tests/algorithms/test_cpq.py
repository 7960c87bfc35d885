"""CPQ: its losses by hand, and what it learns where the best action is known."""

import math

import pytest
import torch
from one_state_task import train
from random_inputs import assert_same_loss, make_random, random_inputs, twin_values
from torch.distributions import Normal, kl_divergence

from spi_diffusers.algorithms.base import PolicySizes
from spi_diffusers.algorithms.cpq import CPQ, constrained_value, ood_penalty, outside_data
from spi_diffusers.algorithms.networks import Compute
from spi_diffusers.config.algorithm_settings import CPQConfig


def test_values_and_penalty_by_hand():
    reward, cost = torch.tensor([2.0, 4.0, -1.0]), torch.tensor([1.0, 3.0, 2.0])
    assert constrained_value(reward, cost, 2.0).tolist() == [2.0, 0.0, -1.0]
    values = torch.tensor([[[1.0, 3.0], [0.0, 2.0]]])  # means 2 and 1
    assert ood_penalty(values, 0.5, 4.0).item() == pytest.approx(-0.5 * (-2.0 - 3.0))
    assert ood_penalty(values, 0.5, 1.5).item() == pytest.approx(-0.5 * (0.0 - 0.5))  # 2 is above already


def test_actions_that_diverge_more_than_recorded_ones_are_outside_the_data():
    recorded = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])  # its median is 0.2
    divergence = torch.tensor([0.1, 0.9, 0.2, 0.21, 0.0])
    assert outside_data(divergence, recorded, 0.5).tolist() == [1, 3]
    assert outside_data(divergence, recorded, 1.0).tolist() == [1]
    assert outside_data(recorded, recorded, 1.0).tolist() == []


@pytest.mark.parametrize("benchmark_targets", [False, True])
def test_an_update_backs_up_and_climbs_the_reward_only_within_the_threshold(monkeypatch, benchmark_targets):
    settings = {"gamma": 0.5, "reward_scale": 2.0, "benchmark_targets": benchmark_targets}
    cpq = make_random(CPQ, CPQConfig(hidden_dims=[4], **settings))
    batch, noise = random_inputs(cpq)

    def drawn(observation, name):
        mean, log_std = cpq.actor(observation)
        return torch.tanh(mean + log_std.exp() * noise[name][:, 0])

    def worst(cost):
        return cost.amin(dim=0) if benchmark_targets else cost.amax(dim=0)

    with torch.no_grad():
        action = drawn(batch.next_observation, "next_action_noise")
        reward, cost = twin_values(cpq.modules()["target_critics"], batch.next_observation, action)
        cpq.critics.threshold = worst(cost).sort().values[7:9].mean().item()
        kept = (worst(cost) < cpq.critics.threshold).float()
        assert kept.sum() == 8
        goes_on = (~batch.terminated).float()
        reward_goes_on, cost_goes_on = goes_on, goes_on
        if benchmark_targets:
            reward_goes_on, cost_goes_on = goes_on * (~batch.truncated).float(), torch.ones(16)
        targets = {
            "reward": 2.0 * batch.reward + 0.5 * reward_goes_on * kept * reward.amin(dim=0),
            "cost": batch.cost + 0.5 * cost_goes_on * worst(cost),
        }
        recorded = twin_values(cpq.modules()["critics"], batch.observation, batch.action)
    losses = []
    monkeypatch.setattr(cpq._actor, "step", losses.append)
    metrics = cpq.learn(batch, noise)
    for (name, target), (first, second) in zip(targets.items(), recorded, strict=True):
        expected = (first - target).square().mean() + (second - target).square().mean()
        assert metrics[f"critic/{name}_loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    # The critics have made their step, the policy has not.
    action = drawn(batch.observation, "action_noise")
    reward, cost = twin_values(cpq.modules()["critics"], batch.observation, action)
    kept = (worst(cost) <= cpq.critics.threshold).float()
    assert 0 < kept.mean() < 1
    assert_same_loss(losses[0], -(kept * reward.amin(dim=0)).mean(), cpq.actor)
    assert metrics["policy/share_within"] == kept.mean()


@pytest.mark.parametrize("lack", [0.5, -0.5])
def test_alpha_rises_while_actions_outside_the_data_cost_less_than_they_should(monkeypatch, lack):
    settings = {"ood_penalty": True, "ood_quantile": 0.5, "ood_cost_scale": 1.5, "alpha_learning_rate": 0.1}
    config = CPQConfig(hidden_dims=[4], vae_hidden_dim=4, num_candidates=3, **settings)
    cpq = make_random(CPQ, config)
    batch, noise = random_inputs(cpq)
    cpq.log_alpha.value.data.fill_(0.3)
    vae, critics = cpq.modules()["vae"], cpq.modules()["critics"]

    def divergence(action):
        mean, log_std = vae.encode(batch.observation, action)
        return kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).mean(dim=1)

    bound = divergence(batch.action).sort().values[7:9].mean()  # the median of 16
    mean, log_std = cpq.actor(batch.observation)
    outside = []
    for index in range(3):
        action = torch.tanh(mean + log_std.exp() * noise["tested_action_noise"][:, index])
        _, cost = twin_values(critics, batch.observation, action)
        outside.append(cost[:, divergence(action) > bound])
    first, second = torch.cat(outside, dim=1).mean(dim=1).tolist()
    share = sum(cost.shape[1] for cost in outside) / 48
    assert 0 < share < 1
    wanted = (first + second) / 2 + lack
    cpq.critics.threshold = wanted / 1.5

    losses = []
    monkeypatch.setattr(cpq._vae, "step", lambda loss: None)
    monkeypatch.setattr(cpq.critics.learner, "step", losses.append)
    metrics = cpq.learn(batch, noise)
    assert metrics["critic/ood_share"].item() == pytest.approx(share)
    assert metrics["critic/ood_cost_value"].item() == pytest.approx(wanted - lack, rel=1e-4)
    assert cpq.log_alpha.value.item() == pytest.approx(0.3 + 0.1 * math.exp(0.3) * lack, rel=1e-4)
    # The penalty has the weight from before that step.
    penalty = losses[0] - metrics["critic/reward_loss"] - metrics["critic/cost_loss"]
    missing = max(wanted - first, 0.0) + max(wanted - second, 0.0)
    assert penalty.item() == pytest.approx(math.exp(0.3) * missing, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("penalty", [False, True])
def test_cpq_climbs_the_reward_and_sees_where_it_breaks_the_limit(penalty):
    config = CPQConfig(
        hidden_dims=[32, 32],
        vae_hidden_dim=32,
        gamma=0.0,
        reward_scale=1.0,
        learning_rate=3e-3,
        actor_learning_rate=3e-4,
        ood_penalty=penalty,
    )
    free, metrics = train(CPQ, config, cost_limit=1.2, updates=300)
    assert free.mean() > 0.4
    if penalty:
        # Actions outside the data are learned to cost one and a half times the limit, not hundreds.
        assert 1.2 < metrics["critic/ood_cost_value"] < 2.4
        assert 0 <= metrics["critic/ood_share"] <= 1
    # The costly action breaks a lower limit. CPQ climbs up to there all the same, and has no gradient beyond.
    _, metrics = train(CPQ, config, cost_limit=0.3, updates=300)
    assert metrics["policy/cost_value"] > 0.3
    assert metrics["policy/share_within"] < 0.1


def test_without_the_penalty_there_is_no_vae():
    sizes = PolicySizes(2, 1, 1, 1.0)
    with_it, without = (CPQ(CPQConfig(ood_penalty=penalty), sizes, Compute()) for penalty in (True, False))
    assert with_it.modules().keys() - without.modules().keys() == {"vae", "log_alpha"}
    assert with_it.optimizers().keys() - without.optimizers().keys() == {"vae"}
    draws = [CPQ.draws(cpq.config, 8, 1).keys() for cpq in (with_it, without)]
    assert draws[0] - draws[1] == {"encoding", "tested_action_noise"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ood_quantile": 1.5}, "ood_quantile must be a number in"),
        ({"actor_learning_rate": 0.0}, "actor_learning_rate must be a positive number"),
        ({"hidden_dims": []}, "hidden_dims must be"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        CPQConfig(**settings)
