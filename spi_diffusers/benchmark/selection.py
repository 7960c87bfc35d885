"""Which entries of a results file belong to which table or figure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spi_diffusers.benchmark.statistics import AlgorithmStatistics, algorithm_statistics
from spi_diffusers.benchmark.suites import systems_of
from spi_diffusers.data.tasks import TASKS, get_task
from spi_diffusers.evaluation.results import DivergedRun, EvaluationEntry
from spi_diffusers.evaluation.summary import keeps_limit

#: What tables call the systems.
TITLES = {
    "spi": "safe SPI",
    "spi-paper": "SPI",
    "spi-paper-no-safety": "SPI except Q^c'",
    "spi-paper-no-reward": "SPI except Q^r",
    "bc": "BC",
    "bc-safe": "BC-Safe",
    "bcq-lag": "BCQ-Lag",
    "bear-lag": "BEAR-Lag",
    "cpq": "CPQ",
    "coptidice": "COptiDICE",
    "diffusion-ql": "Diffusion-QL",
}
_DRAWN = re.compile(r"spi-eta([\d.]+)-mu([\d.]+)-phi([\d.]+)(?:@(\d+))?")


@dataclass(frozen=True)
class TableData:
    """What a table of the paper, or its figures of averages, is made from.

    Attributes:
        suite: "table1" or "table2".
        systems: Names of the systems that have results, in the order of the table.
        tasks: DSRL's names of the tasks that have results, in DSRL's order.
        entries: By (task, system): one entry per training seed, at the task's smallest limit.
        diverged: Runs that diverged.
    """

    suite: str
    systems: tuple[str, ...]
    tasks: tuple[str, ...]
    entries: dict[tuple[str, str], list[EvaluationEntry]]
    diverged: tuple[DivergedRun, ...]

    def diverged_of(self, task: str, system: str) -> int:
        """Number of a system's runs on a task that diverged."""
        limit = float(get_task(task).cost_limits[0])
        return sum(
            (run.task, run.algorithm) == (task, system) and run.cost_limit in (None, limit)
            for run in self.diverged
        )

    def best_safe(self, task: str) -> str | None:
        """Of the systems that keep a task's limit, see `best_safe`, the one with the most reward."""
        groups = {system: self.entries.get((task, system), []) for system in self.systems}
        return best_safe(groups, {system: self.diverged_of(task, system) for system in self.systems})

    @property
    def common_tasks(self) -> tuple[str, ...]:
        """The tasks on which every system has results: averages over others would not compare."""
        return tuple(t for t in self.tasks if all((t, system) in self.entries for system in self.systems))

    @property
    def left_out(self) -> dict[str, list[str]]:
        """The other tasks, and which systems have no results there."""
        common = self.common_tasks
        return {
            task: [system for system in self.systems if (task, system) not in self.entries]
            for task in self.tasks
            if task not in common
        }

    def statistics(self) -> list[AlgorithmStatistics]:
        """Every system over the common tasks; empty where there are none."""
        common = self.common_tasks
        if not common:
            return []
        return [
            algorithm_statistics([e for task in common for e in self.entries[task, system]], self.diverged)
            for system in self.systems
        ]


@dataclass(frozen=True)
class CurveData:
    """Learning curves of one draw of (eta, mu, phi).

    Attributes:
        weights: (eta, mu, phi).
        points: By share of the training that is done, in (0, 1]: an entry per task and training seed. Tasks
            are trained for different numbers of updates.
        diverged: Number of training runs of this draw that diverged; they have no points.
    """

    weights: tuple[float, float, float]
    points: dict[float, list[EvaluationEntry]]
    diverged: int = 0

    @property
    def finished_tasks(self) -> set[str]:
        """DSRL's names of the tasks on which it was trained to the end."""
        return {entry.task for entry in self.points.get(1.0, ())}


