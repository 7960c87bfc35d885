"""BCQ-Lag and BEAR-Lag: their own losses by hand, and what they learn where the best action is known."""

import math

import pytest
import torch
from one_state_task import train
from random_inputs import assert_same_loss, make_random, random_inputs, twin_values

from spi_diffusers.algorithms import bcq_lag, bear_lag
from spi_diffusers.algorithms.bcq_lag import BCQLag, perturbation_loss
from spi_diffusers.algorithms.bear_lag import BEARLag, actor_loss, alpha_loss
from spi_diffusers.config.algorithm_settings import BCQLagConfig, BEARLagConfig

HIDDEN = {"hidden_dims": [32, 32], "vae_hidden_dim": 32, "critic_pairs": 1}
TINY = {"hidden_dims": [4], "vae_hidden_dim": 4, "critic_pairs": 1, "num_candidates": 3}
#: The multiplier is the violation itself.
VIOLATION = {"proportional": 1.0, "integral": 0.0, "derivative": 0.0}


def test_the_candidate_whose_values_count_by_hand():
    reward, cost = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[0.0, 9.0, 1.0]])

    def chosen(*arguments, **options):
        return [value.item() for value in bcq_lag.next_values(reward, cost, *arguments, **options)]

    assert chosen("reward", 0.0) == [3.0, 9.0]
    assert chosen("lagrangian", 1.0) == [1.0, 0.0]  # scores 1, -6, 1: the first of the best
    assert chosen("lagrangian", 0.1) == [3.0, 9.0]  # scores 1, 2.1, 1.9
    assert chosen("sample", 0.0) == [3.0, 0.0]
    assert chosen("lagrangian", 1.0, costliest=True) == [1.0, 9.0]
    assert chosen("sample", 0.0, costliest=True) == [3.0, 9.0]
    assert [v.item() for v in bear_lag.next_values(reward, cost)] == [3.0, pytest.approx(10 / 3)]
    assert [v.item() for v in bear_lag.next_values(reward, cost, costliest=True)] == [3.0, 9.0]


def test_losses_by_hand():
    reward, cost = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 5.0])
    assert perturbation_loss(reward, cost, 0.5, 2.0).item() == pytest.approx(0.5 * 1.0 - 3.0)
    discrepancy, log_alpha = torch.tensor([0.1, 0.3]), torch.tensor(math.log(2.0))
    loss = actor_loss(reward, cost, discrepancy, log_alpha, 0.5, 2.0, 0.05)
    assert loss.item() == pytest.approx(0.5 * 1.0 + 2.0 * 0.15 - 3.0)
    only_support = actor_loss(reward, cost, discrepancy, log_alpha, 0.0, 2.0, 0.05, reward_weight=0.0)
    assert only_support.item() == pytest.approx(0.3)
    assert alpha_loss(log_alpha, discrepancy, 0.05).item() == pytest.approx(-2.0 * 0.15)


def intercept_critic_targets(monkeypatch, critics):
    """Next values that the critics are to learn from are collected; the critics stay as they are."""
    targets = []

    def collect(_, *values):
        targets.extend(values)
        return torch.zeros(()), {}

    monkeypatch.setattr(critics, "loss", collect)
    monkeypatch.setattr(critics.learner, "step", lambda loss: None)
    return targets


def soft_clipped(twins, low=True):
    first, second = twins.sort(dim=0, descending=not low).values
    return 0.75 * first + 0.25 * second


