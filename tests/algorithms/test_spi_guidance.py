"""One-step guidance and guidance through the chain agree where they must."""

import dataclasses

import pytest
import torch
from exact_noise_model import exact_noise_model
from spi_factory import differing, fixed_weights, make_inputs, make_spi, weights_of

from spi_diffusers.algorithms.losses import add_noise, noise_loss, one_step_action
from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("conditioned", [True, False])
def test_both_guidances_return_the_action_when_the_noise_is_predicted_exactly(steps, conditioned):
    weights = {} if conditioned else {"mu": 0.25, "phi": 0.25}
    config = SPIConfig(num_train_timesteps=steps, conditioned=conditioned, **weights)
    model, scheduler = exact_noise_model(config), make_scheduler(config)
    torch.manual_seed(0)
    action, noise, timestep = torch.rand(32, 2) * 2 - 1, torch.randn(32, 2), torch.randint(steps, (32,))
    weight = torch.rand(32) if conditioned else None
    alpha_bar = scheduler.alphas_cumprod[timestep].unsqueeze(1)
    with torch.no_grad():
        noisy = add_noise(action, noise, alpha_bar)
        predicted = model(noisy, timestep, action, weight).sample
        assert noise_loss(predicted, noise) < 1e-10, "the weights do what they say"
        one_step = one_step_action(noisy, predicted, alpha_bar)
        coefficients = model.ddpm_coefficients(scheduler)
        chain = model.denoise(action, weight, coefficients, torch.randn(steps, 32, 2))
    torch.testing.assert_close(one_step.float(), action, atol=2e-5, rtol=0)
    torch.testing.assert_close(chain, action, atol=2e-5, rtol=0)


def _with_the_same_start(inputs, alpha_bars):
    """For both guidances: the chain starts where the batch's noisy action is."""
    noisy = add_noise(inputs.action, inputs.noise, alpha_bars[inputs.timestep].unsqueeze(1))
    return dataclasses.replace(inputs, guidance_noise=noisy.unsqueeze(0))


@pytest.mark.parametrize("make_config", [SPIConfig, fixed_weights], ids=["conditioned", "fixed"])
def test_with_one_timestep_the_two_guidances_make_the_same_update(make_config):
    """T = 1: the chain is one step from t = 0, which is the one-step guidance from the same noisy action."""
    runs = []
    for guidance in ("one_step", "chain"):
        spi = make_spi(make_config(guidance=guidance, num_train_timesteps=1))
        # The same draws for both: those that chain guidance needs.
        drawn = [make_inputs(make_config(guidance="chain", num_train_timesteps=1), i) for i in range(2)]
        inputs = _with_the_same_start(spi.prepare(drawn[0]), spi._alpha_bars)
        metrics, _ = spi.update(inputs, drawn[1])
        values = {name: float(value) for name, value in metrics.items()}
        runs.append((values, weights_of(spi)))
    for name, value in runs[0][0].items():
        assert runs[1][0][name] == pytest.approx(value, rel=1e-5), name
    for name, value in runs[0][1].items():
        # Adam's first step is the learning rate (3e-4) times about the sign of each gradient.
        torch.testing.assert_close(runs[1][1][name], value, atol=3e-5, rtol=0)
    assert differing(runs[0][1], weights_of(make_spi(make_config(num_train_timesteps=1))))


@pytest.mark.parametrize("guidance", ["one_step", "chain"])
def test_guidance_reaches_the_noise_model(guidance):
    """With eta = 0 there is nothing but guidance, and every layer of the noise model moves."""
    spi = make_spi(fixed_weights(eta=0.0, mu=0.5, phi=0.5, guidance=guidance))
    before = {name: value.clone() for name, value in spi.noise_model.named_parameters()}
    spi._update_policy(spi.prepare(make_inputs(spi.config)), make_inputs(spi.config, 1))
    assert differing(before, dict(spi.noise_model.named_parameters())) == list(before)


@pytest.mark.parametrize("guidance", ["one_step", "chain"])
def test_guidance_raises_the_guiding_values(guidance):
    """Many small steps on one batch against frozen critics: actions move to where the values are higher."""
    config = fixed_weights(eta=0.0, mu=0.5, phi=0.5, guidance=guidance, guidance_scale="none")
    spi = make_spi(config, learning_rate=1e-2, seed=1)
    inputs = spi.prepare(make_inputs(config, batch=64))
    upcoming = make_inputs(config, 1, batch=64)
    losses = []
    for _ in range(60):
        metrics, _ = spi._update_policy(inputs, upcoming)
        spi.refresh()
        losses.append(float(metrics["policy/guidance_loss"]))
    assert losses[-1] < losses[0] - 0.03


def test_an_action_clipped_at_the_border_is_not_pushed_further():
    """The clip of Eq. 7's solution stops the gradient: no guidance beyond the action space."""
    noisy = torch.tensor([[0.5, 3.0]])
    predicted = torch.zeros(1, 2, requires_grad=True)
    one_step_action(noisy, predicted, torch.tensor([[0.64]])).sum().backward()
    assert predicted.grad.tolist() == [[pytest.approx(-0.75), 0.0]]
