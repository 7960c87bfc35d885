"""Which transitions a safety weight imitates: those of the episodes with the best trade-off under it."""

import torch
from torch import Tensor

from spi_diffusers.data.transitions import EpisodeTable

#: At a safety weight of 1 returns still count a little, so that of equally costly episodes the ones that end
#: early, in a fall, are not taken for as good as the others.
LARGEST_COST_SHARE = 0.95
_KNOTS = 101
_ROUNDING = 1e-5


class PreferredEpisodes:
    """Picks the share of the data with the best trade-off between return and cost, for every safety weight.

    An episode's score under the weight w is (1 - v) * its rank by return + v * its rank by cost (the least
    costly is the first), with v = 0.95 w; ranks are shares of transitions, in [0, 1].

    Args:
        episodes: All E episodes of the dataset.
        share: Share of the transitions to pick under each weight, in (0, 1].
    """

    def __init__(self, episodes: EpisodeTable, share: float):
        self._start = episodes.start
        length = episodes.length.double()
        # (E, 2): better episodes have the higher ranks, both ways.
        self._ranks = torch.stack(
            [_rank(episodes.return_, length), _rank(-episodes.cost_return, length)], dim=1
        ).float()
        knots = torch.linspace(0.0, 1.0, _KNOTS)
        scores = self._score(self._ranks.unsqueeze(1), knots)  # (E, K)
        self._thresholds = torch.stack(
            [_upper_quantile(column, length, share) for column in scores.unbind(dim=1)]
        )

    def ranks(self, rows: Tensor) -> Tensor:
        """Ranks by return and by cost of the episodes that rows of the dataset belong to, (B, 2)."""
        return self._ranks[torch.searchsorted(self._start, rows, right=True) - 1]

    def picks(self, ranks: Tensor, safety_weight: Tensor) -> Tensor:
        """Whether a transition is imitated under its safety weight, (B,) bool, from (B, 2) and (B,)."""
        self._thresholds = self._thresholds.to(safety_weight.device)
        position = safety_weight * (_KNOTS - 1)
        low = position.floor().long().clamp_max(_KNOTS - 2)
        threshold = torch.lerp(self._thresholds[low], self._thresholds[low + 1], position - low)
        return self._score(ranks, safety_weight) >= threshold - _ROUNDING

    @staticmethod
    def _score(ranks: Tensor, safety_weight: Tensor) -> Tensor:
        cost_share = LARGEST_COST_SHARE * safety_weight
        return (1.0 - cost_share) * ranks[..., 0] + cost_share * ranks[..., 1]


def _rank(values: Tensor, mass: Tensor) -> Tensor:
    """Share of the mass that lies below each value, half of the equal ones included; shape (E,)."""
    unique, position = values.unique(return_inverse=True)
    of_value = torch.zeros(len(unique), dtype=mass.dtype).index_add_(0, position, mass)
    return ((of_value.cumsum(0) - of_value / 2) / mass.sum())[position]


def _upper_quantile(values: Tensor, mass: Tensor, share: float) -> Tensor:
    """The largest threshold that at least this share of the mass reaches."""
    order = values.argsort(descending=True)
    reached = mass[order].cumsum(0) / mass.sum()
    return values[order[min(int((reached < share - 1e-9).sum()), len(order) - 1)]]
