"""Which cells a suite consists of: (task, system, cost limit it is trained for, training seed).

No torch is imported here, so that a wrong name is reported at once.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from spi_diffusers.config.algorithms import BASELINES
from spi_diffusers.config.layers import list_presets
from spi_diffusers.data.tasks import TASKS, Task, get_task

SUITES = {
    "table1": "SPI, safe SPI and the baselines at the task's smallest limit (Table 1, Figures 4 and 5)",
    "table2": "the paper's SPI and its two ablations (Table 2, Figures 6 and 7)",
    "sensitivity": "random draws of eta, mu and phi, evaluated along training (Figures 8 and 9)",
    "limits": "one SPI against every baseline trained per limit, at all limits of the task",
}
#: Evaluation episodes must not depend on the training seed in a way that could be tuned to.
EVALUATION_SEED_OFFSET = 1000
#: Points of a learning curve, the end of training included.
CURVE_POINTS = 10
#: What the draws of Figures 8 and 9 follow from; the paper does not say what it drew.
DRAW_SEED, DRAWS = 2026, 3
#: Algorithms whose training does not depend on the cost limit: trained once, measured at every limit.
LIMIT_FREE = {"spi", "bc", "diffusion-ql"}
_PAPER_SYSTEMS = ("spi-paper", "spi-paper-no-safety", "spi-paper-no-reward")


class UnknownNameError(ValueError):
    """There is no suite or algorithm of this name."""


@dataclass(frozen=True)
class System:
    """Something that a table compares: an algorithm with the settings that make it.

    Attributes:
        name: What results call it.
        settings: Options of `spi train`, with dotted keys.
        extractions: How it acts: "safe" and / or "reward"; empty: it knows one way.
        per_limit: Whether a policy is trained for one cost limit.
        curve: Whether checkpoints along training are evaluated too.
        without_feedback: Whether safe extraction is played once more without being told the running cost,
            as no baseline is.
    """

    name: str
    settings: Mapping[str, Any]
    extractions: tuple[str, ...] = ()
    per_limit: bool = False
    curve: bool = False
    without_feedback: bool = False


@dataclass(frozen=True)
class Evaluation:
    """One way of playing a trained policy.

    Attributes:
        extraction: "safe", "reward", or "policy" for a baseline's only way.
        cost_limit: Limit on the cost of an episode.
        episodes: Number of episodes.
        feedback: Whether the policy is told its running cost; only safe extraction takes it.
    """

    extraction: str
    cost_limit: float
    episodes: int
    feedback: bool = False


@dataclass(frozen=True)
class Cell:
    """One training run and how it is evaluated.

    Attributes:
        task: Short name of the task.
        system: What results call the algorithm.
        train_limit: Cost limit that it is trained for, or None.
        seed: Training seed.
        settings: Options of `spi train` with dotted keys, task and seed included.
        evaluations: What is played after training.
        curve_points: Evaluations along training, the last one included; 1: only at the end.
    """

    task: str
    system: str
    train_limit: float | None
    seed: int
    settings: dict[str, Any] = field(hash=False)
    evaluations: tuple[Evaluation, ...]
    curve_points: int = 1

    @property
    def folder(self) -> str:
        """Where it lies below the benchmark's folder."""
        limit = "" if self.train_limit is None else f"-limit{self.train_limit:g}"
        return f"runs/{self.task}/{self.system}{limit}/seed{self.seed}"

    def __str__(self) -> str:
        limit = "" if self.train_limit is None else f" for limit {self.train_limit:g}"
        return f"{self.task}, {self.system}{limit}, seed {self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Cell":
        """What `to_dict` came from; TypeError, KeyError or ValueError where it came from elsewhere."""
        evaluations = tuple(Evaluation(**each) for each in values["evaluations"])
        return cls(**{**values, "evaluations": evaluations})


def simplex_draws(count: int = DRAWS, seed: int = DRAW_SEED) -> list[tuple[float, float, float]]:
    """Random (eta, mu, phi), uniform on the simplex eta + mu + phi = 1, to two decimals.

    Args:
        count: How many.
        seed: Decides them.

    Returns:
        Triples of numbers of at least 0 that sum to 1 exactly, in hundredths.
    """
    draws = []
    for eta, mu, _ in np.random.default_rng(seed).dirichlet(np.ones(3), size=count):
        hundredths = round(100 * eta), round(100 * mu)
        hundredths = hundredths[0], min(hundredths[1], 100 - hundredths[0])  # both rounded up past the sum
        draws.append((hundredths[0] / 100, hundredths[1] / 100, (100 - sum(hundredths)) / 100))
    return draws


def systems_of(suite: str) -> dict[str, System]:
    """The systems of a suite by name, in the order of its table.

    Raises:
        UnknownNameError: There is no such suite.
    """
    paper = {name: _paper_system(name) for name in _PAPER_SYSTEMS}
    spi = System("spi", {}, ("safe",))
    baselines = {name: _baseline(name) for name in BASELINES}
    if suite == "table1":
        return {"spi": replace(spi, without_feedback=True), "spi-paper": paper["spi-paper"], **baselines}
    if suite == "table2":
        return paper
    if suite == "sensitivity":
        drawn = [_drawn_system(*weights) for weights in simplex_draws()]
        return {system.name: system for system in drawn}
    if suite == "limits":
        return {"spi": spi, **baselines}
    raise UnknownNameError(_unknown("suite", suite, list(SUITES)))


