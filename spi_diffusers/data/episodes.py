"""The episodes of a dataset: where each begins, how long it is, what it earned and cost."""

from dataclasses import dataclass, fields

import torch

from spi_diffusers.data.costs import CostLimit
from spi_diffusers.data.tasks import Task
from spi_diffusers.messages import shown_limit


@dataclass(frozen=True)
class EpisodeTable:
    """One row per episode; all tensors but the last are (E,).

    Attributes:
        episode_index: int64, number of the episode in the dataset, from 0.
        start: int64, row of the episode's first transition.
        length: int64, number of transitions.
        return_: float64, undiscounted sum of rewards.
        cost_return: float64, undiscounted sum of costs; of several costs, of their sum.
        terminated: bool, whether the episode ended by the task itself.
        cost_returns: (E, K) float64, undiscounted sum of each of K costs; by default `cost_return`.
    """

    episode_index: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    return_: torch.Tensor
    cost_return: torch.Tensor
    terminated: torch.Tensor
    cost_returns: torch.Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.cost_returns is None:
            object.__setattr__(self, "cost_returns", self.cost_return.unsqueeze(-1))

    def __len__(self) -> int:
        return len(self.length)

    def __repr__(self) -> str:
        columns = (
            ("length", [self.length]),
            ("return", [self.return_]),
            ("cost return", self.cost_returns.T),
        )
        spreads = (
            f"{name} {' and '.join(f'{one.min():.4g} to {one.max():.4g}' for one in several)}"
            for name, several in columns
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

    def usual_cost_limits(self, task: Task | None) -> tuple[CostLimit, ...]:
        """The task's own cost limits; without a task, or of several costs, quartiles of the cost returns."""
        several = self.cost_returns.shape[1] > 1
        if task is not None and not several:
            return task.cost_limits
        quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64, device=self.cost_return.device)
        found = self.cost_returns.double().quantile(quartiles, dim=0).unique(dim=0).tolist()
        return tuple(tuple(limits) if several else limits[0] for limits in found)

    def keep(self, cost_limit: CostLimit) -> torch.Tensor:
        """Which episodes have cost returns of at most the limit, all of several costs, (E,) bool."""
        limits = self.cost_returns.new_tensor(cost_limit).reshape(-1)
        if len(limits) != self.cost_returns.shape[1]:
            raise ValueError(
                f"the data has {self.cost_returns.shape[1]} cost(s), so a cost limit needs as many numbers, "
                f"got {shown_limit(cost_limit)}"
            )
        return (self.cost_returns <= limits).all(dim=1)

    def best_return_within(self, cost_limit: CostLimit) -> float | None:
        """The largest return among the episodes that keep the limit, or None."""
        within = self.return_[self.keep(cost_limit)]
        return within.max().item() if len(within) else None
