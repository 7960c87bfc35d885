"""Transitions as contiguous tensors: the form in which every data source reaches the algorithms."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch

from spi_diffusers.data.actions import ActionRange
from spi_diffusers.data.columns import COLUMNS, VALUE_COLUMNS, VECTOR_COLUMNS, ColumnChecker, DatasetError
from spi_diffusers.data.tasks import Task

__all__ = ["DatasetError", "EpisodeTable", "TransitionBatch", "TransitionDataset"]


@dataclass(frozen=True)
class TransitionBatch:
    """N transitions; row i of every tensor belongs to the same step.

    Attributes:
        observation: (N, O) float32, in the simulator's own units.
        next_observation: (N, O) float32, what the step led to (never the first one of the next episode).
        action: (N, A) float32, in [-1, 1] for DSRL tasks.
        reward: (N,) float32.
        cost: (N,) float32, at least 0.
        terminated: (N,) bool, the task itself ended: the bootstrap is cut here.
        truncated: (N,) bool, the episode was stopped from outside (time limit): the bootstrap is not cut.
    """

    observation: torch.Tensor
    next_observation: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    cost: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in COLUMNS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of a transition batch differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.reward)

    def __repr__(self) -> str:
        sizes = f"observation of {self.observation.shape[1]}, action of {self.action.shape[1]}"
        return f"TransitionBatch: {len(self)} transitions, {sizes}, on {self.reward.device}"

    def gather(self, index: torch.Tensor) -> "TransitionBatch":
        """Take rows by index, (B,) int64 on the data's device; an index outside [0, N) is an IndexError."""
        return TransitionBatch(*(getattr(self, name).index_select(0, index) for name in COLUMNS))


assert tuple(f.name for f in fields(TransitionBatch)) == COLUMNS, "gather() relies on the order of columns"


@dataclass(frozen=True)
class EpisodeTable:
    """One row per episode; all tensors are (E,).

    Attributes:
        episode_index: int64, number of the episode in the dataset, from 0.
        start: int64, row of the episode's first transition.
        length: int64, number of transitions.
        return_: float64, undiscounted sum of rewards.
        cost_return: float64, undiscounted sum of costs.
        terminated: bool, whether the episode ended by the task itself.
    """

    episode_index: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    return_: torch.Tensor
    cost_return: torch.Tensor
    terminated: torch.Tensor

    def __len__(self) -> int:
        return len(self.length)

    def __repr__(self) -> str:
        spreads = (
            f"{name} {values.min():.4g} to {values.max():.4g}"
            for name, values in (
                ("length", self.length),
                ("return", self.return_),
                ("cost return", self.cost_return),
            )
        )
        return f"{len(self)} episodes: {', '.join(spreads)}"

    def select(self, mask: torch.Tensor) -> "EpisodeTable":
        """The episodes of a mask, (E,) bool, each with the number and the rows that it has in the dataset."""
        return EpisodeTable(*(getattr(self, column.name)[mask] for column in fields(self)))

    def hold_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Whether rows of the dataset, (B,) int64, belong to one of the episodes, (B,) bool."""
        episode = torch.searchsorted(self.start, rows, right=True) - 1
        return (episode >= 0) & (rows < (self.start + self.length)[episode])

    def within(self, order: torch.Tensor, max_transitions: int) -> torch.Tensor:
        """The first of some episodes, by positions (K,), that have so many rows together; one at least."""
        total = self.length[order].cumsum(0)
        return order[: max(int((total <= max_transitions).sum()), 1)]

    def rows(
        self, index: torch.Tensor, longest: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The rows of some episodes, one episode after the other.

        Args:
            index: Positions of the episodes, (K,) int64.
            longest: Only so many of the first rows of each; None: all.

        Returns:
            Rows in the dataset; which of the K episodes each is of; and which step of it, from 0; each (N,).
        """
        length = self.length[index] if longest is None else self.length[index].clamp_max(longest)
        which = torch.repeat_interleave(torch.arange(len(index), device=length.device), length)
        step = torch.arange(len(which), device=length.device) - (length.cumsum(0) - length)[which]
        return self.start[index][which] + step, which, step

    def usual_cost_limits(self, task: Task | None) -> tuple[float, ...]:
        """The task's own cost limits; without a task, the quartiles of the episodes' cost returns."""
        if task is not None:
            return task.cost_limits
        quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=self.cost_return.device)
        return tuple(self.cost_return.double().quantile(quartiles).unique().tolist())

    def best_return_within(self, cost_limit: float) -> float | None:
        """The largest return among the episodes with a cost return of at most the limit, or None."""
        within = self.return_[self.cost_return <= cost_limit]
        return within.max().item() if len(within) else None