def common_curve_tasks(curves: Sequence[CurveData]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tasks on which all curves go to the end, and the other ones; names and order are DSRL's.

    A draw of which every run diverged is on no task, so it does not count.
    """
    finished = [curve.finished_tasks for curve in curves if curve.points]
    shared = set.intersection(*finished) if finished else set()
    present = {entry.task for curve in curves for group in curve.points.values() for entry in group}
    in_order = [name for name in TASKS if name in present]
    return tuple(t for t in in_order if t in shared), tuple(t for t in in_order if t not in shared)


def title_of(system: str) -> str:
    """What tables call a system."""
    match = _DRAWN.fullmatch(system)
    if match:
        return f"eta {match[1]}, mu {match[2]}, phi {match[3]}"
    return TITLES.get(system, system)


def best_safe(groups: Mapping[str, Sequence[EvaluationEntry]], lost: Mapping[str, int]) -> str | None:
    """The system with the highest mean reward among those whose mean cost keeps the limit.

    Args:
        groups: Each system's entries, one per training seed.
        lost: Number of its runs that diverged; a system that lost any is out.
    """
    rewards = {
        system: np.mean([entry.normalized_reward for entry in group])
        for system, group in groups.items()
        if group
        and keeps_limit(float(np.mean([entry.normalized_cost for entry in group])))
        and not lost[system]
    }
    return max(rewards, key=lambda system: rewards[system], default=None)


def table_data(
    suite: str,
    entries: Iterable[EvaluationEntry],
    diverged: Sequence[DivergedRun] = (),
    *,
    feedback: bool = True,
) -> TableData:
    """The entries of a table.

    Args:
        suite: "table1" or "table2", or "sensitivity".
        entries: All that there are.
        diverged: Runs that diverged.
        feedback: Whether safe SPI's entries are those where it is told its running cost.
    """
    systems = systems_of(suite)
    found: dict[tuple[str, str], list[EvaluationEntry]] = {}
    for entry in entries:
        system = systems.get(entry.algorithm)
        if system is None or entry.extraction not in (system.extractions or ("policy",)):
            continue
        if entry.cost_limit != get_task(entry.task).cost_limits[0]:
            continue
        if entry.extraction == "safe" and entry.feedback != feedback:
            continue
        found.setdefault((entry.task, entry.algorithm), []).append(entry)
    # A system of which every run diverged must be seen too.
    lost = {
        (run.task, run.algorithm)
        for run in diverged
        if run.algorithm in systems and run.cost_limit in (None, get_task(run.task).cost_limits[0])
    }
    present = found.keys() | lost
    return TableData(
        suite,
        tuple(name for name in systems if any(system == name for _, system in present)),
        tuple(name for name in TASKS if any(task == name for task, _ in present)),
        found,
        tuple(diverged),
    )


def statistics_not_fed_back(data: TableData, not_fed_back: TableData) -> AlgorithmStatistics | None:
    """Safe SPI where it is not told its running cost, as no baseline is, over the tasks of a table.

    Args:
        data: The table.
        not_fed_back: `table_data(..., feedback=False)` of the same results.

    Returns:
        Its statistics; None where a common task of the table lacks such results.
    """
    groups = [not_fed_back.entries.get((task, "spi"), []) for task in data.common_tasks]
    if not groups or not all(groups):
        return None
    return algorithm_statistics([entry for group in groups for entry in group], data.diverged)


def limit_entries(entries: Iterable[EvaluationEntry]) -> dict[str, list[EvaluationEntry]]:
    """By task: all systems' entries, where safe SPI and at least one more have two or more limits."""
    systems = systems_of("limits")
    by_task: dict[str, list[EvaluationEntry]] = {}
    for entry in entries:
        system = systems.get(entry.algorithm)
        if system is None or entry.extraction not in (system.extractions or ("policy",)):
            continue
        if entry.extraction == "safe" and not entry.feedback:
            continue
        by_task.setdefault(entry.task, []).append(entry)
    chosen = {}
    for task in (name for name in TASKS if name in by_task):
        limits: dict[str, set[float]] = {}
        for entry in by_task[task]:
            limits.setdefault(entry.algorithm, set()).add(entry.cost_limit)
        several = {name for name, values in limits.items() if len(values) > 1}
        if "spi" in several and len(several) > 1:
            chosen[task] = by_task[task]
    return chosen


def learning_curves(
    entries: Iterable[EvaluationEntry], diverged: Iterable[DivergedRun] = ()
) -> list[CurveData]:
    """The learning curves of the sensitivity suite, one per draw, in the order of their weights.

    A point of a task holds what is done of the longest training that the task has. A draw of which every
    run diverged has no points.
    """
    drawn: dict[tuple[float, float, float], list[EvaluationEntry]] = {}
    for entry in entries:
        weights = _weights_of(entry.algorithm)
        if weights:
            drawn.setdefault(weights, []).append(entry)
    lost = [weights for run in diverged if (weights := _weights_of(run.algorithm))]
    for weights in lost:
        drawn.setdefault(weights, [])
    last: dict[str, int] = {}
    for entry in (entry for group in drawn.values() for entry in group):
        last[entry.task] = max(last.get(entry.task, 0), entry.updates)
    curves = []
    for weights in sorted(drawn):
        points: dict[float, list[EvaluationEntry]] = {}
        for entry in drawn[weights]:
            points.setdefault(round(entry.updates / max(last[entry.task], 1), 2), []).append(entry)
        curves.append(CurveData(weights, dict(sorted(points.items())), lost.count(weights)))
    return curves


def _weights_of(algorithm: str) -> tuple[float, float, float] | None:
    match = _DRAWN.fullmatch(algorithm)
    return (float(match[1]), float(match[2]), float(match[3])) if match else None
