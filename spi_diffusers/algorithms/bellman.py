"""Learning a value from the next one: what the critics of every algorithm have in common."""

from torch import Tensor


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


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Eq. 10 and 11: mean squared error of both twins, summed over the twins.

    Args:
        values: Both twins' values, shape (..., 2, B).
        target: Shape (..., B).

    Returns:
        One loss per value function, shape (...).
    """
    return (values - target.unsqueeze(-2)).square().mean(dim=-1).sum(dim=-1)
