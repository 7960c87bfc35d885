"""What a configuration of SPI accepts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spi_diffusers.algorithms.spi import make_scheduler
from spi_diffusers.config.algorithm_settings import SPIConfig
from spi_diffusers.models import MLPNoiseModel


@given(st.floats(0, 1), st.floats(0, 1))
def test_weights_on_the_simplex_are_accepted(first, second):
    eta, mu = sorted([first, second])[0], abs(first - second)
    config = SPIConfig(conditioned=False, eta=eta, mu=mu, phi=max(0.0, 1 - eta - mu))
    assert config.eta + config.mu + config.phi == pytest.approx(1)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_weights_off_the_simplex_are_refused(eta, mu, phi):
    if abs(eta + mu + phi - 1) <= 2e-6:
        return
    with pytest.raises(ValueError, match=r"eta \+ mu \+ phi must be 1"):
        SPIConfig(conditioned=False, eta=eta, mu=mu, phi=phi)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.5, "mu": 1.0, "phi": -0.5, "conditioned": False}, "none negative"),
        ({"mu": 0.25, "phi": 0.25}, "mu and phi are set by the safety weight"),
        ({"mu": 0.5}, "mu and phi are set by the safety weight"),
        ({"phi": 0.0}, "mu and phi are set by the safety weight"),
        ({"conditioned": False}, "conditioned=false needs mu and phi"),
        ({"conditioned": False, "mu": 0.5}, "conditioned=false needs mu and phi"),
        ({"eta": 1.5}, r"eta must be a (finite )?number in"),
        ({"eta": float("nan")}, r"eta must be a (finite )?number in"),
        ({"gamma": -0.1}, r"gamma must be a (finite )?number in"),
        ({"gamma": 1.0}, r"gamma must be a number in \[0, 1\)"),
        ({"target_update_rate": 2.0}, r"target_update_rate must be a (finite )?number in"),
        ({"ema_decay": -1.0}, r"ema_decay must be a (finite )?number in"),
        ({"imitation_share": 0.0}, r"imitation_share must be a number in \(0, 1\]"),
        ({"imitation_share": 1.5}, r"imitation_share must be a number in \(0, 1\]"),
        (
            {"imitation_share": 0.5, "conditioned": False, "eta": 1.0, "mu": 0.0, "phi": 0.0},
            "imitation_share below 1 needs conditioned=true",
        ),
        ({"num_train_timesteps": 0}, r"num_train_timesteps must be a whole number in \[1, 1000\]"),
        ({"beta_min": 0.0}, "beta_min must be a positive number"),
        ({"beta_min": 11.0}, "noise schedule"),
        ({"beta_max": 100.0}, "beta_max are too large for num_train_timesteps=5"),
        ({"num_train_timesteps": 2.5}, "num_train_timesteps must be a whole number"),
        ({"target_update_rate": 0.0}, r"target_update_rate must be a number in \(0, 1\]"),
    ],
)
def test_bad_values_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        SPIConfig(**options)


@pytest.mark.parametrize("name", ["guidance", "guidance_scale", "next_action", "cost_remap"])
def test_unknown_choices_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        SPIConfig(**{name: "chian"})


@pytest.mark.parametrize(("steps", "beta_max"), [(1, 29.0), (5, 80.0), (100, 150.0)])
def test_the_largest_noise_schedules_have_finite_coefficients(steps, beta_max):
    config = SPIConfig(num_train_timesteps=steps, beta_max=beta_max)
    assert bool(MLPNoiseModel.ddpm_coefficients(make_scheduler(config)).isfinite().all())
    with pytest.raises(ValueError, match="too large"):
        SPIConfig(num_train_timesteps=steps, beta_max=1.3 * beta_max)
