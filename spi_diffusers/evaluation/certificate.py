"""What is certified of a policy: bounds on what its episodes cost, for the weights that they were shown for.

`certify.py` makes certificates. No torch is imported here.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from spi_diffusers.config.validation import (
    Count,
    NotNegative,
    Number,
    Positive,
    Share,
    ShareBetween,
    Text,
    Whole,
    listed,
    settings,
)
from spi_diffusers.data.costs import CostLimit
from spi_diffusers.evaluation.bounds import mean_bound, share_bound
from spi_diffusers.evaluation.entries import (
    CostNames,
    PerCost,
    Record,
    TaskName,
    cost_margin_of,
    cost_p90,
    each,
    one_or_all,
)
from spi_diffusers.evaluation.statement import Statement
from spi_diffusers.evaluation.summary import shown, shown_share
from spi_diffusers.files import (
    CERTIFICATE_FILE,
    CHECKSUMS,
    INDEX_FILE,
    WEIGHTS_FILE,
    find_policy_folder,
    read_json,
)
from spi_diffusers.messages import decimals, shown_limit

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger(__name__)

#: What `source` is where episodes were played here; else it is the name of a file.
SIMULATOR = "simulator"


def shown_bound(share: float) -> str:
    """An upper bound on a share in percent, with one decimal: rounded up, as it must not look better."""
    return f"{shown(_up(100 * share), 1)}%"


def _figures(costs: Any, limits: CostLimit, *, up: bool = False) -> str:
    """Costs with as many decimals as their limits need, rounded up on demand; `?` where there is none."""
    digits = map(decimals, each(limits))
    return ", ".join(
        "?" if cost is None else shown(_up(cost, places) if up else cost, places)
        for cost, places in zip(each(costs), digits, strict=True)
    )


def _up(value: float, digits: int = 1) -> float:
    return math.ceil(round(10**digits * value, 6)) / 10**digits


#: Of several costs; None where there is no bound.
_Bounds = Annotated[tuple[NotNegative | None, ...], Field(min_length=2), BeforeValidator(listed)]


@settings(frozen=True)
class LimitCertificate(Record):
    """What is shown at one limit.

    Attributes:
        cost_limit: Limit on the cost of an episode; one for each of several costs, like all cost figures.
        episodes: Number of episodes.
        over: How many of them cost more than the limit, of several costs any of them.
        over_bound: Upper confidence bound on the share of all episodes that do (Clopper-Pearson, one-sided).
        cost_mean: Their mean cost.
        cost_mean_bound: Upper confidence bound on the mean cost of all episodes (by betting). None where an
            episode cost more than was thought possible.
        cost_p90: The smallest cost that 90% of the episodes stay within.
        cost_worst: The largest cost.
        reward_mean: Their mean return; None where it is not known.
    """

    cost_limit: PerCost
    episodes: Count
    over: Whole
    over_bound: Share
    cost_mean: PerCost
    cost_mean_bound: NotNegative | _Bounds | None
    cost_p90: PerCost
    cost_worst: PerCost
    reward_mean: Number | None

    @classmethod
    def from_episodes(
        cls,
        cost_limit: CostLimit,
        costs: np.ndarray,
        returns: np.ndarray | None,
        *,
        highest: CostLimit,
        confidence: float,
    ) -> "LimitCertificate":
        """Summarize episodes, costs and returns (N,), of which none can cost more than `highest`.

        Several costs are (N, K), with as many limits and highest costs.
        """
        by_cost = np.atleast_2d(costs.T)  # (K, N)
        is_over = np.greater(by_cost, np.array(each(cost_limit))[:, None])
        over = int(is_over.any(axis=0).sum())
        return cls(
            cost_limit=cost_limit,
            episodes=len(costs),
            over=over,
            over_bound=share_bound(over, len(costs), confidence),
            cost_mean=one_or_all(by_cost.mean(axis=1).tolist()),
            cost_mean_bound=one_or_all(
                _mean_bound(values, most, confidence)
                for values, most in zip(by_cost, each(highest), strict=True)
            ),
            cost_p90=one_or_all(cost_p90(by_cost)),
            cost_worst=one_or_all(by_cost.max(axis=1).tolist()),
            reward_mean=None if returns is None else float(returns.mean()),
        )


def _mean_bound(costs: np.ndarray, highest: float, confidence: float) -> float | None:
    try:
        return mean_bound(costs, highest, confidence)
    except ValueError:
        return None


_Limits = Annotated[tuple[LimitCertificate, ...], Field(min_length=1), BeforeValidator(listed)]


@settings(frozen=True)
class Certificate(Statement):
    """What is certified of a policy. Printed, it is a table with remarks.

    Examples:
        >>> certificate = certify("outputs/ballcircle-seed0", cost_limits=[10, 20, 40], episodes=200)
        >>> print(certificate)
        >>> [row.over_bound for row in certificate.limits]

    Attributes:
        weights_sha256: Which weights it is of, see `weights_sha256`.
        cost_margin: The policy's setting of that name.
        algorithm: Of its training record; None without one.
        train_seed: The same.
        task: Name of its task, if it has one.
        source: "simulator", or the name of the file whose episodes were taken.
        source_sha256: SHA-256 of that file.
        seed: Base of the certification seeds, on which the episodes were played.
        confidence: With which each bound holds by itself.
        risk: Share of the episodes that the policy was told may exceed the limit.
        highest_cost: Largest cost that an episode can have: its steps times the largest cost of a step in
            the data.
        limits: One entry per limit, in the order in which they were asked for.
        versions: Version by package; empty for a file.
        tuned_on: Episodes per limit and margin by which `cost_margin` was chosen before; None if it was not.
        cost_names: Names of the costs, if there are several.
    """

    weights_sha256: Text
    cost_margin: Positive
    algorithm: Text | None
    train_seed: Whole | None
    task: TaskName | None
    source: Text
    source_sha256: Text | None
    seed: Whole | None
    confidence: ShareBetween
    risk: ShareBetween
    highest_cost: PerCost
    limits: _Limits
    versions: dict[str, str]
    tuned_on: Count | None = None
    cost_names: CostNames = ()

    made_by: ClassVar[str] = "spi certify"

    def at(self, cost_limit: CostLimit) -> LimitCertificate | None:
        """What is shown at a limit; None where nothing is."""
        return next((row for row in self.limits if row.cost_limit == cost_limit), None)

    @property
    def rows(self) -> list[list[str]]:
        """What tables show, a row per limit."""
        return [
            [
                shown_limit(row.cost_limit),
                f"{row.over} of {row.episodes}",
                shown_bound(row.over_bound),
                _figures(row.cost_mean, row.cost_limit),
                _figures(row.cost_mean_bound, row.cost_limit, up=True),
                _figures(row.cost_p90, row.cost_limit),
                _figures(row.cost_worst, row.cost_limit),
                "?" if row.reward_mean is None else shown(row.reward_mean, 1),
            ]
            for row in self.limits
        ]

    @property
    def columns(self) -> list[str]:
        """What the columns of `rows` are called."""
        sure = shown_share(self.confidence)
        return [
            *("cost limit", "episodes over", f"share over <= ({sure})", "mean cost"),
            *(f"mean cost <= ({sure})", "90% cost at most", "worst cost", "mean return"),
        ]

    @property
    def meaning(self) -> str:
        """In one plain sentence what a row says."""
        row, costs = self.limits[0], f" ({', '.join(self.cost_names)})" if self.cost_names else ""
        told = f"In plain words: told a limit of {shown_limit(row.cost_limit)}{costs}, this policy"
        if row.over_bound == 1.0:
            return f"{told} has exceeded it every time."
        return (
            f"{told} exceeds it in at most "
            f"{shown_bound(row.over_bound)} of all its episodes; of statements made in this way, at most "
            f"{shown_share(round(1 - self.confidence, 9))} are wrong."
        )

    @property
    def remarks(self) -> list[str]:
        """What it means and what it rests on, a sentence or two each."""
        bounds = [bound for row in self.limits for bound in each(row.cost_mean_bound)]
        count = len(self.limits) + sum(bound is not None for bound in bounds)
        together = max(1 - count * (1 - self.confidence), 0.0)
        lines = [self.meaning]
        if count > 1:
            lines.append(
                f"Each bound holds with {shown_share(self.confidence)} confidence by itself; all {count} at "
                f"once with at least {shown_share(round(together, 9))}."
            )
        if self.source == SIMULATOR:
            lines.append(
                f"Played in the simulator at a risk of {self.risk:g}, on seeds that only certification uses: "
                "nothing was trained, chosen or tuned on them."
            )
        else:
            lines.append(
                f"From the episodes in {self.source}: it holds if they are of this policy as it is, at a "
                f"risk of {self.risk:g}, independent of each other, and all that were played."
            )
        if self.tuned_on is not None:
            lines.append(
                f"Its cost_margin of {self.cost_margin:g} was chosen by {self.tuned_on} other episodes per "
                "limit and margin."
            )
        bounded = (
            f"The bound on the mean cost takes {shown_limit(self.highest_cost)} for the largest cost of an "
            "episode"
        )
        if None in bounds:
            lines.append(
                f"{bounded}, but one cost more: there the mean has no bound that holds without an assumption."
            )
        else:
            lines.append(f"{bounded}: its steps times the largest cost of a step in the training data.")
        return lines

    def table(self) -> "Table":
        """It as a `rich` table."""
        from rich import box
        from rich.table import Table

        where = "in the simulator" if self.source == SIMULATOR else "from logged episodes"
        title = f"Certificate of {self.task or 'a policy'}, {where}, at a risk of {self.risk:g}"
        table = Table(title=title, box=box.HORIZONTALS, pad_edge=False)
        for name in self.columns:
            table.add_column(name.replace(" ", "\n", 1), justify="right")
        for cells in self.rows:
            table.add_row(*cells)
        return table

    def __repr__(self) -> str:
        return self.as_text()


def weights_sha256(index: Mapping[str, Any]) -> str | None:
    """One SHA-256 of a policy's components, weights and configs, by its `model_index.json`.

    It stays where a policy is published or copied, and where only its `cost_margin`, its training record, its
    student or the code beside it changes. None for a policy that was saved without checksums.
    """
    sums = index.get(CHECKSUMS)
    if not isinstance(sums, dict):
        return None
    kinds = (f"/{WEIGHTS_FILE}", "/config.json", "/scheduler_config.json")
    of_components = {
        name: value
        for name, value in sums.items()
        if name.endswith(kinds) and not name.startswith("student/")
    }
    return hashlib.sha256(json.dumps(of_components, sort_keys=True).encode()).hexdigest()


def own_certificate(folder: str | os.PathLike[str]) -> Certificate | None:
    """The certificate in the folder of a policy, or of its run; None, with a warning, if it is of another
    policy. ValueError: it cannot be read.
    """
    try:
        folder = find_policy_folder(folder)
    except FileNotFoundError:
        return None
    path = folder / CERTIFICATE_FILE
    if not path.is_file():
        return None
    found, index = Certificate.read(path), read_json(folder / INDEX_FILE)
    if found.weights_sha256 != weights_sha256(index):
        what = "other weights"
    elif found.cost_margin != cost_margin_of(index):
        what = f"a cost_margin of {found.cost_margin:g}, not {cost_margin_of(index)!s:.20}"
    else:
        return found
    logger.warning("%s: is of %s, and is left out; `spi certify` makes it anew", path, what)
    return None
