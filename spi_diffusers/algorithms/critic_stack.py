"""Several twin critics computed as one batched network during training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spi_diffusers.models.critics import BatchedLinear, TwinCritic


class CriticStack(nn.Module):
    """All twins of several critics side by side in one batched pass, sharing memory with the critics.

    The stack owns the parameters; each critic's own parameters become views into them, so the critics that
    are saved are always up to date. Critics may differ in their number of heads: a missing head is padded
    with zeros that never receive a gradient.

    Args:
        critics: C critics of one architecture.

    Raises:
        ValueError: If the architectures differ in anything but the number of heads.
    """

    def __init__(self, critics: Sequence[TwinCritic]):
        super().__init__()
        for key, value in critics[0].config.items():
            for critic in critics[1:]:
                if key != "num_heads" and not key.startswith("_") and critic.config[key] != value:
                    raise ValueError(
                        f"Critics in a stack must share their architecture, but {key} is {value} for one and "
                        f"{critic.config[key]} for another."
                    )
        self.heads = [critic.config.num_heads for critic in critics]
        layers: list[nn.Module] = []
        for parts in zip(*(critic.net for critic in critics), strict=True):
            if isinstance(parts[0], BatchedLinear):
                layers.append(self._stack(parts))
            else:
                layers.append(parts[0])
        self.net = nn.Sequential(*layers)

    @staticmethod
    def _stack(parts: Sequence[BatchedLinear]) -> BatchedLinear:
        width_in = parts[0].weight.shape[1]
        width_out = max(part.weight.shape[2] for part in parts)
        stacked = BatchedLinear(2 * len(parts), width_in, width_out)
        with torch.no_grad():
            for name in ("weight", "bias"):
                target = getattr(stacked, name)
                target.zero_()
                for index, part in enumerate(parts):
                    own = getattr(part, name)
                    view = target[2 * index : 2 * index + 2, :, : own.shape[2]]
                    view.copy_(own)
                    own.data = view.data
        return stacked

    def forward(self, inputs: Tensor) -> Tensor:
        """Values of every critic.

        Args:
            inputs: Observation, action and safety weight side by side, shape (B, D).

        Returns:
            Values of shape (C, 2, B, H), H the largest number of heads.
        """
        inputs = inputs.to(next(self.parameters()).dtype)
        values = self.net(inputs.expand(2 * len(self.heads), -1, -1))
        return values.float().unflatten(0, (len(self.heads), 2))
