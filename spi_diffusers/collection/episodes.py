"""Recorded episodes: which are worth keeping, and their files on disk while a collection goes on."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from spi_diffusers.collection.errors import CollectionError
from spi_diffusers.data.rounding import round_significant
from spi_diffusers.data.tasks import Task

_GRID = 40  # cells along each axis of the plane of cost return and return
_PER_CELL = 12
_BEST_PER_COST = 12
_COLUMNS = ("observation", "action", "reward", "cost")


@dataclass(frozen=True)
class Episode:
    """One episode of L steps.

    Attributes:
        observation: What was seen, with the one after the last step, (L + 1, O) float32.
        action: As executed, (L, A) float32.
        reward: (L,) float32.
        cost: (L,) float32.
        terminated: Whether the task itself ended it.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    cost: np.ndarray
    terminated: bool

    @property
    def return_(self) -> float:
        """Undiscounted sum of rewards."""
        return float(self.reward.sum(dtype=np.float64))

    @property
    def cost_return(self) -> float:
        """Undiscounted sum of costs."""
        return float(self.cost.sum(dtype=np.float64))

    def rounded(self) -> "Episode":
        """The episode with observations rounded to 12 significant bits (actions were, before they ran)."""
        return Episode(
            round_significant(self.observation), self.action, self.reward, self.cost, self.terminated
        )


class EpisodeFilter:
    """Keeps the spread over the plane of cost return and return, and the best; drops what repeats it.

    An episode is kept if its cell of a grid is not full yet, or if it is among the best so far at its whole
    cost return. Decides in the order of arrival, so the same episodes give the same choice.

    Args:
        task: Its reference values scale the grid.
        max_cost_return: Episodes that cost more are dropped.
    """

    def __init__(self, task: Task, max_cost_return: float):
        self._task = task
        self._max_cost_return = max_cost_return
        self._cells: Counter[tuple[int, int]] = Counter()
        self._best: dict[int, list[float]] = {}

    def keep(self, return_: float, cost_return: float) -> bool:
        """Whether to keep an episode; counts it if so."""
        if cost_return > self._max_cost_return:
            return False
        task = self._task
        row = int(_GRID * (return_ - task.reward_min) / (task.reward_max - task.reward_min))
        column = int(_GRID * cost_return / (self._max_cost_return + 1.0))
        best = self._best.setdefault(int(cost_return), [])
        wanted = self._cells[column, row] < _PER_CELL
        if wanted or len(best) < _BEST_PER_COST or return_ > best[0]:
            self._cells[column, row] += 1
            best.append(return_)
            best.sort()
            del best[:-_BEST_PER_COST]
            return True
        return False


def write_shard(episodes: Sequence[Episode], path: Path) -> None:
    """Write episodes to one safetensors file, aside first and then renamed."""
    tensors: dict[str, np.ndarray] = {
        "length": np.array([len(episode.reward) for episode in episodes], dtype=np.int64),
        "terminated": np.array([episode.terminated for episode in episodes], dtype=np.uint8),
        **{name: np.concatenate([getattr(episode, name) for episode in episodes]) for name in _COLUMNS},
    }
    aside = path.with_suffix(".partial")
    save_file(tensors, aside)
    os.replace(aside, path)


def read_shards(paths: Iterable[Path]) -> list[Episode]:
    """Read all episodes of several shards, in order.

    Raises:
        CollectionError: A file is no shard, or was cut off.
    """
    episodes = []
    for path in paths:
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, str(error)) from error
        if missing := {"length", "terminated", *_COLUMNS} - tensors.keys():
            raise _unreadable(path, f"it lacks {', '.join(sorted(missing))}")
        ends = np.cumsum(tensors["length"])
        for index, (end, length) in enumerate(zip(ends.tolist(), tensors["length"].tolist(), strict=True)):
            rows = slice(end - length, end)
            episodes.append(
                Episode(
                    # Every episode has one observation more than steps.
                    observation=tensors["observation"][end - length + index : end + index + 1],
                    action=tensors["action"][rows],
                    reward=tensors["reward"][rows],
                    cost=tensors["cost"][rows],
                    terminated=bool(tensors["terminated"][index]),
                )
            )
    return episodes


def _unreadable(path: Path, reason: str) -> CollectionError:
    return CollectionError(
        f"{path}: is not a file of collected episodes ({reason}); remove {path.parent} to play this "
        "part again"
    )
