"""The books of a controller: steps done and cost spent, by environment, episode and budget.

Shipped as a part of `pipeline.py`, and used where there is no torch, so it needs only NumPy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spi_diffusers.pipelines.values import LARGEST, as_number, as_plain, shown, to_numpy, without_one

AUTORESETS = ("disabled", "next_step", "same_step")
#: What an environment is doing: it has not begun; acts; has ended; will be reset by the next step.
NEW, ACTIVE, ENDED, RESETTING = range(4)


class Ledger:
    """Counts K costs for N environments. A budget is for one episode, or for several in a row.

    Args:
        cost_limit: Limit of a budget; see `numbers`.
        num_envs: Number N of environments.
        episodes: Episodes that a budget is for.
        max_episode_steps: Steps of an episode, at most.
        autoreset: What a vector environment does after an end: the name of one of Gymnasium's modes, or it.
        cost_names: Names of the costs.

    Attributes:
        limit: Of each environment and cost, (N, K).
        before: Costs of its budget in episodes before this one, (N, K).
        spent: Costs in this episode, (N, K).
        phase: What it is doing, (N,) like all that follow.
        steps: Done in this episode.
        episode: Number of the episode in its budget.
        silent: Whether it ended by its number of steps, and did not say so.
        whole: Whether no episode of the budget was given up.
        observed: Whether a cost of the budget was observed.
        estimated: Whether a cost of the budget was estimated.
        mattered: Whether a smaller scale might have changed an action under this budget.
        finished: How many budgets with observed costs have come to their end.
        exceeded: How many of these were exceeded, by any of the costs.

    Raises:
        ValueError: An argument is out of its range.
    """

    ARRAYS = (
        *("limit", "phase", "before", "spent", "steps", "episode", "silent", "whole"),
        *("observed", "estimated", "mattered"),
    )

    def __init__(
        self,
        cost_limit: Any,
        num_envs: Any,
        episodes: Any,
        max_episode_steps: Any,
        autoreset: Any,
        cost_names: Sequence[str] = ("cost",),
    ) -> None:
        self.cost_names = tuple(cost_names)
        self.num_envs: int = as_number("num_envs", num_envs, 1, whole=True)
        self.episodes: int = as_number("episodes", episodes, 1, whole=True)
        self.max_episode_steps: int = as_number("max_episode_steps", max_episode_steps, 1, whole=True)
        mode = getattr(autoreset, "name", autoreset)
        if not isinstance(mode, str) or mode.lower() not in AUTORESETS:
            raise ValueError(f"autoreset must be one of {AUTORESETS}, got {shown(autoreset)}.")
        self.autoreset = mode.lower()
        self.limit = self.numbers("cost_limit", cost_limit)
        self.phase = np.full(self.num_envs, NEW)
        self.before, self.spent = np.zeros((2, self.num_envs, len(self.cost_names)))
        self.steps, self.episode = np.zeros((2, self.num_envs), dtype=np.int64)
        self.silent, self.whole, self.observed, self.estimated, self.mattered = np.zeros(
            (5, self.num_envs), dtype=bool
        )
        self.finished = self.exceeded = 0

    @property
    def total(self) -> np.ndarray:
        """Costs spent of each budget, (N, K)."""
        return self.before + self.spent

    @property
    def left(self) -> np.ndarray:
        """What the rest of each episode may cost, (N, K); negative once it has cost too much."""
        return (self.limit - self.before) / (self.episodes - self.episode)[:, None] - self.spent

    @property
    def over(self) -> np.ndarray:
        """Whether more was spent than a limit."""
        return np.any(self.total > self.limit, axis=1)

    def check_turn(self) -> np.ndarray:
        """Whose episodes go on; RuntimeError: there is nothing to act in, or more steps than there are."""
        if (new := self.phase == NEW).any():
            raise RuntimeError(f"{self.names(new)} has no episode yet: call reset first.")
        if self.silent.any():
            raise RuntimeError(
                f"{self.names(self.silent)} has done the {self.max_episode_steps} steps of an episode: call "
                "reset, or make the controller with max_episode_steps=... if episodes are longer."
            )
        if (self.phase == ENDED).all():
            raise RuntimeError("The episode has ended: call reset.")
        return self.phase == ACTIVE

    def record(
        self, acted: np.ndarray, costs: np.ndarray, ended: np.ndarray, *, estimated: bool
    ) -> tuple[int, int]:
        """Count a step of the environments that acted; what `_judge` says of the budgets that it ended."""
        resetting = self.phase == RESETTING
        self.spent[acted] += costs[acted]
        self.steps += acted
        (self.estimated if estimated else self.observed)[acted] = True
        is_over = acted & (ended | (self.steps >= self.max_episode_steps))
        judged = (0, 0)
        if is_over.any():
            self.phase[is_over] = ENDED
            self.silent |= is_over & ~ended
            judged = self._judge(is_over & (self.episode + 1 == self.episodes))
            if self.autoreset == "next_step":
                self.phase[is_over & ended] = RESETTING
            elif self.autoreset == "same_step":
                self._begin(is_over & ended)
        if resetting.any():
            self._begin(resetting)
        return judged

    def reset(self, chosen: np.ndarray, limit: np.ndarray | None) -> tuple[int, int]:
        """Begin an episode; with a limit, of a new budget. What `_judge` says of budgets that this ended."""
        renewed = chosen if limit is not None else np.zeros_like(chosen)
        given_up = chosen & (self.phase == ACTIVE)
        is_last = self.episode + 1 == self.episodes
        self.whole &= ~(given_up | (renewed & ~is_last))
        judged = self._judge((given_up & is_last) | (renewed & (given_up | ~is_last)))
        if limit is not None:
            self.limit = np.where(chosen[:, None], limit, self.limit)
        self._begin(chosen, renewed)
        return judged

    def set_limit(self, chosen: np.ndarray, limit: np.ndarray) -> None:
        """Change limits; ValueError: one is below what is spent."""
        goes_on = (self.phase == ACTIVE) | (self.episode + 1 < self.episodes)
        below = (chosen & goes_on)[:, None] & (limit < self.total)
        if below.any():
            place = np.unravel_index(below.argmax(), below.shape)
            raise ValueError(
                f"cost_limit {limit[place]:g} is below what {self.names(below.any(axis=1))} spent, "
                f"{self.total[place]:g}, so it is broken already: begin a new budget by "
                "reset(cost_limit=...)."
            )
        self.limit = np.where(chosen[:, None], limit, self.limit)

    def _begin(self, rows: np.ndarray, renewed: np.ndarray | None = None) -> None:
        """Begin an episode; of a new budget where the old one had its episodes, or is `renewed`."""
        is_new = rows & ((self.phase == NEW) | (self.episode + 1 == self.episodes))
        is_new = is_new if renewed is None else is_new | renewed
        self.before = np.where(is_new[:, None], 0.0, np.where(rows[:, None], self.total, self.before))
        self.episode = np.where(is_new, 0, self.episode + rows)
        self.phase[rows], self.spent[rows], self.steps[rows], self.silent[rows] = ACTIVE, 0.0, 0, False
        self.whole |= is_new
        for flags in (self.observed, self.estimated, self.mattered):
            flags[is_new] = False

    def _judge(self, rows: np.ndarray) -> tuple[int, int]:
        """How many budgets that came to their end were exceeded; and how many not, though the scale mattered.

        Those with estimated costs are left out, and those that were given up before they were exceeded.
        """
        over = self.over
        known = rows & self.observed & ~self.estimated & (self.whole | over)
        exceeded = int((known & over).sum())
        self.finished += int(known.sum())
        self.exceeded += exceeded
        return exceeded, int((known & ~over & self.mattered).sum())

    def mask(self, name: str, value: Any) -> np.ndarray:
        """Yes or no for each environment, from one of them or (N,)."""
        mask = to_numpy(value)
        if mask.dtype.kind != "b" or mask.shape not in ((), (self.num_envs,)):
            many = "" if self.num_envs == 1 else f", or {self.num_envs} of these"
            raise ValueError(f"{name} must be true or false{many}; got {shown(value)}.")
        return mask if mask.ndim else np.full(self.num_envs, mask)

    def numbers(self, name: str, value: Any, rows: np.ndarray | None = None) -> np.ndarray:
        """A number of at least 0 for each environment and cost, (N, K) float64; only `rows` are checked.

        For one cost from a number or (N,); for several from (K,), (N, K), or by name one of the former of
        each.
        """
        if isinstance(value, Mapping):
            if value.keys() != set(self.cost_names):
                there = ", ".join(self.cost_names)
                raise ValueError(f"{name} must name the costs {there}, got {shown(list(value))}.")
            each = [self._one_each(f"{name}[{cost!r}]", value[cost]) for cost in self.cost_names]
            numbers = np.stack(each, axis=1)
        elif len(self.cost_names) == 1:
            numbers = self._one_each(name, value)[:, None]
        else:
            array, shape = to_numpy(value), (self.num_envs, len(self.cost_names))
            if array.dtype.kind not in "iuf" or array.shape not in (shape[1:], shape):
                kinds = f"{shape[1]} numbers, of the costs {', '.join(self.cost_names)}"
                raise ValueError(f"{name} must be {kinds}, or {shape} of them; got {shown(as_plain(value))}.")
            numbers = np.broadcast_to(array, shape).astype(np.float64)
        good = (numbers >= 0) & (numbers <= LARGEST)
        if not (good if rows is None else good[rows]).all():
            raise ValueError(f"{name} must be finite and not negative; got {shown(as_plain(value))}.")
        return numbers

    def _one_each(self, name: str, value: Any) -> np.ndarray:
        """A number for each environment, from one or (N,); float64."""
        array = to_numpy(value)
        if array.dtype.kind not in "iuf" or array.shape not in ((), (self.num_envs,)):
            many = "" if self.num_envs == 1 else f", or one for each of {self.num_envs} environments"
            raise ValueError(f"{name} must be a number{many}; got {shown(as_plain(value))}.")
        return array.astype(np.float64) if array.ndim else np.full(self.num_envs, array, np.float64)

    def names(self, rows: np.ndarray) -> str:
        """What messages call some of the environments."""
        if self.num_envs == 1:
            return "the environment"
        chosen = np.flatnonzero(rows)
        more = f" and {len(chosen) - 1} more" if len(chosen) > 1 else ""
        return f"environment {chosen[0]}{more}"

    def state_dict(self) -> dict[str, Any]:
        """All that changes, as JSON holds it."""
        arrays = {name: self._plain(name).tolist() for name in self.ARRAYS}
        return {**arrays, "finished": self.finished, "exceeded": self.exceeded}

    def _plain(self, name: str) -> np.ndarray:
        """An array as a state holds it: of one cost (N,)."""
        values: np.ndarray = getattr(self, name)
        return without_one(values) if values.ndim > 1 else values

    def restored(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes that a `state_dict` says; ValueError: it is none of so many environments."""
        known: dict[str, Any] = {
            name: as_array(name, state[name], self._plain(name)).reshape(getattr(self, name).shape)
            for name in self.ARRAYS
        }
        for name in ("finished", "exceeded"):
            known[name] = as_number(name, state[name], 0, whole=True)
        for name, beyond in (("phase", RESETTING + 1), ("episode", self.episodes)):
            if (known[name] >= beyond).any():
                raise ValueError(f"{name} in the state must lie below {beyond}, got {shown(state[name])}.")
        return known


def as_array(name: str, values: Any, like: np.ndarray) -> np.ndarray:
    """An entry of a state as an array like another one; ValueError: it cannot be."""
    kind = like.dtype.kind
    try:
        array = np.asarray(values)
        good = array.shape == like.shape and array.dtype.kind in ("iuf" if kind == "f" else kind)
        good = good and (kind == "b" or bool(((array >= 0) & (array <= LARGEST)).all()))
    except ValueError:  # lists of several lengths
        good = False
    if not good:
        what = {"b": "true or false", "i": "whole numbers of at least 0", "f": "numbers of at least 0"}[kind]
        raise ValueError(f"{name} in the state must be {like.size} times {what}; got {shown(values)}.")
    return array.astype(like.dtype)
