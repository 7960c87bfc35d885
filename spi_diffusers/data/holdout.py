"""Which episodes training leaves out, so that a policy can be judged by data that it was not fitted to."""

import hashlib

import torch

from spi_diffusers.data.streaming import Dataset, load_episodes
from spi_diffusers.data.transitions import TransitionDataset

#: Fewer episodes are too few to leave any out.
LEAST_EPISODES = 20


def held_out_episodes(num_episodes: int, seed: int, share: float) -> torch.Tensor:
    """Draw whole episodes by the seed: the same ones in memory and streamed, on any machine and at any time.

    Args:
        num_episodes: Number E of episodes of the dataset.
        seed: Of the training.
        share: Share of the episodes to hold out, in [0, 1): rounded, but at least one.

    Returns:
        Which episodes are held out, (E,) bool; none if the share is 0 or there are fewer than 20.
    """
    mask = torch.zeros(num_episodes, dtype=torch.bool)
    if share == 0 or num_episodes < LEAST_EPISODES:
        return mask

    def place(episode: int) -> bytes:
        return hashlib.sha256(f"{seed}:{episode}".encode()).digest()

    count = min(max(1, round(share * num_episodes)), num_episodes - 1)
    mask[sorted(range(num_episodes), key=place)[:count]] = True
    return mask


def holdout_notice(num_episodes: int, share: float) -> str:
    """What to tell a user whose data is too small to hold out what was asked for; empty if it is not."""
    if share == 0 or num_episodes >= LEAST_EPISODES:
        return ""
    return (
        f"no episode is held out: there are only {num_episodes}, and at least {LEAST_EPISODES} are needed; "
        "data that it was trained on will tell the policy and spi assess how far predictions are off"
    )


def load_held_out(
    dataset: Dataset, seed: int, share: float, max_transitions: int
) -> TransitionDataset | None:
    """Held-out episodes in memory: the first of them, up to so many transitions; None if none is held out."""
    chosen = held_out_episodes(dataset.num_episodes, seed, share).nonzero().flatten()
    if not len(chosen):
        return None
    return load_episodes(dataset, dataset.episodes.within(chosen, max_transitions))
