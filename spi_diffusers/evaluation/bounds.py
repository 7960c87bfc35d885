"""Confidence bounds from finished episodes, and the choice of a setting that holds with confidence.

They hold for any number of episodes, if these are independent draws of the same policy in the same world. No
torch is imported here.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

#: Largest share of what can be lost that `mean_bound` bets on an episode.
_LARGEST_BET = 0.9


def share_bound(over: int, episodes: int, confidence: float) -> float:
    """Upper confidence bound on the share of episodes over a limit (Clopper and Pearson 1934, one-sided).

    Args:
        over: Number of episodes over it.
        episodes: Number of all, at least 1.
        confidence: In (0, 1).

    Returns:
        With at least this probability, the true share is no larger.
    """
    from scipy.stats import binomtest

    interval = binomtest(over, episodes, alternative="less").proportion_ci(confidence, method="exact")
    return float(interval.high)


def fewest_episodes(risk: float, confidence: float) -> int:
    """How many episodes it takes at least, none of them over the limit, to show a share of `risk`."""
    count = max(int(np.ceil(np.log(1 - confidence) / np.log(1 - risk))), 1)
    return count if share_bound(0, count, confidence) <= risk else count + 1  # the last bit of a logarithm


def mean_bound(costs: np.ndarray, highest: float, confidence: float) -> float:
    """Upper confidence bound on the mean cost of an episode, by betting.

    Waudby-Smith and Ramdas, *Estimating means of bounded random variables by betting* (2024): a mean m is
    refuted by a gambler who starts with 1, bets on episodes one after another that costs are lower than m,
    and ends with 1 / (1 - confidence). Bets are their predictable plug-in ones. It is tighter than the
    empirical Bernstein bound in practice, and always taken: the smaller one of two bounds would hold less
    often than either. Episodes are shuffled first, by a fixed seed: in those that come sorted by cost, the
    next one could be foreseen.

    Args:
        costs: Costs of episodes, (N,), in [0, highest].
        highest: Largest cost that an episode can have.
        confidence: In (0, 1).

    Returns:
        With at least this probability, the true mean is no larger.

    Raises:
        ValueError: An episode cost more than `highest`.
    """
    from scipy.optimize import brentq

    if costs.max() > highest * (1 + 1e-9):  # of a sum, the last bits may be off
        raise ValueError(f"an episode cost {costs.max():g}, more than the largest possible, {highest:g}")
    if highest == 0:
        return 0.0
    left = (1.0 - np.random.default_rng(0).permutation(costs) / highest).clip(0.0)
    needed, count = -np.log1p(-confidence), np.arange(2, len(left) + 2)
    means = (0.5 + left.cumsum()) / count
    variances = (0.25 + ((left - means) ** 2).cumsum()) / count
    known = np.concatenate([[0.25], variances[:-1]])  # before the episode that is bet on
    bets = np.sqrt(2 * needed / (len(left) * known))

    def excess(mean: float) -> float:
        """By how much the logarithm of what the gambler ends with is enough; it falls with the mean."""
        return float(np.log1p(np.minimum(bets, _LARGEST_BET / mean) * (left - mean)).sum() - needed)

    smallest = 1e-12
    refuted_below = brentq(excess, smallest, 1.0) if excess(smallest) > 0 else 0.0
    return max(highest * (1.0 - refuted_below), float(costs.mean()))


def least_careful(settings: Iterable[T], holds: Callable[[T], Any]) -> T | None:
    """Learn-then-Test by fixed-sequence testing (Angelopoulos et al. 2021).

    Args:
        settings: From the most to the least careful, fixed before any episode is played.
        holds: Tests whether a claim about a setting is shown with a confidence; settings may share episodes.

    Returns:
        The last setting before the first whose claim is not shown; None if already the first one's is not.
        That any claim is taken for shown which is wrong has a probability of at most 1 - confidence,
        however many settings there are: the first wrong one in the sequence must pass its own test.
    """
    found = None
    for setting in settings:
        if not holds(setting):
            break
        found = setting
    return found
