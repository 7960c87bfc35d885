"""What all settings have in common: checks of their dataclasses, and flat names; imports nothing heavy."""

import math
from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_types(settings: Any, prefix: str = "") -> None:
    """Refuse fields that hold something else than their annotation says.

    Whole numbers, numbers and flags must be just that, a `Literal` holds one of its choices, and `list[int]`
    one or more sizes of at least 1. Annotations of other kinds are not looked at.

    Args:
        settings: A dataclass instance.
        prefix: What messages put before a field's name.

    Raises:
        ValueError: Naming the field.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value, options = getattr(settings, field.name), _options(hints[field.name])
        if value is None and NoneType in options:
            continue
        kind = next(option for option in options if option is not NoneType)
        expected = _expected(kind, value)
        if expected:
            raise ValueError(f"{prefix}{field.name} must be {expected}, got {value!r}.")


def check_range(
    settings: Any,
    *names: str,
    low: float = 0.0,
    high: float = math.inf,
    above: bool = False,
    below: bool = False,
    prefix: str = "",
) -> None:
    """Refuse numbers outside of a range.

    Args:
        settings: Has the fields.
        names: Of the fields.
        low: Least value.
        high: Greatest value.
        above: `low` itself is outside too.
        below: `high` itself is outside too.
        prefix: What messages put before a field's name.

    Raises:
        ValueError: Naming the field.
    """
    for name in names:
        value = getattr(settings, name)
        in_range = (low < value if above else low <= value) and (value < high if below else value <= high)
        if in_range and math.isfinite(value):
            continue
        if high < math.inf:
            bounds = f"lie in {'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
        else:
            bounds = "be positive" if above and low == 0 else f"be {'above' if above else 'at least'} {low:g}"
            bounds += "" if math.isfinite(value) else " and finite"
        raise ValueError(f"{prefix}{name} must {bounds}, got {value!r}.")


def flatten(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """{"algorithm": {"eta": 1}} -> {"algorithm.eta": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


def _options(hint: Any) -> tuple[Any, ...]:
    is_optional = NoneType in get_args(hint)  # X | None
    return get_args(hint) if is_optional else (hint,)


def _expected(kind: Any, value: Any) -> str:
    """What a value should have been; empty if it is."""
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(map(str, get_args(kind)))}"
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is int:
        return "" if _is_whole(value) else "a whole number"
    if kind is float:
        return "" if isinstance(value, Real) and not isinstance(value, bool) else "a number"
    if get_origin(kind) is list and get_args(kind) == (int,):
        is_sizes = isinstance(value, list | tuple) and bool(value)
        fits = is_sizes and all(_is_whole(size) and size >= 1 for size in value)
        return "" if fits else "one or more sizes of at least 1"
    return ""


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