def paper_tasks() -> list[str]:
    """Short names of the paper's eight tasks."""
    return [task.short_name for task in TASKS.values() if task.paper]


def make_cells(
    suites: Iterable[str],
    *,
    tasks: Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    episodes: int = 20,
    updates: Mapping[str, int] | None = None,
    datasets: Mapping[str, str] | None = None,
) -> list[Cell]:
    """The cells of one or more suites, each training once, in the order in which they are run.

    Args:
        suites: Names of suites.
        tasks: Tasks; None takes the paper's eight.
        algorithms: Names of systems; None takes all of each suite.
        seeds: Training seeds.
        episodes: Episodes per seed and limit.
        updates: Training updates by system; the key "" is for all others; without it the preset's.
        datasets: `--dataset` by task's short name; the key "" is for all others; without it the data in the
            package.

    Raises:
        UnknownNameError: There is no such suite or algorithm.
        UnknownTaskError: There is no such task.
        ValueError: A list is empty, or a number is out of its range.
    """
    chosen = [get_task(name) for name in (paper_tasks() if tasks is None else tasks)]
    updates, datasets = dict(updates or {}), dict(datasets or {})
    suites = list(dict.fromkeys(suites))
    for what, values in (("suite", suites), ("task", chosen), ("seed", seeds)):
        if not values:
            raise ValueError(f"no {what} is given: give at least one.")
    if min(seeds) < 0:
        raise ValueError(f"seeds must be at least 0, got {min(seeds)}.")
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}.")
    available = {suite: systems_of(suite) for suite in suites}
    known = list(dict.fromkeys(name for systems in available.values() for name in systems))
    for name in [*(algorithms or []), *(name for name in updates if name)]:
        if name not in known:
            raise UnknownNameError(_unknown("algorithm", name, known))
    for name in datasets:
        if name:
            get_task(name)
    datasets = {name and get_task(name).short_name: value for name, value in datasets.items()}
    cells: dict[str, Cell] = {}
    # Seed by seed, so that a comparison with few seeds is there early.
    for seed in dict.fromkeys(seeds):
        for task in dict.fromkeys(chosen):
            for suite, systems in available.items():
                for system in systems.values():
                    if algorithms and system.name not in algorithms:
                        continue
                    for cell in _cells_of(suite, system, task, seed, episodes, updates, datasets):
                        _add(cells, cell)
    return list(cells.values())


def _cells_of(
    suite: str,
    system: System,
    task: Task,
    seed: int,
    episodes: int,
    updates: Mapping[str, int],
    datasets: Mapping[str, str],
) -> Iterable[Cell]:
    limits = [float(limit) for limit in task.cost_limits]
    limits = limits if suite == "limits" else limits[:1]
    settings: dict[str, Any] = {"task": task.short_name, "seed": seed, **system.settings}
    count = updates.get(system.name, updates.get(""))
    if count is not None:
        settings["updates"] = count
    dataset = datasets.get(task.short_name, datasets.get(""))
    if dataset is not None:
        settings["dataset"] = dataset
    ways = [(extraction, extraction == "safe") for extraction in system.extractions or ("policy",)]
    ways += [("safe", False)] if system.without_feedback else []
    for train_limit in limits if system.per_limit else [None]:
        measured = limits if train_limit is None else [train_limit]
        yield Cell(
            task=task.short_name,
            system=system.name,
            train_limit=train_limit,
            seed=seed,
            settings=settings | ({} if train_limit is None else {"cost_limit": train_limit}),
            evaluations=tuple(Evaluation(e, limit, episodes, fed) for e, fed in ways for limit in measured),
            curve_points=CURVE_POINTS if system.curve else 1,
        )


def _add(cells: dict[str, Cell], cell: Cell) -> None:
    """Suites share a training: its evaluations are put together."""
    known = cells.get(cell.folder)
    if known is not None:
        both = tuple(dict.fromkeys([*known.evaluations, *cell.evaluations]))
        cell = Cell(**{**vars(cell), "evaluations": both})
    cells[cell.folder] = cell


def _paper_system(preset: str) -> System:
    return System(preset, {"preset": preset.removeprefix("spi-")}, ("reward",))


def _drawn_system(eta: float, mu: float, phi: float) -> System:
    weights = {"algorithm.eta": eta, "algorithm.mu": mu, "algorithm.phi": phi}
    name = f"spi-eta{eta:.2f}-mu{mu:.2f}-phi{phi:.2f}"
    return System(name, {"preset": "paper", **weights}, ("reward",), curve=True)


def _baseline(name: str) -> System:
    settings = {"preset": name} if name in list_presets() else {"method": name}
    return System(name, settings, per_limit=name not in LIMIT_FREE)


def _unknown(what: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown {what} {name!r}; {hint}There are {', '.join(known)}."
