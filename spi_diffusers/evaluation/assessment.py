"""What is expected of a policy before anyone acts with it: estimates that print and save themselves.

`assess.py` makes them from data, without a simulator. No torch is imported here.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator

from spi_diffusers.config.validation import (
    Count,
    Flag,
    Number,
    Positive,
    Share,
    ShareBetween,
    listed,
    settings,
)
from spi_diffusers.evaluation.entries import CostNames, PerCost, Record, Source, each
from spi_diffusers.evaluation.statement import Statement
from spi_diffusers.evaluation.summary import shown, shown_share
from spi_diffusers.messages import shown_limit

if TYPE_CHECKING:
    from rich.table import Table

#: What the intervals are meant to cover.
COVERAGE = 0.9
#: A limit is taken for one that is kept if it fits at this share of the starts.
ENOUGH_STARTS = 0.95
#: What of a training record tells which policy an assessment is of, as it does for results.
POLICY_FIELDS = ("algorithm", "train_seed", "updates", "train_seconds")


def figures(*values: float) -> list[str]:
    """Figures of one kind as text, with three digits of the largest: units may be any."""
    largest = max(map(abs, values))
    digits = 2 - math.floor(math.log10(largest)) if largest else 0
    return [shown(value, min(max(digits, 0), 12)) for value in values]


@settings(frozen=True)
class Estimate(Record):
    """An expected figure of an episode, and the ends of its 90% interval."""

    mean: Number
    low: Number
    high: Number

    def __str__(self) -> str:
        mean, low, high = figures(self.mean, self.low, self.high)
        return f"{mean} ({low} to {high})"


@settings(frozen=True)
class LimitAssessment(Record):
    """What is expected at one limit.

    Attributes:
        cost_limit: Limit on the cost of an episode; one for each of several costs.
        expected_return: Return of an episode, over the steps that its limit counts over.
        expected_cost: Its cost; one estimate for each of several costs.
        feasible: Share of the starts at which the policy of some safety weight fits into the limit.
        out_of_support: Share of its actions that lie further from recorded ones in similar states than 95% of
            the recorded actions themselves do: 0.05 is as the data. None where there is nothing to compare.
    """

    cost_limit: PerCost
    expected_return: Estimate
    expected_cost: Estimate | Annotated[tuple[Estimate, ...], BeforeValidator(listed)]
    feasible: Share
    out_of_support: Share | None


_Limits = Annotated[tuple[LimitAssessment, ...], BeforeValidator(listed)]
_Warnings = Annotated[tuple[str, ...], BeforeValidator(listed)]


@settings(frozen=True)
class Assessment(Statement):
    """What is expected of a policy, from data alone. Printed, it is a table with warnings.

    Examples:
        >>> assessment = assess("outputs/ballcircle-seed0")
        >>> print(assessment)
        >>> [row.expected_cost.high for row in assessment.limits]

    Attributes:
        policy: Of its training record: algorithm, train_seed, updates, train_seconds; None without a record.
        dataset: Whose episodes were used: "id" and "sha256" of the whole dataset.
        held_out: Whether they are of what the policy was trained on, but held out.
        episodes: How many were used.
        transitions: Their transitions.
        risk: Share of the episodes that may exceed the limit.
        limits: One entry per limit, in the order in which they were asked for.
        smallest_limit: The smallest limit that fits at 95% of the starts; of several costs one for each, by
            itself.
        warnings: Where the data cannot tell, a sentence each.
        cost_margin: The policy's setting of that name.
        cost_names: Names of the costs, if there are several.
    """

    policy: dict[str, Any] | None
    dataset: Source
    held_out: Flag
    episodes: Count
    transitions: Count
    risk: ShareBetween
    limits: _Limits
    smallest_limit: PerCost
    warnings: _Warnings
    cost_margin: Positive = 1.0
    cost_names: CostNames = ()

    made_by: ClassVar[str] = "spi assess"

    def is_of(self, train_info: dict[str, Any], cost_margin: float = 1.0) -> bool:
        """Whether it is of the policy with this `train_info.json` and margin, as far as these tell."""
        is_same = self.policy is not None and all(
            name in train_info and self.policy.get(name) == train_info[name] for name in POLICY_FIELDS
        )
        return is_same and self.cost_margin == cost_margin

    @property
    def source(self) -> str:
        """What it was estimated from, in words."""
        kind = "held-out episodes" if self.held_out else "episodes"
        return f"{self.episodes} {kind} ({self.transitions:,} steps) of {self.dataset['id']}"

    @property
    def rows(self) -> list[list[str]]:
        """What tables show, a row per limit."""
        return [
            [
                shown_limit(row.cost_limit),
                str(row.expected_return),
                "\n".join(map(str, each(row.expected_cost))),
                shown_share(row.feasible),
                "?" if row.out_of_support is None else shown_share(row.out_of_support),
            ]
            for row in self.limits
        ]

    @property
    def remarks(self) -> list[str]:
        """The smallest limit and the warnings, a sentence each."""
        limits = ", ".join(figures(limit)[0] for limit in each(self.smallest_limit))
        smallest = (
            f"The smallest limit that fits at {shown_share(ENOUGH_STARTS)} of the starts is {limits}, at a "
            f"risk of {self.risk:g}."
        )
        return [smallest, *(f"Warning: {warning}" for warning in self.warnings)]

    def table(self) -> "Table":
        """It as a `rich` table."""
        from rich import box
        from rich.table import Table

        caption = (
            f"From {self.source}; no simulator was asked. In brackets: {shown_share(COVERAGE)} intervals"
        )
        table = Table(
            title=f"What to expect, at a risk of {self.risk:g}",
            caption=caption,
            box=box.HORIZONTALS,
            pad_edge=False,
        )
        for name in (
            *("limit", "return", "\n".join(self.cost_names or ("cost",))),
            "starts where\nthe limit fits",
            "actions unlike\nthe data (5%)",
        ):
            table.add_column(name, justify="right")
        for cells in self.rows:
            table.add_row(*cells)
        return table

    def __repr__(self) -> str:
        return self.as_text()
