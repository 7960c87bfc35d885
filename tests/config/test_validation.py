"""The validator of settings: what fits, what is said of what does not, and where it came from."""

import math
import pickle
from dataclasses import asdict, field, replace
from typing import Literal

import numpy as np
import pytest
from pydantic import model_validator

from spi_diffusers.config.validation import (
    ConfigError,
    Count,
    Even,
    Flag,
    NotNegative,
    Positive,
    PositiveShare,
    Share,
    ShareBelowOne,
    ShareBetween,
    Sizes,
    describe,
    leaf_types,
    settings,
)

SIZES = "a list of at least one item, each a whole number of at least 1"


@settings
class Inner:
    width: Even = 2
    share: ShareBelowOne = 0.5


@settings
class Outer:
    count: Count = 1
    rate: Positive = 0.5
    least: NotNegative = 0.0
    flag: Flag = False
    kind: Literal["one", "two"] = "one"
    auto: Literal["auto"] | Flag = "auto"
    sizes: Sizes = field(default_factory=lambda: [4])
    limit: Share | None = None
    text: str | None = None
    inner: Inner = field(default_factory=Inner)

    @model_validator(mode="after")
    def _check(self):
        if self.count == 13:
            raise ValueError(f"count must not be {self.count}")
        return self


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"count": 3, "rate": 1, "limit": 1.0, "flag": True, "kind": "two", "auto": False, "text": "a"},
        {"count": np.int64(3), "rate": np.float32(0.1), "sizes": (1, np.int64(2)), "flag": True},
        {"inner": {"width": 4}},
        {"inner": Inner(4, 0.25)},
    ],
)
def test_what_fits(values):
    made = Outer(**values)
    assert type(made.count) is int
    assert type(made.rate) is float
    assert made.sizes == list(values.get("sizes", [4]))
    assert isinstance(made.inner, Inner)
    assert Outer(**asdict(made)) == replace(made) == pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count must be a whole number of at least 1, got 0"),
        ({"count": 1.5}, "count must be a whole number of at least 1, got 1.5"),
        ({"count": True}, "count must be a whole number of at least 1, got True"),
        ({"count": "10"}, "count must be a whole number of at least 1, got '10'"),
        ({"count": None}, "count must be a whole number of at least 1, got None"),
        ({"count": math.nan}, "count must be a whole number of at least 1, got nan"),
        ({"rate": 0.0}, "rate must be a positive number, got 0.0"),
        ({"rate": "0.5"}, "rate must be a positive number, got '0.5'"),
        ({"rate": True}, "rate must be a positive number, got True"),
        ({"rate": math.inf}, "rate must be a positive finite number, got inf"),
        ({"least": -0.1}, "least must be a number of at least 0, got -0.1"),
        ({"least": math.nan}, "least must be a finite number of at least 0, got nan"),
        ({"limit": 1.5}, "limit must be a number in [0, 1] or null, got 1.5"),
        ({"flag": "no"}, "flag must be true or false, got 'no'"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"kind": "three"}, "kind must be one of one, two, got 'three'"),
        ({"kind": "tow"}, "kind must be one of one, two, got 'tow'; did you mean two?"),
        ({"auto": "maybe"}, "auto must be auto or true or false, got 'maybe'"),
        (
            {"sizes": []},
            f"sizes must be {SIZES}, got []",
        ),
        (
            {"sizes": [8, 0]},
            f"sizes must be {SIZES}, got [8, 0]",
        ),
        ({"sizes": 8}, f"sizes must be {SIZES}, got 8"),
        ({"text": 12}, "text must be text or null, got 12; put it in quotes"),
        ({"inner": 3}, "inner must be a group of settings, got 3"),
        ({"inner": {"width": 3}}, "inner.width must be an even number of at least 2, got 3"),
        ({"inner": {"share": 1.0}}, "inner.share must be a number in [0, 1), got 1.0"),
        ({"inner": {"widht": 4}}, "unknown setting inner.widht; did you mean inner.width?"),
        ({"cuont": 4}, "unknown setting cuont; did you mean count?"),
        ({"width": 4}, "unknown setting width; did you mean inner.width?"),
        ({"zzz": 4}, "unknown setting zzz"),
        ({"count": 13}, "count must not be 13"),
        ({"text": ["x" * 1000]}, f"text must be text or null, got ['{'x' * 195}..."),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_field(values, message):
    with pytest.raises(ConfigError) as caught:
        Outer(**values)
    assert str(caught.value) == message


def test_values_without_names_are_checked_too():
    with pytest.raises(ConfigError, match="width must be an even number of at least 2, got 3"):
        Inner(3)
    with pytest.raises(ConfigError, match="share must be a number in"):
        Inner(4, 2.0)


def test_descriptions_of_shares():
    assert describe(PositiveShare) == "a number in (0, 1]"
    assert describe(ShareBetween) == "a number in (0, 1)"
    assert describe(list[Literal["a", "b"]]) == "a list, each one of a, b"


def test_leaves_of_nested_settings():
    assert [name for name in leaf_types(Outer) if "." in name] == ["inner.width", "inner.share"]
