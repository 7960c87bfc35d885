"""Maximum mean discrepancy between two samples, BEAR's measure of distance from the data's policy."""

import torch
from torch import Tensor


def mmd(first: Tensor, second: Tensor, kernel: str, sigma: float) -> Tensor:
    """Distance of two sets of actions per state: sqrt(mean k(x, x') - 2 mean k(x, y) + mean k(y, y')).

    All pairs count, also an action with itself. Kernels: "laplacian" exp(-|x - y|_1 / (2 sigma)) and
    "gaussian" exp(-|x - y|_2^2 / (2 sigma)); sigma is not squared. Source: Kumar, Fu, Tucker and Levine,
    "Stabilizing Off-Policy Q-Learning via Bootstrapping Error Reduction" (2019), section 5.

    Args:
        first: N actions for each of B states, shape (B, N, A).
        second: M actions for each of B states, shape (B, M, A).
        kernel: "laplacian" or "gaussian".
        sigma: Width of the kernel.

    Returns:
        Shape (B,); at least 0.001, as 1e-6 below the root keeps its gradient finite.

    Raises:
        ValueError: An unknown kernel.
    """
    if kernel not in ("laplacian", "gaussian"):
        raise ValueError(f"kernel must be 'laplacian' or 'gaussian', got {kernel!r}.")
    # One kernel matrix of all actions together: few large operations instead of three times as many.
    both = torch.cat([first, second], dim=1)
    difference = both.unsqueeze(2) - both.unsqueeze(1)
    powers = difference.abs() if kernel == "laplacian" else difference.square()
    similarity = (powers.sum(dim=-1) * (-0.5 / sigma)).exp()
    n, m = first.shape[1], second.shape[1]
    weights = torch.cat([first.new_full((n,), 1.0 / n), first.new_full((m,), -1.0 / m)])
    squared = (similarity @ weights) @ weights
    # Rounding can lead a little below zero.
    return (squared.clamp_min(0.0) + 1e-6).sqrt()
