"""Which cells a suite consists of: (task, algorithm, cost limit it is trained for, training seed).

No torch is imported here, so that a wrong name is reported at once.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from spi_diffusers.config.algorithms import ALGORITHMS, BASELINES
from spi_diffusers.data.tasks import TASKS, Task, get_task
from spi_diffusers.evaluation import BASELINE_EXTRACTION
from spi_diffusers.evaluation.entries import DivergedRun, EvaluationEntry
from spi_diffusers.files import nearest
from spi_diffusers.pipelines.allowance import DEFAULT_RISK

#: Evaluation seed = training seed + this, so evaluations never reuse training's seeds.
EVALUATION_SEED_OFFSET = 1000
#: Limits that are no task's own, as shares of its smallest one.
MORE_LIMITS = (0.5, 1.5, 3.0)
#: Training seeds, from 0, where none are named.
SEEDS = 3
#: Points of a learning curve, the end of training included.
CURVE_POINTS = 10
#: (eta, mu, phi) of Figures 8 and 9: np.random.default_rng(2026).dirichlet(np.ones(3), 3), to two decimals.
#: The paper does not say what it drew.
DRAWS = ((0.08, 0.69, 0.23), (0.25, 0.36, 0.39), (0.58, 0.01, 0.41))
#: What tables and figures call the algorithms.
TITLES = {name: entry.title for name, entry in ALGORITHMS.items()}
_DRAWN = re.compile(r"spi-eta([\d.]+)-mu([\d.]+)-phi([\d.]+)(?:@(\d+))?")

#: A way of acting: the extraction, and whether the policy is told its running cost.
Way = tuple[str, bool]
SAFE, SAFE_NOT_FED_BACK, REWARD = ("safe", True), ("safe", False), ("reward", False)
ONLY_WAY: Way = (BASELINE_EXTRACTION, False)


class UnknownNameError(ValueError):
    """There is no suite or algorithm of this name."""


@dataclass(frozen=True)
class Variant:
    """An algorithm as a suite compares it.

    Attributes:
        name: What results call it.
        settings: Options of `spi train`, with dotted keys.
        ways: How it acts; the first is what tables show.
        per_limit: Whether a policy is trained for each cost limit, instead of one for all.
        curve: Whether checkpoints along training are evaluated too.
    """

    name: str
    settings: Mapping[str, Any]
    ways: tuple[Way, ...] = (ONLY_WAY,)
    per_limit: bool = False
    curve: bool = False

    def way(self, feedback: bool = True) -> Way:
        """How tables show it; without feedback where that is asked for and it acts so, too."""
        return SAFE_NOT_FED_BACK if not feedback and SAFE_NOT_FED_BACK in self.ways else self.ways[0]


@dataclass(frozen=True)
class Suite:
    """What is compared, in the order of the table.

    Attributes:
        variants: The algorithms.
        limits: At which limits of a task it is measured: the smallest, all that the task names, or more that
            nothing in the data was built around.
        risks: Further risks at the limits that the task names, where the running cost is fed back.
        more_tasks: Short names of tasks beside the paper's eight.

    Raises:
        ValueError: One of the risks is the usual one, which is played anyway.
    """

    variants: tuple[Variant, ...]
    limits: Literal["smallest", "all", "more"] = "smallest"
    risks: tuple[float, ...] = ()
    more_tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if DEFAULT_RISK in self.risks:
            raise ValueError(f"the risk {DEFAULT_RISK} is played anyway: a suite names further ones only.")

    def limits_of(self, task: Task) -> list[float]:
        """The limits that it is measured at, in order."""
        named = [float(limit) for limit in task.cost_limits]
        if self.limits == "smallest":
            return named[:1]
        more = [share * named[0] for share in MORE_LIMITS] if self.limits == "more" else []
        return sorted({*named, *more})


@dataclass(frozen=True)
class Evaluation:
    """One way of playing a trained policy; only safe extraction takes feedback, its running cost, and a risk.

    A risk of None is the one that a pipeline takes by itself.
    """

    extraction: str
    cost_limit: float
    episodes: int
    feedback: bool = False
    risk: float | None = None


@dataclass(frozen=True)
class Cell:
    """One training run and how it is evaluated.

    Attributes:
        task: Short name of the task.
        algorithm: What results call the algorithm.
        train_limit: Cost limit that it is trained for, or None.
        seed: Training seed.
        settings: Options of `spi train` with dotted keys, task and seed included.
        evaluations: What is played after training.
        curve_points: Evaluations along training, the last one included; 1: only at the end.
    """

    task: str
    algorithm: str
    train_limit: float | None
    seed: int
    settings: dict[str, Any] = field(hash=False)
    evaluations: tuple[Evaluation, ...]
    curve_points: int = 1

    @property
    def folder(self) -> str:
        """Where it lies below the benchmark's folder."""
        limit = "" if self.train_limit is None else f"-limit{self.train_limit:g}"
        return f"runs/{self.task}/{self.algorithm}{limit}/seed{self.seed}"

    def __str__(self) -> str:
        limit = "" if self.train_limit is None else f" for limit {self.train_limit:g}"
        return f"{self.task}, {self.algorithm}{limit}, seed {self.seed}"

    def point(self, updates: int) -> str:
        """What results call the algorithm before the end of its training: an entry per point of the curve."""
        return f"{self.algorithm}@{updates}"

    def owns(self, entry: EvaluationEntry) -> bool:
        """Whether an entry is of this training run: its end, or a point of its learning curve."""
        return (
            (entry.task, entry.train_seed) == (get_task(self.task).name, self.seed)
            and entry.algorithm in (self.algorithm, self.point(entry.updates))
            and self.train_limit in (None, entry.cost_limit)
        )

    def diverged(self, message: str) -> DivergedRun:
        """That it diverged, for the results file."""
        return DivergedRun(get_task(self.task).name, self.algorithm, self.train_limit, self.seed, message)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Cell":
        """What `to_dict` came from; TypeError, KeyError or ValueError where it came from elsewhere."""
        evaluations = tuple(Evaluation(**each) for each in values["evaluations"])
        return cls(**{**values, "evaluations": evaluations})


