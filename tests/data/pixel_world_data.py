"""Datasets from the Pixel world, played by behaviors whose values the paper works out."""

from collections.abc import Callable, Sequence

import numpy as np
from gymnasium.wrappers import TimeLimit

from spi_diffusers.data.transitions import TransitionDataset
from spi_diffusers.envs.make import check_count, check_seed
from spi_diffusers.envs.pixel_world import NUM_ROWS, PixelWorldEnv, safe_policy, white_policy

#: Row and column step of each move: right, down, left, up.
MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))


def random_policy(num_columns: int) -> np.ndarray:
    """A policy, (3n, 4) probabilities, of uniform moves."""
    return np.full((NUM_ROWS * num_columns, len(MOVES)), 1 / len(MOVES))


#: Behaviors by name, each from n to (3n, 4) probabilities of the moves.
BEHAVIORS: dict[str, Callable[[int], np.ndarray]] = {
    "random": random_policy,
    "white": white_policy,
    "safe": safe_policy,
}


def collect_pixel_world(
    num_columns: int,
    num_episodes: int,
    *,
    seed: int,
    behaviors: Sequence[str] = tuple(BEHAVIORS),
    max_episode_steps: int | None = None,
) -> TransitionDataset:
    """Play episodes in the 3 x n Pixel world, the behaviors by turns; truncated after 10 n steps by default.

    Actions (N, 2) are drawn uniformly among those in [-1, 1] that make the chosen move.
    """
    unknown = [name for name in behaviors if name not in BEHAVIORS]
    if unknown or not behaviors:
        raise ValueError(f"behaviors must be some of {list(BEHAVIORS)}, got {list(behaviors)}")
    num_episodes = check_count("num_episodes", num_episodes, least=1)
    world = PixelWorldEnv(num_columns)
    limit = 10 * num_columns if max_episode_steps is None else max_episode_steps
    env = TimeLimit(world, max_episode_steps=check_count("max_episode_steps", limit, least=1))
    policies = [BEHAVIORS[name](num_columns) for name in behaviors]
    generator = np.random.default_rng(check_seed(seed))
    rows = []
    for episode in range(num_episodes):
        policy = policies[episode % len(policies)]
        observation, _ = env.reset()
        ended = False
        while not ended:
            action = _action_of(generator.choice(len(MOVES), p=policy[world.state]), generator)
            next_observation, reward, terminated, truncated, info = env.step(action)
            # An end of the world is no end by time, even in the same step.
            truncated = truncated and not terminated
            rows.append((observation, next_observation, action, reward, info["cost"], terminated, truncated))
            observation, ended = next_observation, terminated or truncated
    names = ("observation", "next_observation", "action", "reward", "cost", "terminated", "truncated")
    columns = {name: np.array(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    columns = {k: v if v.dtype == np.bool_ else v.astype(np.float32) for k, v in columns.items()}
    return TransitionDataset.from_columns(columns, source=f"Pixel world 3x{num_columns}")


def _action_of(move: int, generator: np.random.Generator) -> np.ndarray:
    """Draw uniformly among the actions in the box that make a move: a triangle around its axis."""
    # The larger component of a uniform point has density 2m on [0, 1], the other is uniform below it.
    # Kept off zero, where rounding could turn one move into another.
    main = max(np.sqrt(generator.uniform()), 1e-3)
    side = 0.999 * main * generator.uniform(-1, 1)
    row_step, column_step = MOVES[move]
    action = (column_step * main, side) if column_step else (side, row_step * main)
    return np.array(action, dtype=np.float32)