@dataclass(frozen=True, eq=False)
class TransitionDataset:
    """All transitions of a dataset in memory, episode after episode.

    Make one by `from_columns` (which checks everything) or `spi_diffusers.data.loading.load_transitions`.

    Attributes:
        transitions: N transitions; every episode ends in a row that is terminated or truncated.
        episode_index: (N,) int64, which episode a row belongs to: 0, 1, ... in the order of the rows.
        frame_index: (N,) int64, which step of its episode a row is, from 0.
        task: the task that the data belongs to, where it is known.
        source: where the data comes from (path or Hub id), for messages and cards.
        action_range: range of the environment's actions, where the source states it.
    """

    transitions: TransitionBatch
    episode_index: torch.Tensor
    frame_index: torch.Tensor
    task: Task | None = None
    source: str = field(default="memory")
    action_range: ActionRange | None = None

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, np.ndarray],
        *,
        task: Task | None = None,
        source: str = "memory",
        names: Mapping[str, str] | None = None,
        clip_actions: bool = False,
        action_range: ActionRange | None = None,
    ) -> "TransitionDataset":
        """Check columns and put them into contiguous tensors.

        Args:
            columns: arrays by column name: `observation`, `next_observation` (N, O), `action` (N, A),
                `reward`, `cost`, `terminated`, `truncated` (N,) or (N, 1); optionally `episode_index`
                and `frame_index` (N,), which must agree with the episode ends.
            task: fixes the dimensions and the action range [-1, 1], where given.
            source: what to call the data in messages.
            names: how the source calls a column, for messages, where that differs.
            clip_actions: clip actions outside [-1, 1] instead of refusing them. Excesses of up to 1e-3
                are rounding and always clipped.
            action_range: range of the environment's actions, where it is known and there is no task.

        Returns:
            The dataset; tensors own their memory.

        Raises:
            DatasetError: a column is missing, not numeric, of a wrong shape or length, or holds NaN or
                infinite values, a negative cost, or an action outside the range; there are zero rows or
                no episode ends; the index columns disagree with the ends, or the range is that of no such
                actions.
        """
        raw = {name: np.asarray(values) for name, values in columns.items()}
        clean = ColumnChecker(source, names).clean(raw, task, clip_actions=clip_actions)
        if action_range is not None:
            action_range.check(source, clean["action"].shape[1])
        tensors = {name: _owned_tensor(values, raw.get(name)) for name, values in clean.items()}
        return cls(
            transitions=TransitionBatch(*(tensors[name] for name in COLUMNS)),
            episode_index=tensors["episode_index"],
            frame_index=tensors["frame_index"],
            task=task,
            source=source,
            action_range=action_range,
        )

    def __len__(self) -> int:
        return len(self.transitions)

    def __repr__(self) -> str:
        return describe_briefly(self)

    @property
    def observation_dim(self) -> int:
        """Length of an observation."""
        return self.transitions.observation.shape[1]

    @property
    def action_dim(self) -> int:
        """Length of an action."""
        return self.transitions.action.shape[1]

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @cached_property
    def episodes(self) -> EpisodeTable:
        """The episode table, computed on first use."""
        ends = torch.nonzero(self.transitions.terminated | self.transitions.truncated).flatten()
        start = torch.cat([ends.new_zeros(1), ends[:-1] + 1])

        def sum_per_episode(values: torch.Tensor) -> torch.Tensor:
            # float64: a thousand float32 rewards lose digits when they are added in float32.
            total = torch.zeros(len(ends), dtype=torch.float64, device=values.device)
            return total.index_add_(0, self.episode_index, values.double())

        return EpisodeTable(
            episode_index=torch.arange(len(ends), device=ends.device),
            start=start,
            length=ends - start + 1,
            return_=sum_per_episode(self.transitions.reward),
            cost_return=sum_per_episode(self.transitions.cost),
            terminated=self.transitions.terminated[ends],
        )

    def first_observations(self) -> torch.Tensor:
        """First observations of the episodes, (E, O)."""
        return self.transitions.observation[self.episodes.start]

    @cached_property
    def extremes(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Smallest and largest value of each column of numbers: (D,) of vectors, () of reward and cost."""
        columns = {name: getattr(self.transitions, name) for name in (*VECTOR_COLUMNS, *VALUE_COLUMNS)}
        return {name: (c.amin(0).cpu().numpy(), c.amax(0).cpu().numpy()) for name, c in columns.items()}

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the content: equal for the same transitions from any file format.

        SHA-256 over name, type, shape and little-endian bytes of every column of `TransitionBatch` in
        order, 64 hexadecimal digits. Task and source are not part of it.
        """
        digest = hashlib.sha256()
        for name in COLUMNS:
            values = getattr(self.transitions, name).detach().cpu().contiguous().numpy()
            values = values.astype(values.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{name}:{values.dtype.name}:{values.shape};".encode())
            digest.update(values.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def select_episodes(self, index: torch.Tensor) -> "TransitionDataset":
        """Keep some episodes; the new dataset numbers them anew, from 0.

        Args:
            index: (K,) int64 positions in the episode table in the wanted order, or (E,) bool mask.

        Raises:
            ValueError: the index is empty, or a mask of the wrong length.
            IndexError: a position is outside [0, E).
        """
        if index.dtype == torch.bool:
            if len(index) != self.num_episodes:
                raise ValueError(f"the mask has {len(index)} entries for {self.num_episodes} episodes")
            index = torch.nonzero(index).flatten()
        if index.numel() == 0:
            raise ValueError(f"{self.source}: no episode selected; a dataset needs at least one")
        rows, episode_index, frame_index = self.episodes.rows(index)
        return TransitionDataset(
            transitions=self.transitions.gather(rows),
            episode_index=episode_index,
            frame_index=frame_index,
            task=self.task,
            source=self.source,
            action_range=self.action_range,
        )


def _owned_tensor(values: np.ndarray, raw: np.ndarray | None) -> torch.Tensor:
    # Arrays from Arrow are views of read-only (often memory-mapped) buffers, arrays from a caller may
    # change later: copy once, unless the checks have made a new array already.
    if not values.flags.writeable or (raw is not None and np.may_share_memory(values, raw)):
        values = values.copy()
    return torch.from_numpy(values)


def describe_briefly(dataset: Any) -> str:
    """What a dataset, in memory or streamed, shows of itself: source, sizes, ranges, cost limits."""
    episodes, task = dataset.episodes, dataset.task
    lines = [
        f"{type(dataset).__name__}: {dataset.source}",
        f"  {len(dataset)} transitions, observation of {dataset.observation_dim}, action of "
        f"{dataset.action_dim}, task {task.name if task else 'unknown'}",
        f"  {episodes!r}",
    ]
    for limit in episodes.usual_cost_limits(task):
        share = (episodes.cost_return <= limit).double().mean().item()
        best = episodes.best_return_within(limit)
        found = "" if best is None else f", best return {best:.4g}"
        lines.append(f"  within cost limit {limit:g}: {share:.0%} of the episodes{found}")
    return "\n".join(lines)
