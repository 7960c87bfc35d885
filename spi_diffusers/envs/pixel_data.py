"""Behaviour episodes of the Pixel world, as data to train on."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from gymnasium.wrappers import TimeLimit

from spi_diffusers.envs.pixel_world import (
    _MOVES,
    NUM_ROWS,
    PixelWorldEnv,
    safe_policy,
    white_policy,
)
from spi_diffusers.envs.wrappers import check_seed

if TYPE_CHECKING:
    from spi_diffusers.data.transitions import TransitionDataset


def _random_policy(num_columns: int) -> np.ndarray:
    return np.full((NUM_ROWS * num_columns, len(_MOVES)), 1 / len(_MOVES))


#: Behaviours by name, each from n to (3n, 4) probabilities of the moves.
BEHAVIOURS: dict[str, Callable[[int], np.ndarray]] = {
    "random": _random_policy,
    "white": white_policy,
    "safe": safe_policy,
}


def collect_pixel_world(
    num_columns: int,
    num_episodes: int,
    *,
    seed: int,
    behaviours: Sequence[str] = tuple(BEHAVIOURS),
    max_episode_steps: int | None = None,
) -> "TransitionDataset":
    """Play episodes in the Pixel world and return them as a dataset.

    Args:
        num_columns: n of the 3 x n world.
        num_episodes: how many episodes; the behaviours take turns.
        seed: of the random moves and of the actions that stand for a move.
        behaviours: "random" (uniform moves), "white" (into the trap), "safe" (straight to the goal).
        max_episode_steps: steps after which an episode is truncated; None for 10 n.

    Returns:
        The dataset: observations (N, 2), actions (N, 2) drawn uniformly among those in [-1, 1] that make
        the chosen move.

    Raises:
        ValueError: an unknown behaviour, no behaviour or fewer than one episode.
    """
    from spi_diffusers.data.transitions import TransitionDataset

    columns = collect_pixel_world_columns(
        num_columns, num_episodes, seed=seed, behaviours=behaviours, max_episode_steps=max_episode_steps
    )
    return TransitionDataset.from_columns(columns, source=f"Pixel world 3x{num_columns}")


def collect_pixel_world_columns(
    num_columns: int,
    num_episodes: int,
    *,
    seed: int,
    behaviours: Sequence[str] = tuple(BEHAVIOURS),
    max_episode_steps: int | None = None,
) -> dict[str, np.ndarray]:
    """The same as `collect_pixel_world`, as NumPy columns (without torch).

    Returns:
        `observation`, `next_observation`, `action` (N, 2), `reward`, `cost` (N,) float32, `terminated`,
        `truncated` (N,) bool; episode after episode.
    """
    unknown = [name for name in behaviours if name not in BEHAVIOURS]
    if unknown or not behaviours:
        raise ValueError(f"behaviours must be some of {list(BEHAVIOURS)}, got {list(behaviours)}")
    counts = {"num_episodes": num_episodes}
    if max_episode_steps is not None:
        counts["max_episode_steps"] = max_episode_steps
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    world = PixelWorldEnv(num_columns)
    limit = 10 * num_columns if max_episode_steps is None else max_episode_steps
    env = TimeLimit(world, max_episode_steps=limit)
    policies = [BEHAVIOURS[name](num_columns) for name in behaviours]
    generator = np.random.default_rng(check_seed(seed))
    rows = []
    for episode in range(num_episodes):
        policy = policies[episode % len(policies)]
        observation, _ = env.reset()
        ended = False
        while not ended:
            action = _action_of(generator.choice(len(_MOVES), p=policy[world.state]), generator)
            next_observation, reward, terminated, truncated, info = env.step(action)
            # An end of the world is no end by time, even in the same step.
            truncated = truncated and not terminated
            rows.append((observation, next_observation, action, reward, info["cost"], terminated, truncated))
            observation, ended = next_observation, terminated or truncated
    names = ("observation", "next_observation", "action", "reward", "cost", "terminated", "truncated")
    columns = {name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    return {k: v if v.dtype == np.bool_ else v.astype(np.float32) for k, v in columns.items()}


def _action_of(move: int, generator: np.random.Generator) -> np.ndarray:
    """Draw uniformly among the actions in the box that make a move: a triangle around its axis."""
    # The larger component of a uniform point has density 2m on [0, 1], the other is uniform below it.
    # Kept off zero, where rounding could turn one move into another.
    main = max(np.sqrt(generator.uniform()), 1e-3)
    side = 0.999 * main * generator.uniform(-1, 1)
    row_step, column_step = _MOVES[move]
    action = (column_step * main, side) if column_step else (side, row_step * main)
    return np.array(action, dtype=np.float32)
