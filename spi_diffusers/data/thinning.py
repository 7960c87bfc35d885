"""Thin a dataset by episode and keep what matters for safe learning: the spread and the best."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch

from spi_diffusers.data.transitions import EpisodeTable


def thin_episodes(
    episodes: EpisodeTable,
    num_episodes: int,
    *,
    cost_limits: Sequence[float] = (10.0, 20.0, 40.0),
    keep_within: int = 50,
    keep_per_level: int = 5,
    bins: int = 20,
    seed: int = 0,
) -> torch.Tensor:
    """Choose episodes such that the plane of cost return and return stays evenly covered.

    Always kept are the best by return: `keep_within` within every cost limit, and `keep_per_level` at
    every whole cost return. The rest comes from a `bins` x `bins` grid over (cost return, return): cells
    are filled evenly from the emptiest up, at random within a cell, so crowded cells are thinned first.

    Args:
        episodes: the episode table of the whole dataset.
        num_episodes: how many to choose.
        cost_limits: limits whose best episodes are kept.
        keep_within: how many of the best within each limit are kept.
        keep_per_level: how many of the best at each cost return (rounded down) are kept.
        bins: number of cells along each axis.
        seed: decides the choice within cells; the same seed gives the same choice.

    Returns:
        (num_episodes,) int64 positions in the table, ascending; all of them where there are no more.

    Raises:
        ValueError: `num_episodes` is less than 1, or less than the number that is always kept.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes must be at least 1, got {num_episodes}")
    total = len(episodes)
    if num_episodes >= total:
        return torch.arange(total)
    returns, costs = episodes.return_.cpu().numpy(), episodes.cost_return.cpu().numpy()
    best_first = np.argsort(-returns, kind="stable")
    chosen: set[int] = set()
    for limit in cost_limits:
        chosen.update(best_first[costs[best_first] <= limit][:keep_within].tolist())
    levels = np.floor(costs[best_first])
    for level in np.unique(levels):
        chosen.update(best_first[levels == level][:keep_per_level].tolist())
    if len(chosen) > num_episodes:
        raise ValueError(
            f"num_episodes={num_episodes} is less than the {len(chosen)} best episodes that are always kept; "
            "lower keep_within or keep_per_level"
        )

    for episode in _evenly_over_the_plane(returns, costs, chosen, bins, seed):
        if len(chosen) == num_episodes:
            break
        chosen.add(episode)
    return torch.tensor(sorted(chosen))


def thin_transitions(
    episodes: EpisodeTable,
    num_transitions: int,
    *,
    cost_limits: Sequence[float] = (10.0, 20.0, 40.0),
    best_share: float = 0.4,
    bins: int = 20,
    seed: int = 0,
) -> torch.Tensor:
    """Choose whole episodes of together at most so many transitions: the best safe ones, and the spread.

    `best_share` of the transitions goes in turn to the best episode within each cost limit that is not
    chosen yet. The rest is spread over a `bins` x `bins` grid over (cost return, return), whose cells are
    filled evenly.

    Args:
        episodes: the episode table of the whole dataset.
        num_transitions: how many transitions to choose at most.
        cost_limits: limits whose best episodes are chosen first.
        best_share: share of the transitions for these, in [0, 1].
        bins: number of cells along each axis.
        seed: decides the choice within cells; the same seed gives the same choice.

    Returns:
        (E,) int64 positions in the table, ascending; all of them where everything fits.

    Raises:
        ValueError: no episode fits, or `best_share` is out of range.
    """
    if not 0.0 <= best_share <= 1.0:
        raise ValueError(f"best_share must be between 0 and 1, got {best_share}")
    lengths = episodes.length.cpu().numpy()
    if int(lengths.sum()) <= num_transitions:
        return torch.arange(len(episodes))
    returns, costs = episodes.return_.cpu().numpy(), episodes.cost_return.cpu().numpy()
    best_first = np.argsort(-returns, kind="stable")
    queues = [iter(best_first[costs[best_first] <= limit].tolist()) for limit in cost_limits]
    chosen: set[int] = set()
    used = 0
    while queues:
        for queue in list(queues):
            episode = next((e for e in queue if e not in chosen), None)
            if episode is None or used + lengths[episode] > best_share * num_transitions:
                queues.remove(queue)
                continue
            chosen.add(episode)
            used += lengths[episode]
    for episode in _evenly_over_the_plane(returns, costs, chosen, bins, seed):
        if used + lengths[episode] <= num_transitions:
            chosen.add(episode)
            used += lengths[episode]
    if not chosen:
        raise ValueError(f"no episode fits into {num_transitions} transitions")
    return torch.tensor(sorted(chosen))


def _evenly_over_the_plane(
    returns: np.ndarray, costs: np.ndarray, chosen: Collection[int], bins: int, seed: int
) -> Iterator[int]:
    """Episodes that are not chosen yet, such that the cells of a grid fill evenly from the emptiest up."""
    cells: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    column, row = _bin(costs, bins), _bin(returns, bins)
    for episode in np.random.default_rng(seed).permutation(len(returns)).tolist():
        cells[int(column[episode]), int(row[episode])].append(episode)
    filled = {cell: sum(episode in chosen for episode in members) for cell, members in cells.items()}
    waiting = {cell: [e for e in members if e not in chosen] for cell, members in cells.items()}
    level = 0
    while any(waiting.values()):
        level += 1
        for cell, members in waiting.items():
            if filled[cell] < level and members:
                yield members.pop()
                filled[cell] += 1


def _bin(values: np.ndarray, bins: int) -> np.ndarray:
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros(len(values), dtype=np.int64)
    return np.minimum(((values - low) / (high - low) * bins).astype(np.int64), bins - 1)
