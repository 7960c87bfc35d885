"""Checks of settings: what fits, and what is said of what does not."""

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest

from spi_diffusers.config.validation import check_range, check_types


@dataclass
class Settings:
    count: int = 1
    rate: float = 0.5
    flag: bool = False
    kind: Literal["one", "two"] = "one"
    sizes: list[int] = field(default_factory=lambda: [4])
    limit: float | None = None
    others: dict[str, int] = field(default_factory=dict)  # not looked at


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"count": 0, "rate": 1, "limit": 3.0},  # a whole number is a number
        {"count": np.int64(3), "rate": np.float32(0.1), "sizes": (1, np.int64(2))},
        {"kind": "two", "flag": True},
    ],
)
def test_what_fits(changes):
    check_types(Settings(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 1.5}, "x.count must be a whole number, got 1.5."),
        ({"count": True}, "x.count must be a whole number, got True."),
        ({"count": math.nan}, "x.count must be a whole number, got nan."),
        ({"rate": "0.5"}, "x.rate must be a number, got '0.5'."),
        ({"rate": True}, "x.rate must be a number, got True."),
        ({"rate": None}, "x.rate must be a number, got None."),
        ({"limit": "10"}, "x.limit must be a number, got '10'."),
        ({"flag": "no"}, "x.flag must be true or false, got 'no'."),
        ({"kind": "three"}, "x.kind must be one of one, two, got 'three'."),
        ({"sizes": []}, "x.sizes must be one or more sizes of at least 1, got []."),
        ({"sizes": [8, 0]}, "x.sizes must be one or more sizes of at least 1, got [8, 0]."),
        ({"sizes": [8.0]}, "x.sizes must be one or more sizes of at least 1, got [8.0]."),
        ({"sizes": 8}, "x.sizes must be one or more sizes of at least 1, got 8."),
    ],
)
def test_what_does_not_fit(changes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_types(Settings(**changes), "x.")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (-0.1, {}, "rate must be at least 0, got -0.1."),
        (math.inf, {}, "rate must be at least 0 and finite, got inf."),
        (math.nan, {"above": True}, "rate must be positive and finite, got nan."),
        (0.0, {"above": True}, "rate must be positive, got 0.0."),
        (1.0, {"low": 1, "above": True}, "rate must be above 1, got 1.0."),
        (1.5, {"high": 1.0}, "rate must lie in [0, 1], got 1.5."),
        (math.nan, {"high": 1.0}, "rate must lie in [0, 1], got nan."),
        (1.0, {"high": 1.0, "below": True}, "rate must lie in [0, 1), got 1.0."),
        (0.0, {"high": 1.0, "above": True}, "rate must lie in (0, 1], got 0.0."),
    ],
)
def test_out_of_range(value, bounds, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_range(Settings(rate=value), "rate", **bounds)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (0.0, {}),
        (1e9, {}),
        (1, {"low": 1}),
        (0.0, {"high": 1.0}),
        (1.0, {"high": 1.0}),
        (1e-9, {"high": 1.0, "above": True, "below": True}),
    ],
)
def test_in_range(value, bounds):
    check_range(Settings(rate=value), "rate", **bounds)