# ---- the suites


def _drawn(eta: float, mu: float, phi: float) -> Variant:
    weights = {"spi.eta": eta, "spi.mu": mu, "spi.phi": phi}
    name = f"spi-eta{eta:.2f}-mu{mu:.2f}-phi{phi:.2f}"
    return Variant(name, {"algorithm": "spi-paper", **weights}, (REWARD,), curve=True)


_SPI = Variant("spi", {"algorithm": "spi"}, (SAFE,))
_PAPER, *_ABLATIONS = (
    Variant(name, {"algorithm": name}, (REWARD,))
    for name in ("spi-paper", "spi-paper-no-safety", "spi-paper-no-reward")
)
_BASELINES = tuple(
    Variant(name, {"algorithm": name}, per_limit=entry.limit == "training")
    for name, entry in BASELINES.items()
)

SUITES = {
    # SPI, safe SPI and the baselines at the task's smallest limit: Table 1, Figures 4 and 5
    "table1": Suite((replace(_SPI, ways=(SAFE, SAFE_NOT_FED_BACK)), _PAPER, *_BASELINES)),
    # the paper's SPI and its two ablations: Table 2, Figures 6 and 7
    "table2": Suite((_PAPER, *_ABLATIONS)),
    # random draws of eta, mu and phi, evaluated along training: Figures 8 and 9
    "sensitivity": Suite(tuple(_drawn(*weights) for weights in DRAWS)),
    # one safe SPI against every baseline trained per limit
    "limits": Suite((_SPI, *_BASELINES), limits="all"),
    # safe SPI with feedback, without, and with the paper's extraction: results/<task>.json
    "safe": Suite(
        (replace(_SPI, ways=(SAFE, SAFE_NOT_FED_BACK, REWARD)),),
        limits="more",
        risks=(0.01, 0.2),
        more_tasks=("antrun", "antcircle", "swimmervelocity"),
    ),
}


def get_suite(name: str) -> Suite:
    """A suite by name, or UnknownNameError."""
    if name not in SUITES:
        raise _unknown("suite", name, list(SUITES))
    return SUITES[name]


def algorithms_of(suite: str) -> dict[str, Variant]:
    """The algorithms of a suite by name, in the order of its table."""
    return {variant.name: variant for variant in get_suite(suite).variants}


def weights_of(algorithm: str) -> tuple[float, float, float] | None:
    """(eta, mu, phi) of a draw of the sensitivity suite, by its name in results; None for any other name."""
    match = _DRAWN.fullmatch(algorithm)
    return (float(match[1]), float(match[2]), float(match[3])) if match else None


