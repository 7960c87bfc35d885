"""What a look at a dataset tells before training: over how many steps a limit counts, and what is odd."""

import numpy as np

from spi_diffusers.data.actions import ActionRange, seen_range
from spi_diffusers.data.streaming import Dataset
from spi_diffusers.data.transitions import EpisodeTable

#: Actions that use less of their range are remarked.
_NARROW = 0.05


def common_length(episodes: EpisodeTable) -> int | None:
    """Steps of an episode, where the data tells: the length of nine in ten of the truncated episodes.

    A time limit makes them so. Of episodes that were all terminated, nine in ten must have the length. It is
    None where lengths differ more, or where more than one in ten of all episodes is longer.
    """
    truncated = episodes.length[~episodes.terminated]
    lengths = truncated if len(truncated) else episodes.length
    values, counts = lengths.unique(return_counts=True)
    usual = int(values[counts.argmax()])
    longer = int((episodes.length > usual).sum())
    tells = 10 * int(counts.max()) >= 9 * len(lengths) and 10 * longer <= len(episodes)
    return usual if tells else None


def found_range(dataset: Dataset) -> ActionRange:
    """The range of actions: the task's, the one that the source states, or what is seen in the data."""
    if dataset.task is not None:
        return ActionRange((-1.0,) * dataset.action_dim, (1.0,) * dataset.action_dim)
    return dataset.action_range or seen_range(*dataset.extremes["action"])


def unclear_length(episodes: EpisodeTable) -> str:
    """The question about episodes of which `common_length` is None."""
    length, terminated = episodes.length, episodes.terminated
    return (
        f"over how many steps a cost limit counts is not clear: {len(length)} episodes, of "
        f"which {int((~terminated).sum())} were truncated, have {int(length.min())} to {int(length.max())} "
        f"steps (median {int(length.median())}). Give the most that an episode may have as max_episode_steps "
        "(--max-episode-steps)"
    )


def remarks(
    dataset: Dataset, max_episode_steps: int | None = None, *, range_given: bool = False
) -> list[str]:
    """What is odd about a dataset, one sentence each: what was found, and what to do.

    Args:
        dataset: what to look at.
        max_episode_steps: over which a limit counts; None: as found in the data.
        range_given: whether the range of actions is set, and not found in the data.
    """
    found = _about_signals(dataset)
    if dataset.task is None:  # of a task all is known
        found += _about_length(dataset.episodes, max_episode_steps or common_length(dataset.episodes))
        found += _about_columns(dataset)
        found += [] if range_given else _about_range(dataset)
    return [f"{dataset.source}: {each}" for each in found]


def _about_signals(dataset: Dataset) -> list[str]:
    found = []
    if len(dataset.episodes) == 1:
        found.append(
            "has one episode: how cost and return differ between episodes cannot be learned, nor how sure "
            "the policy is to keep a limit; give more, or mark where episodes end"
        )
    wrong = "if {!r} is the wrong column, name the right one"
    for name, highest in zip(dataset.cost_names, np.atleast_1d(dataset.extremes["cost"][1]), strict=True):
        if float(highest) == 0.0:
            found.append(f"no step costs anything, so a cost limit has no effect; {wrong.format(name)}")
    low, high = map(float, dataset.extremes["reward"])
    if low == high:
        found.append(f"every reward is {low:g}, so no action is better; {wrong.format('reward')}")
    return found


def _about_columns(dataset: Dataset) -> list[str]:
    found = []
    for name in ("observation", "action"):
        low, high = dataset.extremes[name]
        if len(constant := np.flatnonzero(low == high)):
            which = "every number" if len(constant) == len(low) else f"number {_listed(constant)}"
            found.append(f"{which} of the {name} never changes: nothing can be learned from it; leave it out")
    return found


def _about_range(dataset: Dataset) -> list[str]:
    found = []
    stated, (low, high) = dataset.action_range, found_range(dataset)
    least, most = dataset.extremes["action"]
    if stated is None and (wide := np.flatnonzero((np.array(low) != -1) | (np.array(high) != 1))).size:
        ranges = ", ".join(f"[{low[k]:.6g}, {high[k]:.6g}]" for k in wide[:5]) + ", ..." * (len(wide) > 5)
        found.append(
            f"the range of actions is not known, so number {_listed(wide)} of the action is taken to be in "
            f"{ranges}, as the data shows; if the environment's range is another, set action_low and "
            "action_high"
        )
    share = (np.asarray(most, dtype=float) - least) / (np.array(high) - low)
    if len(narrow := np.flatnonzero((share < _NARROW) & (least < most))):
        found.append(
            f"number {_listed(narrow)} of the action stays within {share[narrow].max():.1%} of its range of "
            f"{low[narrow[0]]:g} to {high[narrow[0]]:g}; set action_low and action_high if the environment's "
            "range is smaller"
        )
    return found


def _listed(numbers: np.ndarray) -> str:
    """Numbers of a vector, from 0, as a part of a message."""
    return ", ".join(map(str, numbers[:10])) + ", ..." * (len(numbers) > 10)


def _about_length(episodes: EpisodeTable, steps: int | None) -> list[str]:
    longest = int(episodes.length.max())
    if steps is None:
        return [unclear_length(episodes)]
    if longer := int((episodes.length > steps).sum()):
        return [
            f"{longer} of {len(episodes)} episodes are longer than {steps} steps, over which a cost limit "
            f"counts: their own costs are those of up to {longest} steps. If a limit is for whole episodes, "
            f"set max_episode_steps={longest}"
        ]
    if longest < steps:
        return [
            f"a cost limit counts over {steps} steps (max_episode_steps), but no episode has more than "
            f"{longest}: nothing tells what happens later"
        ]
    return []
