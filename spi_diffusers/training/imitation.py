"""Which transitions a safety weight imitates: those of the episodes with the best trade-off under it."""

import torch
from torch import Tensor

from spi_diffusers.data.transitions import EpisodeTable

#: At a safety weight of 1 returns still count a little, so that of equally costly episodes the ones that end
#: early, in a fall, are not taken for as good as the others.
LARGEST_COST_SHARE = 0.95
#: A group of episodes is parted by their starts into groups of about this many at least, ...
SMALLEST_GROUP = 20
#: ... if their mean ranks differ by this much at least, and by so many standard errors. Where all returns of
#: one part are higher, the ranks differ by a half; by 0.15 if they are higher by half a standard deviation.
SMALLEST_DIFFERENCE, CERTAINTY = 0.15, 3.0
_KNOTS = 101
_ROUNDING = 1e-5


class PreferredEpisodes:
    """Picks the share of the data with the best trade-off between return and cost, for every safety weight.

    Some starts promise more than others. So episodes are compared with those of their group, whose starts
    promise about the same, and the share is picked in each group: no start is left without imitation.

    An episode's score under the weight w is (1 - v) * its rank by return + v * its rank by cost (the least
    costly is the first), with v = 0.95 w; ranks are shares of the group's transitions, in [0, 1].

    Args:
        episodes: All E episodes of the dataset.
        share: Share of the transitions to pick under each weight, in (0, 1].
        groups: Number of each episode's group, from 0 on, (E,) int64; see `groups_by_start`.
    """

    def __init__(self, episodes: EpisodeTable, share: float, groups: Tensor):
        self._start, self._group = episodes.start, groups
        length = episodes.length.double()
        knots = torch.linspace(0.0, 1.0, _KNOTS)
        ranks = torch.zeros(len(groups), 2)
        thresholds = []
        for group in range(int(groups.max()) + 1):
            members = (groups == group).nonzero().flatten()
            ranks[members] = rank_episodes(episodes, members).float()
            scores = self._score(ranks[members].unsqueeze(1), knots)  # (members, K)
            quantiles = [_upper_quantile(column, length[members], share) for column in scores.unbind(dim=1)]
            thresholds.append(torch.stack(quantiles))
        self._ranks, self._thresholds = ranks, torch.stack(thresholds)  # (E, 2), (groups, K)

    def episode_of(self, rows: Tensor) -> Tensor:
        """Numbers of the episodes that rows of the dataset belong to, (B,) int64."""
        return torch.searchsorted(self._start, rows, right=True) - 1

    def picks(self, episode: Tensor, safety_weight: Tensor) -> Tensor:
        """Whether an episode is imitated under a safety weight, (B,) bool, from (B,) and (B,)."""
        device = safety_weight.device
        if self._thresholds.device != device:
            parts = (self._ranks, self._thresholds, self._group)
            self._ranks, self._thresholds, self._group = (part.to(device) for part in parts)
        position = safety_weight * (_KNOTS - 1)
        low = position.floor().long().clamp_max(_KNOTS - 2)
        group = self._group[episode]
        below, above = self._thresholds[group, low], self._thresholds[group, low + 1]
        threshold = torch.lerp(below, above, position - low)
        return self._score(self._ranks[episode], safety_weight) >= threshold - _ROUNDING

    @staticmethod
    def _score(ranks: Tensor, safety_weight: Tensor) -> Tensor:
        cost_share = LARGEST_COST_SHARE * safety_weight
        return (1.0 - cost_share) * ranks[..., 0] + cost_share * ranks[..., 1]


def groups_by_start(starts: Tensor, episodes: EpisodeTable) -> Tensor:
    """Groups of episodes whose starts promise about the same return and cost.

    A regression tree: a group is parted where one number of the first observation tells most about the ranks
    by return and by cost, and about how far they are from the middle. The cut is found on one half of the
    group and confirmed on the other, so starts that tell nothing leave all episodes in one group. Neither
    scales nor offsets of observations, rewards and costs matter.

    Args:
        starts: First observations of the episodes, (E, O).
        episodes: The episodes.

    Returns:
        Number of each episode's group, from 0 on, (E,) int64.
    """
    groups = torch.zeros(len(starts), dtype=torch.int64)
    pending, count = [torch.arange(len(starts))], 0
    while pending:
        members = pending.pop()
        low = _lower_part(starts[members], rank_episodes(episodes, members))
        if low is None:
            groups[members] = count
            count += 1
        else:
            pending += [members[~low], members[low]]
    return groups


def _lower_part(starts: Tensor, ranks: Tensor) -> Tensor | None:
    """Which of a group's n episodes make up one of its two parts, (n,) bool; None if it is not parted."""
    if len(starts) < 2 * SMALLEST_GROUP:
        return None
    targets = torch.cat([ranks, (ranks - 0.5).abs()], dim=1)
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(0))
    search, confirm = order[::2], order[1::2]
    cut = _best_cut(starts[search], targets[search])
    if cut is None:
        return None
    column, largest = cut
    low = starts[:, column] <= largest
    found, _ = _difference(targets[search], low[search])
    difference, error = _difference(targets[confirm], low[confirm])
    difference = difference * found.sign()
    confirmed = (difference >= SMALLEST_DIFFERENCE) & (difference >= CERTAINTY * error)
    return low if bool(confirmed.any()) else None


def _best_cut(starts: Tensor, targets: Tensor) -> tuple[int, Tensor] | None:
    """Column, and its largest value in the lower part, that explain most of the targets' variance."""
    targets = targets - targets.mean(dim=0)
    targets = targets / targets.std(dim=0, correction=0).clamp_min(1e-6)
    total, least = len(starts), SMALLEST_GROUP // 2
    size = torch.arange(1, total)  # of the lower part
    allowed = (size >= least) & (size <= total - least)
    best, cut = 0.0, None
    for column in range(starts.shape[1]):
        values, position = starts[:, column].sort(stable=True)
        sums = targets[position].cumsum(dim=0)[:-1]
        gain = sums.square().sum(dim=1) * (1 / size + 1 / (total - size))
        gain = gain.masked_fill(~allowed | (values[1:] == values[:-1]), 0.0)
        if float(gain.max()) > best:
            best, cut = float(gain.max()), (column, values[gain.argmax()])
    return cut


def _difference(targets: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Difference of the two parts' means, and its standard error; NaN where a part has less than two."""
    parts = targets[low], targets[~low]
    variance = [part.var(dim=0) / len(part) if len(part) > 1 else targets[0] * torch.nan for part in parts]
    return parts[0].mean(dim=0) - parts[1].mean(dim=0), (variance[0] + variance[1]).sqrt()


def rank_episodes(episodes: EpisodeTable, members: Tensor) -> Tensor:
    """Ranks of some episodes among each other by return and by cost, (members, 2), better ones higher."""
    length = episodes.length[members].double()
    values = episodes.return_[members], -episodes.cost_return[members]
    return torch.stack([_rank(column, length) for column in values], dim=1)


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
