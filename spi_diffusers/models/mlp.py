"""Plain layers of the baselines' networks."""

import itertools

import torch
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU in between.

    Raises:
        ValueError: A width is below one.
    """
    if min(widths) < 1:
        raise ValueError(f"All sizes must be at least 1, got {list(widths)}.")
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        # In place, as fresh memory for activations takes longer than computing them.
        layers += [nn.Linear(width_in, width_out, dtype=torch.float32), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def joined(network: nn.Module, *parts: Tensor) -> Tensor:
    """Parts side by side, in the dtype of a network's weights: bfloat16 in a compute replica."""
    dtype = next(network.parameters()).dtype
    return torch.cat([part.to(dtype) for part in parts], dim=-1)


def repeated(observation: Tensor, like: Tensor) -> Tensor:
    """Observations (B, O) for actions or latents (B, N, ...), (B, N, O); as they are for (B, ...)."""
    return observation if like.dim() == 2 else observation.unsqueeze(1).expand(-1, like.shape[1], -1)
