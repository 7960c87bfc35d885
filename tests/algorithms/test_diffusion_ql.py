"""Diffusion-QL: losses by hand, what an update changes, and how it acts."""

import copy
import dataclasses
import math

import pytest
import torch

from spi_diffusers.algorithms.base import Batch, BatchAndNoise, PolicySizes
from spi_diffusers.algorithms.diffusion_ql import DiffusionQL, timesteps, value_loss
from spi_diffusers.algorithms.networks import Compute
from spi_diffusers.config.algorithm_settings import DiffusionQLConfig

SIZES = PolicySizes(3, 2, 100, 10.0)


def make(**options):
    torch.manual_seed(0)
    return DiffusionQL(DiffusionQLConfig(hidden_dims=[16, 16], time_embed_dim=8, **options), SIZES, Compute())


def draw(config, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    observation, zeros = randn(size, 3), torch.zeros(size)
    ends = torch.zeros(size, dtype=torch.bool)
    batch = Batch(
        observation, randn(size, 3), randn(size, 2).tanh(), randn(size), zeros, ends, ends, observation
    )
    draws = DiffusionQL.draws(config, size, 2)
    return batch, {name: draw.sample(generator) for name, draw in draws.items()}


def weights(module):
    return torch.cat([value.flatten() for value in module.state_dict().values()]).clone()


def test_value_loss_by_hand_and_the_scale_gets_no_gradient():
    values = torch.tensor([[2.0, 4.0], [-1.0, 3.0]], requires_grad=True)
    loss = value_loss(values, twin=torch.tensor(0))
    loss.backward()
    assert loss.item() == pytest.approx(-(2.0 + 4.0) / 2 / 2.0)  # mean |Q_other| is 2
    torch.testing.assert_close(values.grad, torch.tensor([[-0.25, -0.25], [0.0, 0.0]]))


def test_timesteps_are_uniform():
    normal = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(timesteps(normal, 5), minlength=5) / len(normal)
    torch.testing.assert_close(counts, torch.full((5,), 0.2), atol=0.01, rtol=0)
    assert timesteps(torch.tensor([-40.0, 40.0]), 5).tolist() == [0, 4]


@pytest.mark.parametrize(("coin", "max_grad_norm"), [(1.0, 0.0), (-1.0, 0.0), (1.0, 0.05)])
def test_the_policys_step_is_adam_on_imitation_and_normalised_value(coin, max_grad_norm):
    ql = make(q_weight=0.7, learning_rate=1e-2, max_grad_norm=max_grad_norm)
    batch, noise = draw(ql.config)
    noise["twin"][0] = coin
    policy = copy.deepcopy(ql.modules()["noise_model"])
    metrics = ql.learn(batch, noise)

    step = (torch.distributions.Normal(0.0, 1.0).cdf(noise["timestep"]) * 5).long()
    kept = torch.tensor(
        [math.exp(-0.1 * (t + 1) / 5 - 0.5 * 9.9 * ((t + 1) / 5) ** 2) for t in step.tolist()]
    )
    noisy = kept.sqrt()[:, None] * batch.action + (1 - kept).sqrt()[:, None] * noise["noise"]
    imitation = (policy(noisy, step, batch.observation).sample - noise["noise"]).square().mean()
    chain = noise["chain"].transpose(0, 1)
    action = policy.denoise(batch.observation, None, ql.actor.coefficients, chain)
    # The critic as its own step of this update left it.
    scale, value = ql.actor.critic(batch.observation, action).values
    if coin < 0:
        scale, value = value, scale
    value = -value.mean() / scale.abs().mean().item()
    parameters = list(policy.parameters())
    (imitation + 0.7 * value).backward()
    norm = torch.cat([p.grad.flatten() for p in parameters]).norm().item()
    if max_grad_norm > 0:
        assert norm > 2 * max_grad_norm
        for parameter in parameters:
            parameter.grad *= max_grad_norm / norm
    assert metrics["policy/noise_loss"].item() == pytest.approx(imitation.item(), rel=1e-4)
    assert metrics["policy/guidance_loss"].item() == pytest.approx(value.item(), rel=1e-4)
    state = ql.optimizers()["noise_model"].state
    averages = [state[p]["exp_avg"] for p in ql.modules()["noise_model"].parameters()]
    torch.testing.assert_close(averages, [0.1 * p.grad for p in parameters], rtol=1e-3, atol=1e-7)
    torch.optim.Adam(parameters, lr=1e-2).step()
    torch.testing.assert_close(
        list(ql.modules()["noise_model"].parameters()), parameters, rtol=1e-3, atol=1e-5
    )


def test_the_policys_step_leaves_the_critic_alone():
    ql = make()
    batch, noise = draw(ql.config)
    before = weights(ql.actor.critic)
    policy = weights(ql.modules()["noise_model"])
    ql._policy.step(ql.policy_loss(batch, noise)[0])
    assert torch.equal(weights(ql.actor.critic), before)
    assert not torch.equal(weights(ql.modules()["noise_model"]), policy)
    assert all(parameter.grad is None for parameter in ql.actor.critic.parameters())


def test_the_critic_learns_from_the_lower_twin_of_the_target_unless_the_episode_has_ended():
    ql = make(gamma=0.5)
    batch, noise = draw(ql.config)
    ends = torch.arange(8) < 3
    batch = dataclasses.replace(batch, terminated=ends, truncated=torch.ones(8, dtype=torch.bool))
    with torch.no_grad():
        chain = noise["next_chain"].transpose(0, 1)
        action = ql.actor.noise_model.denoise(batch.next_observation, None, ql.actor.coefficients, chain)
        lower = ql.modules()["target_critic"](batch.next_observation, action).values.amin(dim=0)
        target = batch.reward + 0.5 * torch.where(ends, 0.0, lower)  # a time limit is no end
        values = ql.actor.critic(batch.observation, batch.action).values
        expected = (values - target).square().mean(dim=1).sum()
    metrics = ql.learn(batch, noise)
    assert metrics["critic/reward_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_average_starts_late_and_moves_every_few_updates():
    ql = make(ema_every=2, ema_start=5, ema_decay=0.9)
    seen = []
    for step in range(6):
        before = weights(ql.actor.noise_model)
        ql.update(BatchAndNoise(*draw(ql.config, seed=step)), None)
        trained, now = weights(ql.modules()["noise_model"]), weights(ql.actor.noise_model)
        copied = "copy" if torch.equal(now, trained) else "average"
        seen.append("same" if torch.equal(now, before) else copied)
    assert seen == ["same", "copy", "same", "copy", "same", "average"]
    torch.testing.assert_close(now, 0.9 * before + 0.1 * trained)


def test_it_finds_the_action_with_the_highest_reward():
    """One state, reward -(a - 0.5)^2, actions in the data uniform: more often near 0.5 than the data."""
    ql = make(gamma=0.0, learning_rate=5e-3, ema_start=10**6, ema_every=1)
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        batch, noise = draw(ql.config, seed=step, size=64)
        action = torch.rand(64, 2, generator=generator) * 2 - 1
        reward = -(action - 0.5).square().sum(dim=1)
        zeros = torch.zeros(64, 3)
        same = dict.fromkeys(("observation", "next_observation", "initial_observation"), zeros)
        ql.learn(dataclasses.replace(batch, action=action, reward=reward, **same), noise)
    played = ql.actor.act(torch.zeros(200, 3), torch.Generator().manual_seed(1))
    assert (played - 0.5).abs().mean() < 0.3  # 0.625 for actions of the data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.0}, "gamma must be a number in"),
        ({"ema_every": 0}, "ema_every must be a whole number of at least 1"),
        ({"activation": "step"}, "activation must be"),
        ({"beta_min": 2.0, "beta_max": 1.0}, "needs beta_min < beta_max"),
        ({"num_candidates": 0}, "num_candidates must be a whole number of at least 1"),
    ],
)
def test_config_refuses_what_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        DiffusionQLConfig(**changes)