def title_of(algorithm: str) -> str:
    """What tables and figures call an algorithm."""
    if weights := weights_of(algorithm):
        return "eta {:.2f}, mu {:.2f}, phi {:.2f}".format(*weights)
    return TITLES.get(algorithm, algorithm)


# ---- what is chosen of them


@dataclass(frozen=True)
class BenchmarkSpec:
    """What of which suites is run.

    Attributes:
        suites: Names of suites.
        tasks: Tasks; None takes the paper's eight, and each suite's own.
        algorithms: Names of algorithms; None takes all of each suite.
        seeds: Training seeds; None takes 0 to 2.
        episodes: Episodes per seed and limit.
        updates: Training updates by algorithm; the key "" is for all others; without it the preset's.
        datasets: `--dataset` by task; the key "" is for all others; without it the data in the package.

    Raises:
        UnknownNameError: There is no such suite or algorithm.
        UnknownTaskError: There is no such task.
        ValueError: A list is empty, or a number is out of its range.
    """

    suites: Sequence[str]
    tasks: Sequence[str] | None = None
    algorithms: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    episodes: int = 20
    updates: Mapping[str, int] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, values in (("suite", self.suites), ("task", self.tasks), ("seed", self.seeds)):
            if values is not None and not values:
                raise ValueError(f"no {what} is given: give at least one.")
        if min(self.seeds or [0]) < 0:
            raise ValueError(f"seeds must be at least 0, got {min(self.seeds or [])}.")
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}.")
        known = list(dict.fromkeys(name for suite in self.suites for name in algorithms_of(suite)))
        for name in [*(self.algorithms or []), *filter(None, self.updates)]:
            if name not in known:
                raise _unknown("algorithm", name, known)
        for name in [*(self.tasks or []), *filter(None, self.datasets)]:
            get_task(name)

    def cells(self) -> list[Cell]:
        """Each training once, in the order in which they are run: suites may share some."""
        paper = [name for name, task in TASKS.items() if task.paper]
        suites = list(map(get_suite, dict.fromkeys(self.suites)))
        usual = [*paper, *(name for suite in suites for name in suite.more_tasks)]
        tasks = map(get_task, usual if self.tasks is None else self.tasks)
        cells: dict[str, Cell] = {}
        chosen = [
            (task, suite)
            for task in dict.fromkeys(tasks)
            for suite in suites
            if self.tasks is not None or task.paper or task.short_name in suite.more_tasks
        ]
        # Seed by seed, so that a comparison with few seeds is there early.
        for seed, (task, suite) in itertools.product(dict.fromkeys(self.seeds or range(SEEDS)), chosen):
            for cell in self._cells_of(suite, task, seed):
                known = cells.get(cell.folder)
                both = known.evaluations if known else ()
                evaluations = tuple(dict.fromkeys([*both, *cell.evaluations]))
                cells[cell.folder] = replace(cell, evaluations=evaluations)
        return list(cells.values())

    def _cells_of(self, suite: Suite, task: Task, seed: int) -> Iterator[Cell]:
        limits = suite.limits_of(task)
        datasets = {name and get_task(name).short_name: value for name, value in self.datasets.items()}
        for variant in suite.variants:
            if self.algorithms and variant.name not in self.algorithms:
                continue
            settings: dict[str, Any] = {"task": task.short_name, "seed": seed, **variant.settings}
            for key, values, name in (
                ("updates", self.updates, variant.name),
                ("dataset", datasets, task.short_name),
            ):
                if name in values or "" in values:
                    settings[key] = values.get(name, values.get(""))
            for train_limit in limits if variant.per_limit else [None]:
                measured = limits if train_limit is None else [train_limit]
                yield Cell(
                    task=task.short_name,
                    algorithm=variant.name,
                    train_limit=train_limit,
                    seed=seed,
                    settings=settings | ({} if train_limit is None else {"cost_limit": train_limit}),
                    evaluations=tuple(
                        Evaluation(extraction, limit, self.episodes, feedback, risk)
                        for extraction, feedback in variant.ways
                        for risk in (None, *(suite.risks if (extraction, feedback) == SAFE else ()))
                        for limit in measured
                        if risk is None or limit in task.cost_limits
                    ),
                    curve_points=CURVE_POINTS if variant.curve else 1,
                )


def _unknown(what: str, name: str, known: list[str]) -> UnknownNameError:
    hint = nearest(str(name), known) or "."
    return UnknownNameError(f"unknown {what} {name!r}{hint} There are {', '.join(known)}.")
