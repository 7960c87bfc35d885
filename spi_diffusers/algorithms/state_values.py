"""Functions of the state, several networks each, computed in one batched pass."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spi_diffusers.models.critics import BatchedLinear


class StateValues(nn.Module):
    """K functions of the state; each is the minimum over N MLPs with ReLU.

    Args:
        num_functions: K.
        num_networks: N.
        observation_dim: Size O of an observation.
        hidden_dims: Width of each hidden layer.
    """

    def __init__(
        self, num_functions: int, num_networks: int, observation_dim: int, hidden_dims: Sequence[int]
    ):
        super().__init__()
        self._sizes = (num_functions, num_networks)
        count = num_functions * num_networks
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise([observation_dim, *hidden_dims]):
            layers += [BatchedLinear(count, width_in, width_out), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*layers)
        self.head = BatchedLinear(count, hidden_dims[-1], 1)

    def forward(self, observation: Tensor) -> Tensor:
        """Values (K, B) in float32, from (B, O)."""
        inputs = observation.to(self.head.weight.dtype)
        hidden = self.net(inputs.expand(self.head.weight.shape[0], -1, -1))
        # The head adds up in float32: what counts is the small difference between a state's value and the
        # next one's, and in bfloat16 values of thirty are rounded to an eighth. As a product and a sum it
        # also takes less time than a matrix product with one column.
        products = hidden * self.head.weight.transpose(1, 2)
        values = products.sum(dim=-1, dtype=torch.float32) + self.head.bias.squeeze(-1)
        return values.unflatten(0, self._sizes).amin(dim=1)
