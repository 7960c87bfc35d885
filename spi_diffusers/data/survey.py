"""What a look at a dataset tells before training: over how many steps a limit counts, and what is odd."""

from typing import TYPE_CHECKING, Union

from spi_diffusers.data.transitions import EpisodeTable, TransitionDataset

if TYPE_CHECKING:
    from spi_diffusers.data.streaming import StreamedDataset

Dataset = Union[TransitionDataset, "StreamedDataset"]


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


def unclear_length(episodes: EpisodeTable) -> str:
    """The question about episodes of which `common_length` is None."""
    length, terminated = episodes.length, episodes.terminated
    return (
        f"over how many steps a cost limit counts is not clear: {len(length)} episodes, of "
        f"which {int((~terminated).sum())} were truncated, have {int(length.min())} to {int(length.max())} "
        f"steps (median {int(length.median())}). Give the most that an episode may have as max_episode_steps "
        "(--max-episode-steps)"
    )


def remarks(dataset: Dataset, max_episode_steps: int | None) -> list[str]:
    """What is odd about a dataset, one sentence each: what was found, and what to do.

    `max_episode_steps` are those over which a limit counts, None where they are not known.
    """
    found = [] if dataset.task is not None else _about_length(dataset.episodes, max_episode_steps)
    return [f"{dataset.source}: {each}" for each in found]


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
