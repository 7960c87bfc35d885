"""A Lagrange multiplier driven by a PID controller on the constraint's violation."""

import torch
from torch import Tensor, nn


def pid_step(
    error: Tensor,
    integral: Tensor,
    previous_error: Tensor,
    proportional: float,
    integral_gain: float,
    derivative: float,
) -> tuple[Tensor, Tensor]:
    """One step of the controller: lambda = K_P [e]+ + K_I I + K_D [e - e_previous]+, I <- [I + e]+.

    Only growth of the violation counts for the derivative, and the integral never goes below zero, so a
    kept constraint is paid for with no negative multiplier. Source: Stooke, Achiam and Abbeel, "Responsive
    Safety in Reinforcement Learning by PID Lagrangian Methods" (2020), algorithm 2; the proportional part
    is cut at zero as in the DSRL benchmark.

    Args:
        error: Violation e of the constraint, positive where broken, scalar.
        integral: I before this step, scalar.
        previous_error: e of the step before, scalar.
        proportional: K_P.
        integral_gain: K_I.
        derivative: K_D.

    Returns:
        The multiplier, not negative, and the new integral.
    """
    integral = (integral + error).clamp_min(0.0)
    multiplier = proportional * error.clamp_min(0.0) + integral_gain * integral
    return multiplier + derivative * (error - previous_error).clamp_min(0.0), integral


class PIDLagrangian(nn.Module):
    """The controller with its state as buffers, so that a checkpoint holds it.

    Args:
        proportional: K_P.
        integral: K_I.
        derivative: K_D.
    """

    integral: Tensor
    previous_error: Tensor
    multiplier: Tensor

    def __init__(self, proportional: float, integral: float, derivative: float):
        super().__init__()
        self._gains = (proportional, integral, derivative)
        for name in ("integral", "previous_error", "multiplier"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def update(self, error: Tensor) -> Tensor:
        """Take the violation e of this update (a scalar) and return the multiplier, detached."""
        multiplier, integral = pid_step(error, self.integral, self.previous_error, *self._gains)
        self.multiplier.copy_(multiplier)
        self.integral.copy_(integral)
        self.previous_error.copy_(error)
        return self.multiplier
