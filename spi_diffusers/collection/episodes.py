"""Recorded episodes: which are worth keeping, and their files on disk while a collection goes on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from spi_diffusers.collection.config import CollectionError
from spi_diffusers.data.tasks import Task
from spi_diffusers.files import written_aside

SIGNIFICANT_BITS = 12
_CLEARED_BITS = 24 - SIGNIFICANT_BITS  # of float32's mantissa, with the implicit bit
_GRID = 40  # cells along each axis of the plane of cost return and return
_PER_CELL = 12
_BEST_PER_COST = 12
_COLUMNS = ("observation", "action", "reward", "cost")


def round_significant(values: np.ndarray) -> np.ndarray:
    """Round float32 to 12 significant bits, half away from zero, so that files compress.

    The relative error is at most 2**-12, except for values below 2**-126, where the error is at most 2**-138.
    A value that rounds beyond float32's largest becomes infinite.
    """
    raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # Adding half of the last kept bit carries into the exponent just where rounding up should.
    half, mask = np.uint32(1 << (_CLEARED_BITS - 1)), np.uint32((0xFFFFFFFF << _CLEARED_BITS) & 0xFFFFFFFF)
    return ((raw + half) & mask).view(np.float32)


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
        return replace(self, observation=round_significant(self.observation))


class EpisodeRecorder:
    """Collects one episode step by step, from its first observation, (O,), on."""

    def __init__(self, observation: np.ndarray):
        self._observations = [observation]
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._costs: list[float] = []

    def add(self, action: np.ndarray, reward: float, cost: float, observation: np.ndarray) -> None:
        """Take in a step: what was done, (A,), and what came of it."""
        self._actions.append(action)
        self._rewards.append(reward)
        self._costs.append(cost)
        self._observations.append(observation)

    def finish(self, terminated: bool) -> Episode:
        """The episode; `terminated` says whether the task itself ended it."""
        return Episode(
            np.stack(self._observations),
            np.stack(self._actions),
            np.asarray(self._rewards, dtype=np.float32),
            np.asarray(self._costs, dtype=np.float32),
            terminated,
        )


class EpisodeFilter:
    """Keeps the spread over the plane of cost return and return, and the best; drops what repeats it.

    An episode is kept if its cell of a grid is not full yet, or if it is among the best so far at its whole
    cost return; never above `max_cost_return` (None: the task's reference maximum). The same episodes in the
    same order give the same choice.

    `best_within` has the highest return so far within each of the task's cost limits, and within
    `max_cost_return`; None where there is none.
    """

    def __init__(self, task: Task, max_cost_return: float | None):
        self._task = task
        self._max_cost_return = task.cost_max if max_cost_return is None else max_cost_return
        self._cells: Counter[tuple[int, int]] = Counter()
        self._best_at: dict[int, list[float]] = {}
        self.count = 0
        limits = (*map(float, task.cost_limits), self._max_cost_return)
        self.best_within: dict[float, float | None] = dict.fromkeys(limits)

    def offer(self, return_: float, cost_return: float) -> bool:
        """Whether to keep an episode; counts it if so."""
        if cost_return > self._max_cost_return:
            return False
        task = self._task
        row = int(_GRID * (return_ - task.reward_min) / (task.reward_max - task.reward_min))
        column = int(_GRID * cost_return / (self._max_cost_return + 1.0))
        best = self._best_at.setdefault(int(cost_return), [])
        if self._cells[column, row] >= _PER_CELL and len(best) >= _BEST_PER_COST and return_ <= best[0]:
            return False
        self._cells[column, row] += 1
        best.append(return_)
        best.sort()
        del best[:-_BEST_PER_COST]
        self.count += 1
        for limit, highest in self.best_within.items():
            if cost_return <= limit and (highest is None or return_ > highest):
                self.best_within[limit] = return_
        return True


def write_shard(episodes: Sequence[Episode], path: Path) -> None:
    """Write episodes to one safetensors file, aside first; OSError, or SafetensorError for a full disk."""
    tensors: dict[str, np.ndarray] = {
        "length": np.array([len(episode.reward) for episode in episodes], dtype=np.int64),
        "terminated": np.array([episode.terminated for episode in episodes], dtype=np.uint8),
        **{name: np.concatenate([getattr(episode, name) for episode in episodes]) for name in _COLUMNS},
    }
    with written_aside(path) as aside:
        save_file(tensors, aside)


def read_shards(paths: Iterable[Path]) -> list[Episode]:
    """Read all episodes of several shards, in order; CollectionError for a file that is none."""
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
