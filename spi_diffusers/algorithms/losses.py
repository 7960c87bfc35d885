"""Losses that algorithms share: temporal differences of critics, and diffusion over actions."""

import math

import torch
from torch import Tensor

# ---- critics


def td_target(signal: Tensor, next_value: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """Right-hand side of Eq. 10 and 11: x_i + gamma (1 - ended) Q(s_{i+1}, a_{i+1}).

    A time limit (`truncated`) is no end here: the state that follows has a value.

    Args:
        signal: r_i, c'_i or c_i, shape (..., B).
        next_value: Value of the next state and action, shape (..., B).
        ended: Whether the episode truly ended, shape (B,), bool.
        gamma: Discount factor.
    """
    return signal + gamma * next_value.masked_fill(ended, 0.0)


def td_loss(values: Tensor, target: Tensor) -> Tensor:
    """Eq. 10 and 11: mean squared error of both twins, summed over the twins.

    Args:
        values: Both twins' values, shape (..., 2, B).
        target: Shape (..., B).

    Returns:
        One loss per value function, shape (...).
    """
    return (values - target.unsqueeze(-2)).square().mean(dim=-1).sum(dim=-1)


# ---- diffusion over actions: noise schedule, noise loss, and the scale of guidance


def vp_betas(num_train_timesteps: int, beta_min: float = 0.1, beta_max: float = 10.0) -> list[float]:
    """The variance-preserving noise schedule of Diffusion-QL, for `DDPMScheduler(trained_betas=...)`.

    beta_t = 1 - exp(-beta_min / T - (beta_max - beta_min) (2 t - 1) / (2 T^2)), t = 1..T.
    """
    steps = num_train_timesteps
    return [
        1.0 - math.exp(-beta_min / steps - 0.5 * (beta_max - beta_min) * (2 * t - 1) / steps**2)
        for t in range(1, steps + 1)
    ]


def add_noise(action: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Eq. 7: a_t = sqrt(alpha-bar_t) a_0 + sqrt(1 - alpha-bar_t) y; alpha_bar has shape (B, 1)."""
    return alpha_bar.sqrt() * action + (1.0 - alpha_bar).sqrt() * noise


def noise_loss(
    predicted: Tensor,
    noise: Tensor,
    imitated: Tensor | None = None,
    share: float = 1.0,
    others: Tensor | float = 0.0,
) -> Tensor:
    """Eq. 9: mean squared error of the predicted noise, both of shape (B, A).

    Args:
        predicted: Predicted noise.
        noise: True noise.
        imitated: Which samples count fully, shape (B,), bool; None: all.
        share: The share of samples that count fully in expectation.
        others: What the others count, in [0, 1], a number or shape (B,). The expected mean of the weights
            divides, not that of this batch, so that the mean over processes is that over the whole batch.
    """
    error = (predicted - noise).square()
    if imitated is None:
        return error.mean()
    weight = others + (1.0 - others) * imitated.to(error.dtype)
    return (error.mean(dim=-1) * weight / (others + (1.0 - others) * share)).mean()


def one_step_action(noisy_action: Tensor, predicted: Tensor, alpha_bar: Tensor) -> Tensor:
    """Solve Eq. 7 for a_0, clipped to [-1, 1]; alpha_bar has shape (B, 1)."""
    return ((noisy_action - (1.0 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()).clamp(-1.0, 1.0)


def guiding_and_other(values: Tensor, twin: Tensor) -> tuple[Tensor, Tensor]:
    """The twin that guides and the other one, each (B,), of the values of both, (2, B).

    `twin`, a scalar 0 or 1, is looked up where the values are: to read it here would wait for the device.
    """
    guiding, other = values.index_select(0, torch.stack([twin, 1 - twin])).unbind()
    return guiding, other


def value_scale(other_twin: Tensor, kind: str) -> Tensor:
    """What a critic's value is divided by in Eq. 6, detached, from the other twin's values (B,)."""
    values = other_twin.detach()
    if kind == "std":
        return values.std(correction=0).clamp_min(1e-6)
    if kind == "mean_abs":
        return values.abs().mean().clamp_min(1e-6)
    return torch.ones_like(values[0])
