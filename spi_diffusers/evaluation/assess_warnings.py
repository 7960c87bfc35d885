"""Where data cannot tell what a policy will do: plain sentences with numbers. No torch is imported here."""

from collections.abc import Sequence

import numpy as np

from spi_diffusers.data.costs import COST, CostLimit
from spi_diffusers.evaluation.assessment import LimitAssessment, figures
from spi_diffusers.evaluation.entries import each
from spi_diffusers.evaluation.summary import shown_share
from spi_diffusers.messages import shown_limit

#: Fewer episodes than these tell little.
FEW_EPISODES = 10
#: A larger share of actions out of the data's support is told of.
MUCH_OUTSIDE = 0.2


def find_warnings(
    limits: Sequence[LimitAssessment],
    costs: np.ndarray,
    *,
    least_expected: np.ndarray,
    used: int,
    seen_in_training: bool,
    cost_names: Sequence[str] = (COST,),
) -> list[str]:
    """What to be careful about.

    Args:
        limits: The estimates.
        costs: K costs of all episodes of the data, (E, K).
        least_expected: Expected cost of the safety weight that costs least, for each cost, (K,).
        used: Number of episodes that the estimates are from.
        seen_in_training: Whether the policy was trained on these.
        cost_names: What the K costs are called.
    """
    found = []
    total = len(costs)
    if seen_in_training:
        found.append(
            f"no episode was held out, so {_episodes(used)} are used that the policy was trained on; errors "
            "look smaller there than they are."
        )
    if used < FEW_EPISODES:
        found.append(f"there is too little to estimate from, {_episodes(used)}: intervals are only rough.")
    if float(costs.max()) == 0:
        found.append(f"none of the {total} episodes of the data costs anything, so nothing tells what would.")
    else:
        keep = {row.cost_limit: (costs <= np.array(row.cost_limit)).all(1) for row in limits}
        within = {limit: int(kept.sum()) for limit, kept in keep.items()}
        safe = {limit: count for limit, count in within.items() if 0 < count < FEW_EPISODES}
        costly = {limit: total - count for limit, count in within.items() if total - count < FEW_EPISODES}
        if safe:
            found.append(f"few of the {total} episodes of the data keep a limit of {_listed(safe)}.")
        if costly:
            found.append(
                f"few of the {total} episodes of the data exceed a limit of {_listed(costly)}: little tells "
                "what leads beyond it."
            )
    for which, name in enumerate(cost_names):
        least, expected = costs[:, which].min(), least_expected[which]
        of_it = f" of {name}" if len(cost_names) > 1 else ""
        least_cost, expected_cost = (figures(value)[0] for value in (float(least), float(expected)))
        for limit in dict.fromkeys(each(row.cost_limit)[which] for row in limits):
            if limit < least:
                found.append(
                    f"a limit of {limit:g}{of_it} lies below the {least_cost} that the safest of the {total} "
                    "episodes of the data costs: nothing shows that it can be kept."
                )
            if limit < expected:
                found.append(
                    f"a limit of {limit:g}{of_it} lies below the {expected_cost} that the policy is expected "
                    "to cost at its safest weight."
                )
    outside = {row.cost_limit: row.out_of_support or 0.0 for row in limits}
    much = [
        f"{shown_share(share)} at {shown_limit(limit)}"
        for limit, share in outside.items()
        if share > MUCH_OUTSIDE
    ]
    if much:
        found.append(
            "many of the policy's actions are unlike those that the data has in similar states, and the "
            f"critic can only guess what they do: {', '.join(much)}."
        )
    return found


def _listed(counts: dict[CostLimit, int]) -> str:
    return ", ".join(f"{shown_limit(limit)} ({_episodes(count)})" for limit, count in counts.items())


def _episodes(count: int) -> str:
    return f"{count} episode{'s' * (count != 1)}"
