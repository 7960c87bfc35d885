"""Every loss of SPI against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from spi_diffusers.algorithms.losses import (
    add_noise,
    noise_loss,
    one_step_action,
    td_loss,
    td_target,
    value_scale,
    vp_betas,
)
from spi_diffusers.algorithms.spi import guidance_loss, make_scheduler, remap_cost
from spi_diffusers.config.algorithm_settings import SPIConfig


def assert_values(actual, expected):
    torch.testing.assert_close(actual, tensor(expected, dtype=actual.dtype))


# ---- noise schedule


def test_vp_schedule_of_five_steps():
    # -log alpha_t = 0.1/5 + 9.9 (2t - 1)/50 = 0.218, 0.614, 1.01, 1.406, 1.802; summed up:
    # 0.218, 0.832, 1.842, 3.248, 5.05.
    assert vp_betas(5) == pytest.approx([0.195875, 0.458818, 0.635781, 0.754878, 0.835032], abs=1e-6)
    alpha_bars = make_scheduler(SPIConfig()).alphas_cumprod
    expected = [0.804125, 0.435178, 0.158500, 0.038852, 0.006409]
    torch.testing.assert_close(alpha_bars, tensor(expected), atol=1e-6, rtol=0)


@given(st.integers(1, 100))
def test_the_end_of_the_chain_does_not_depend_on_the_number_of_steps(steps):
    # The sum over (2t - 1) is T^2, so alpha-bar_T = exp(-0.1 - 4.95) = 0.0064 for every T.
    assert math.prod(1 - beta for beta in vp_betas(steps)) == pytest.approx(math.exp(-5.05))


def test_the_scheduler_is_the_one_a_policy_ships_with():
    config = make_scheduler(SPIConfig(num_train_timesteps=7, beta_min=0.2, beta_max=8.0)).config
    assert (config.num_train_timesteps, config.prediction_type) == (7, "epsilon")
    assert (config.variance_type, config.clip_sample, config.clip_sample_range) == ("fixed_small", True, 1.0)
    assert list(config.trained_betas) == pytest.approx(vp_betas(7, 0.2, 8.0))


# ---- Eq. 4


@pytest.mark.parametrize(
    ("kind", "expected"), [("clip", [1.0, 0.75, 0.0, 0.0]), ("indicator", [1.0, 0.0, 0.0, 0.0])]
)
def test_remapped_cost_by_hand(kind, expected):
    assert_values(remap_cost(tensor([0.0, 0.25, 1.0, 5.0]), kind), expected)


@given(
    st.sampled_from(["clip", "indicator"]),
    st.lists(st.floats(0, 1e6, width=32), min_size=2, max_size=20),
)
def test_remapped_cost_lies_in_the_unit_interval_and_falls_with_the_cost(kind, costs):
    remapped = remap_cost(tensor(sorted(costs)), kind)
    assert ((remapped >= 0) & (remapped <= 1)).all()
    assert (remapped.diff() <= 0).all()


# ---- Eq. 10, 11


def test_td_target_by_hand():
    target = td_target(tensor([1.0, 2.0, 3.0]), tensor([10.0, 20.0, 30.0]), tensor([False, True, False]), 0.9)
    assert_values(target, [10.0, 2.0, 30.0])


@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.booleans()), min_size=1, max_size=20),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30, 0.0]),
    st.floats(0, 0.999),
)
def test_td_target_never_bootstraps_where_terminated(rows, value_after_the_end, gamma):
    signal, terminated = tensor([row[0] for row in rows]), tensor([row[1] for row in rows])
    next_value = torch.where(terminated, value_after_the_end, 2.0)
    target = td_target(signal, next_value, terminated, gamma)
    assert torch.equal(target[terminated], signal[terminated])
    torch.testing.assert_close(target[~terminated], signal[~terminated] + gamma * 2.0)


def test_td_loss_by_hand():
    # Twin 0 misses by 1 and 3: (1 + 9)/2 = 5. Twin 1 misses by 0 and 2: (0 + 4)/2 = 2.
    assert td_loss(tensor([[2.0, 5.0], [1.0, 4.0]]), tensor([1.0, 2.0])).item() == 7.0


def test_each_twins_gradient_is_its_own():
    values = tensor([[2.0, 5.0], [1.0, 4.0]], requires_grad=True)
    td_loss(values, tensor([1.0, 2.0])).backward()
    assert_values(values.grad, [[1.0, 3.0], [0.0, 2.0]])  # 2 (value - target) / B


# ---- Eq. 7, 9


def test_add_noise_by_hand():
    # sqrt(0.64) = 0.8 and sqrt(0.36) = 0.6.
    noisy = add_noise(tensor([[0.5, -1.0]]), tensor([[1.0, 2.0]]), tensor([[0.64]]))
    assert_values(noisy, [[1.0, 0.4]])


def test_add_noise_is_the_schedulers():
    scheduler = make_scheduler(SPIConfig())
    action, noise, timestep = torch.rand(5, 2), torch.randn(5, 2), torch.arange(5)
    noisy = add_noise(action, noise, scheduler.alphas_cumprod[timestep].unsqueeze(1))
    torch.testing.assert_close(noisy, scheduler.add_noise(action, noise, timestep))


def test_noise_loss_by_hand():
    # Differences 1, 0, 2, -1: (1 + 0 + 4 + 1) / 4.
    assert noise_loss(tensor([[1.0, 2.0], [3.0, 4.0]]), tensor([[0.0, 2.0], [1.0, 5.0]])).item() == 1.5


def test_noise_loss_of_what_is_imitated_by_hand():
    predicted, noise = tensor([[1.0, 2.0], [3.0, 4.0]]), tensor([[0.0, 2.0], [1.0, 5.0]])
    # The samples' means are 0.5 and 2.5. A quarter of the others counts: on average (1 + 1/4) / 2 = 0.625.
    for imitated, expected in (
        ([True, False], (0.5 + 0.625) / 2),
        ([False, True], (0.125 + 2.5) / 2),
        ([True, True], 1.5),
        ([False, False], 0.375),
    ):
        loss = noise_loss(predicted, noise, tensor(imitated), share=0.5, others=0.25)
        assert loss.item() == pytest.approx(expected / 0.625)
    # The weights' means are 0.5 and 0.625.
    imitated, others = tensor([True, False]), tensor([0.0, 0.25])
    by_sample = noise_loss(predicted, noise, imitated, share=0.5, others=others)
    assert by_sample.item() == pytest.approx((0.5 / 0.5 + 0.25 * 2.5 / 0.625) / 2)
    assert noise_loss(predicted, noise, tensor([True, True]), share=1.0).item() == 1.5, "as without a choice"


def test_one_step_action_by_hand():
    # (1.0 - 0.6 * 1.0) / 0.8 = 0.5; (0.4 - 0.6 * 2) / 0.8 = -1; 2 / 0.8 = 2.5 is clipped.
    noisy, predicted = tensor([[1.0, 0.4, 2.0]]), tensor([[1.0, 2.0, 0.0]])
    assert_values(one_step_action(noisy, predicted, tensor([[0.64]])), [[0.5, -1.0, 1.0]])


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(-4, 4)), min_size=1, max_size=10), st.floats(0.006, 0.999)
)
def test_one_step_action_inverts_add_noise_with_the_true_noise(rows, alpha_bar):
    action, noise = tensor(rows, dtype=torch.float64).T.unsqueeze(-1)
    share = torch.full_like(action, alpha_bar)
    back = one_step_action(add_noise(action, noise, share), noise, share)
    torch.testing.assert_close(back, action, atol=1e-9, rtol=0)


# ---- Eq. 6


def test_value_scale_by_hand():
    values = tensor([1.0, -3.0])
    assert value_scale(values, "std").item() == 2.0
    assert value_scale(values, "mean_abs").item() == 2.0
    assert value_scale(values + 10, "std").item() == 2.0, "an offset does not count"
    assert value_scale(values + 10, "mean_abs").item() == 9.0
    assert value_scale(values, "none").item() == 1.0


@pytest.mark.parametrize("kind", ["std", "mean_abs", "none"])
def test_value_scale_is_detached_and_never_zero(kind):
    scale = value_scale(torch.zeros(4, requires_grad=True), kind)
    assert not scale.requires_grad
    assert scale > 0


@pytest.mark.parametrize("scale", ["none", "mean_abs", "std"])
def test_guidance_loss_by_hand(scale):
    reward_values = tensor([[1.0, 2.0], [2.0, 6.0]])  # the other twin: mean 4, std 2
    safety_values = tensor([[0.0, 1.5], [-1.0, 3.0]])  # the other twin: mean of absolutes 2, std 2
    # "none": mean of 0.25 Q^r + 0.25 Q^c' = mean(0.25, 0.875) = 0.5625
    # "mean_abs": 0.25 Q^r / 4 + 0.25 Q^c' / 2 = mean(0.0625, 0.3125) = 0.1875
    # "std": 0.25 Q^r / 2 + 0.25 Q^c' / 2 = mean(0.125, 0.4375) = 0.28125
    by_hand = {"none": -0.5625, "mean_abs": -0.1875, "std": -0.28125}
    loss = guidance_loss(reward_values, safety_values, 0.25, 0.25, twin=torch.tensor(0), scale=scale)
    assert loss.item() == pytest.approx(by_hand[scale])
    # With per-sample weights mu = (0.5, 0), phi = (0, 0.5):
    # "none": mean(0.5, 0.75); "mean_abs": mean(0.125, 0.375); "std": mean(0.25, 0.375)
    per_sample = {"none": -0.625, "mean_abs": -0.25, "std": -0.3125}
    loss = guidance_loss(
        reward_values,
        safety_values,
        tensor([0.5, 0.0]),
        tensor([0.0, 0.5]),
        twin=torch.tensor(0),
        scale=scale,
    )
    assert loss.item() == pytest.approx(per_sample[scale])


def test_guidance_pushes_the_guiding_twin_only():
    reward_values = tensor([[1.0, 2.0], [2.0, 6.0]], requires_grad=True)
    safety_values = tensor([[0.0, 1.5], [-1.0, 3.0]], requires_grad=True)
    guidance_loss(reward_values, safety_values, 0.3, 0.2, twin=torch.tensor(1), scale="std").backward()
    # Scales from twin 0: std 0.5 and 0.75. -mu / (scale B) and -phi / (scale B).
    assert_values(reward_values.grad, [[0.0, 0.0], [-0.3, -0.3]])
    assert_values(safety_values.grad, [[0.0, 0.0], [-2 / 15, -2 / 15]])


@given(st.floats(0.1, 100), st.floats(-100, 100))
def test_with_std_scale_units_and_offset_of_a_value_do_not_change_the_push(factor, offset):
    torch.manual_seed(0)
    reward_values, safety_values = torch.randn(2, 2, 8, dtype=torch.float64).unbind(0)
    gradients = []
    for values in (reward_values, reward_values * factor + offset):
        leaf = values.clone().requires_grad_()
        guidance_loss(leaf, safety_values, 0.25, 0.25, twin=torch.tensor(0), scale="std").backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1] * factor, gradients[0])