@pytest.mark.parametrize(
    ("selection", "benchmark_targets"),
    [("reward", False), ("lagrangian", False), ("sample", False), ("reward", True), ("sample", True)],
)
def test_bcq_lags_multiplier_follows_the_cost_of_what_the_policy_does(
    monkeypatch, selection, benchmark_targets
):
    settings = {"max_perturbation": 0.5, "selection": selection, "benchmark_targets": benchmark_targets}
    bcq = make_random(BCQLag, BCQLagConfig(**TINY, **VIOLATION, **settings))
    batch, noise = random_inputs(bcq)
    bcq.lagrangian.multiplier.fill_(0.7)
    bcq.critics.threshold = -5.0  # low enough for a violation, whatever the random critics say
    monkeypatch.setattr(bcq._vae, "step", lambda loss: None)
    losses, targets = [], intercept_critic_targets(monkeypatch, bcq.critics)
    monkeypatch.setattr(bcq._perturbation, "step", losses.append)
    parts = bcq.modules()

    ended, acted_in = batch.terminated, batch.next_observation.clone()
    assert 0 < ended.sum() < len(ended)
    if not benchmark_targets:  # after an end, the policy acts in a start state next
        acted_in[ended] = batch.initial_observation[ended]
    with torch.no_grad():
        rewards, costs = [], []
        for latent in noise["next_latent"].clamp(-0.5, 0.5).unbind(dim=1):
            like_data = parts["vae"].decode(acted_in, latent)
            action = parts["target_perturbation"](acted_in, like_data)
            reward, cost = twin_values(parts["target_critics"], acted_in, action)
            rewards.append(soft_clipped(reward))
            costs.append(soft_clipped(cost, low=benchmark_targets))
        rewards, costs = torch.stack(rewards), torch.stack(costs)
        score = rewards - 0.7 * costs if selection == "lagrangian" else rewards
        best = score.argmax(dim=0), torch.arange(16)
        next_cost = costs[0] if selection == "sample" else costs[best]
    like_data = parts["vae"].decode(batch.observation, noise["latent"].clamp(-0.5, 0.5)).detach()
    action = parts["perturbation"](batch.observation, like_data)
    reward, cost = twin_values(parts["critics"], batch.observation, action)
    reward, cost = reward.amin(dim=0), cost.amin(dim=0) if benchmark_targets else cost.amax(dim=0)
    looked_at = cost if selection == "sample" or benchmark_targets else next_cost
    multiplier = looked_at.detach().mean() + 5.0
    loss = (multiplier * (cost + 5.0) - reward).mean()

    metrics = bcq.learn(batch, noise)
    torch.testing.assert_close(targets[0], rewards[best])
    torch.testing.assert_close(targets[1], costs.amax(dim=0) if benchmark_targets else next_cost)
    assert metrics["policy/cost_value"].item() == pytest.approx(multiplier.item() - 5.0, rel=1e-4)
    actor = bcq.policy_components()["actor"]
    for found in (metrics["policy/multiplier"], bcq.lagrangian.multiplier, actor.multiplier):
        torch.testing.assert_close(found, multiplier)
    assert_same_loss(losses[0], loss, parts["perturbation"])


@pytest.mark.parametrize("benchmark_targets", [False, True])
def test_bear_lags_update_by_hand(monkeypatch, benchmark_targets):
    settings = {"mmd_samples": 4, "mmd_sigma": 2.0, "mmd_threshold": 0.1, "alpha_optimizer": "sgd"}
    config = BEARLagConfig(**TINY, **VIOLATION, **settings, benchmark_targets=benchmark_targets)
    bear = make_random(BEARLag, config)
    batch, noise = random_inputs(bear)
    bear.critics.threshold = -5.0
    monkeypatch.setattr(bear._vae, "step", lambda loss: None)
    losses, targets = [], intercept_critic_targets(monkeypatch, bear.critics)
    monkeypatch.setattr(bear._actor, "step", losses.append)
    parts, alpha = bear.modules(), bear.log_alpha.value.exp().item()

    def drawn(actor, observation, name):
        mean, log_std = actor(observation)
        return [mean + log_std.exp() * normal for normal in noise[name].unbind(dim=1)]

    with torch.no_grad():
        values = [
            twin_values(parts["target_critics"], batch.next_observation, raw.tanh())
            for raw in drawn(parts["target_actor"], batch.next_observation, "next_action_noise")
        ]
        rewards = torch.stack([soft_clipped(reward) for reward, _ in values])
        costs = torch.stack([soft_clipped(cost, low=benchmark_targets) for _, cost in values])
        latents = noise["latent"].clamp(-0.5, 0.5).unbind(dim=1)
        like_data = [bear.vae.decode_raw(batch.observation, latent) for latent in latents]
    raw = drawn(bear.actor, batch.observation, "action_noise")

    def similarity(first, second):
        pairs = [torch.exp((x - y).square().sum(dim=1) / -4.0) for x in first for y in second]
        return sum(pairs) / len(pairs)

    squared = similarity(raw, raw) - 2 * similarity(raw, like_data) + similarity(like_data, like_data)
    discrepancy = (squared + 1e-6).sqrt()
    reward, cost = twin_values(parts["critics"], batch.observation, raw[0].tanh())
    reward, cost = reward.amin(dim=0), cost.amin(dim=0) if benchmark_targets else cost.amax(dim=0)
    multiplier = cost.detach().mean() + 5.0
    loss = (-reward + multiplier * (cost + 5.0) + alpha * (discrepancy - 0.1)).mean()

    metrics = bear.learn(batch, noise)
    torch.testing.assert_close(targets[0], rewards.amax(dim=0))
    torch.testing.assert_close(targets[1], costs.amax(dim=0) if benchmark_targets else costs.mean(dim=0))
    torch.testing.assert_close(metrics["policy/multiplier"], multiplier)
    assert_same_loss(losses[0], loss, bear.actor)
    climbed = math.log(alpha) + 1e-3 * alpha * (discrepancy.mean().item() - 0.1)
    assert bear.log_alpha.value.item() == pytest.approx(climbed, abs=1e-6)


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
    _, metrics = train(BEARLag, config, cost_limit=1.0, updates=150)
    assert metrics["policy/mmd"] < 0.15
