"""Transitions as contiguous tensors: the form in which every data source reaches the algorithms."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch

from spi_diffusers.data.actions import ActionRange
from spi_diffusers.data.columns import COLUMNS, VALUE_COLUMNS, VECTOR_COLUMNS, ColumnChecker, DatasetError
from spi_diffusers.data.costs import COST, check_cost_names, summed_costs
from spi_diffusers.data.episodes import EpisodeTable
from spi_diffusers.data.tasks import Task
from spi_diffusers.messages import shown_limit

__all__ = ["DatasetError", "EpisodeTable", "TransitionBatch", "TransitionDataset"]


@dataclass(frozen=True)
class TransitionBatch:
    """N transitions; row i of every tensor belongs to the same step.

    Attributes:
        observation: (N, O) float32, in the simulator's own units.
        next_observation: (N, O) float32, what the step led to (never the first one of the next episode).
        action: (N, A) float32, in [-1, 1] for DSRL tasks.
        reward: (N,) float32.
        cost: (N,) float32, at least 0; of several costs the sum, each in its own unit.
        terminated: (N,) bool, the task itself ended: the bootstrap is cut here.
        truncated: (N,) bool, the episode was stopped from outside (time limit): the bootstrap is not cut.
        costs: (N, K) float32, each of K costs as logged; by default the one of `cost`.
    """

    observation: torch.Tensor
    next_observation: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    cost: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    costs: torch.Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.costs is None:
            object.__setattr__(self, "costs", self.cost.unsqueeze(-1))
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of a transition batch differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.reward)

    def __repr__(self) -> str:
        sizes = f"observation of {self.observation.shape[1]}, action of {self.action.shape[1]}"
        return f"TransitionBatch: {len(self)} transitions, {sizes}, on {self.reward.device}"

    def gather(self, index: torch.Tensor) -> "TransitionBatch":
        """Take rows by index, (B,) int64 on the data's device; an index outside [0, N) is an IndexError."""
        return TransitionBatch(*(getattr(self, field.name).index_select(0, index) for field in fields(self)))

    def recorded(self, name: str) -> torch.Tensor:
        """One of `COLUMNS` as files hold it: several costs side by side, (N, K)."""
        column: torch.Tensor = getattr(self, "costs" if name == "cost" and self.costs.shape[1] > 1 else name)
        return column


assert tuple(f.name for f in fields(TransitionBatch)) == (*COLUMNS, "costs"), "read() relies on the order"


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
        cost_names: of its costs.
    """

    transitions: TransitionBatch
    episode_index: torch.Tensor
    frame_index: torch.Tensor
    task: Task | None = None
    source: str = field(default="memory")
    action_range: ActionRange | None = None
    cost_names: tuple[str, ...] = (COST,)

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
        cost_names: Sequence[str] | None = None,
    ) -> "TransitionDataset":
        """Check columns and put them into contiguous tensors.

        Args:
            columns: arrays by column name: `observation`, `next_observation` (N, O), `action` (N, A),
                `reward`, `cost`, `terminated`, `truncated` (N,) or (N, 1), several costs (N, K); optionally
                `episode_index` and `frame_index` (N,), which must agree with the episode ends.
            task: fixes the dimensions and the action range [-1, 1], where given.
            source: what to call the data in messages.
            names: how the source calls a column, for messages, where that differs.
            clip_actions: clip actions outside [-1, 1] instead of refusing them. Excesses of up to 1e-3
                are rounding and always clipped.
            action_range: range of the environment's actions, where it is known and there is no task.
            cost_names: of several costs; by default `cost_0` and so on.

        Returns:
            The dataset; tensors own their memory.

        Raises:
            DatasetError: a column is missing, not numeric, of a wrong shape or length, or holds NaN or
                infinite values, a negative cost, or an action outside the range; there are zero rows or
                no episode ends; the index columns disagree with the ends, the range is that of no such
                actions, or the names are not those of so many costs.
        """
        raw = {name: np.asarray(values) for name, values in columns.items()}
        clean = ColumnChecker(source, names).clean(raw, task, clip_actions=clip_actions)
        if action_range is not None:
            action_range.check(source, clean["action"].shape[1])
        tensors = {name: _owned_tensor(values, raw.get(name)) for name, values in clean.items()}
        names_of_costs: tuple[str, ...] = (COST,)
        if tensors["cost"].ndim > 1:
            tensors |= {"costs": tensors["cost"], "cost": torch.from_numpy(summed_costs(clean["cost"]))}
            count = tensors["costs"].shape[1]
            names_of_costs = check_cost_names(
                cost_names or [f"{COST}_{k}" for k in range(count)], count, source
            )
        return cls(
            transitions=TransitionBatch(
                **{name: tensors[name] for name in (*COLUMNS, "costs") if name in tensors}
            ),
            episode_index=tensors["episode_index"],
            frame_index=tensors["frame_index"],
            task=task,
            source=source,
            action_range=action_range,
            cost_names=names_of_costs,
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
            total = torch.zeros(len(ends), *values.shape[1:], dtype=torch.float64, device=values.device)
            return total.index_add_(0, self.episode_index, values.double())

        return EpisodeTable(
            episode_index=torch.arange(len(ends), device=ends.device),
            start=start,
            length=ends - start + 1,
            return_=sum_per_episode(self.transitions.reward),
            cost_return=sum_per_episode(self.transitions.cost),
            terminated=self.transitions.terminated[ends],
            cost_returns=sum_per_episode(self.transitions.costs),
        )

    def first_observations(self) -> torch.Tensor:
        """First observations of the episodes, (E, O)."""
        return self.transitions.observation[self.episodes.start]

    @cached_property
    def extremes(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Smallest and largest value of each column of numbers: (D,) of vectors, () of reward and cost.

        Of several costs (K,).
        """
        columns = {name: self.transitions.recorded(name) for name in (*VECTOR_COLUMNS, *VALUE_COLUMNS)}
        return {name: (c.amin(0).cpu().numpy(), c.amax(0).cpu().numpy()) for name, c in columns.items()}

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of the content: equal for the same transitions from any file format.

        SHA-256 over name, type, shape and little-endian bytes of every column of `TransitionBatch` in
        order, 64 hexadecimal digits. Task and source are not part of it.
        """
        digest = hashlib.sha256()
        for name in COLUMNS:
            values = self.transitions.recorded(name).detach().cpu().contiguous().numpy()
            values = values.astype(values.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{name}:{values.dtype.name}:{values.shape};".encode())
            digest.update(values.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def with_costs(self, costs: Mapping[str, np.ndarray]) -> "TransitionDataset":
        """The same transitions with other costs, each (N,), by name.

        Raises:
            DatasetError: as `from_columns`.

        Examples:
            >>> energy = data.transitions.action.square().sum(dim=1).numpy()
            >>> data.with_costs({"cost": data.transitions.cost.numpy(), "energy": energy})
        """
        columns = {name: getattr(self.transitions, name).cpu().numpy() for name in COLUMNS}
        columns["cost"] = np.stack([np.asarray(values) for values in costs.values()], axis=1)
        how: dict[str, Any] = {"task": self.task, "source": self.source, "action_range": self.action_range}
        return TransitionDataset.from_columns(columns, cost_names=list(costs), **how)

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
            cost_names=self.cost_names,
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
        share = episodes.keep(limit).double().mean().item()
        best = episodes.best_return_within(limit)
        found = "" if best is None else f", best return {best:.4g}"
        lines.append(f"  within cost limit {shown_limit(limit)}: {share:.0%} of the episodes{found}")
    return "\n".join(lines)
