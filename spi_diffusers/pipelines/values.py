"""Numbers that callers pass: read, checked, and shown in messages.

Shipped as a part of `pipeline.py`, and used where there is no torch, so it needs only NumPy.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

#: Of any setting or argument: beyond it, whole numbers and float32 give out.
LARGEST = 1e18


def shown(value: Any) -> str:
    """How messages show a value: on one line, at most 200 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def as_plain(value: Any) -> Any:
    """A number of NumPy or torch as one of Python, also in a list; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if type(value) in (list, tuple):
        plain = type(value)(as_plain(item) for item in value)
        return value if all(new is old for new, old in zip(plain, value, strict=True)) else plain
    return value


def as_number(
    name: str, value: Any, low: float, high: float = LARGEST, *, whole: bool = False, below: bool = False
) -> Any:
    """A setting or an argument as a plain number.

    Args:
        name: What messages call it.
        value: A number of Python, NumPy or torch, but no bool.
        low: Smallest value.
        high: Largest value.
        whole: Whether it must be an int.
        below: Whether `high` itself is too large.

    Returns:
        An int or a float.

    Raises:
        ValueError: It is no number, or out of range.
    """
    number = as_plain(value)
    is_number = isinstance(number, int if whole else int | float) and not isinstance(number, bool)
    if not is_number or not low <= number <= high or (below and number == high):  # NaN is refused, too
        limits = f"in [{low:g}, {high:g}{')' if below else ']'}" if high < LARGEST else f"of at least {low:g}"
        kind = "whole" if whole else "finite"
        raise ValueError(f"{name} must be a {kind} number {limits}, got {shown(value)}.")
    return number


def to_numpy(value: Any) -> np.ndarray:
    """An array from a tensor, wherever it is, or from what NumPy makes one of; not checked."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def without_one(costs: Any) -> Any:
    """Costs (..., K), torch or NumPy, as users see them: of one cost (...)."""
    return costs[..., 0] if costs.shape[-1] == 1 else costs


def as_floats(name: str, value: Any, kinds: str = "iuf") -> np.ndarray:
    """Numbers as float32, in an array of its own.

    Args:
        name: What messages call them.
        value: A number, or what NumPy makes an array of.
        kinds: NumPy's letters of the data types that are taken; "b" for true and false.

    Returns:
        An array of the same shape.

    Raises:
        ValueError: It holds something else than numbers: text, complex numbers, masked ones, lists of
            several lengths, a dict.
    """
    if type(value) in (float, int) and abs(value) <= LARGEST:  # at every step of a loop
        return np.array(value, dtype=np.float32)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        raise ValueError(f"{name} is a pair of an observation and its info: pass the observation alone.")
    if isinstance(value, Mapping):
        raise ValueError(f"{name} is a dict: put its numbers into one array, in the order of the training.")
    parts = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise ValueError(f"{name} has masked numbers: fill them first, got {shown(value)}.")
    try:
        array = np.asarray(value)
        if array.dtype == object and all(isinstance(item, numbers.Real) for item in array.flat):
            array = array.astype(np.float64)
        if array.dtype.kind not in kinds:
            raise ValueError(f"data type {array.dtype}")
        with np.errstate(all="ignore"):  # what is too large is infinite then, and named by its index
            return array.astype(np.float32, order="C")
    except Exception as error:  # whatever NumPy and other libraries raise about their types
        raise ValueError(
            f"{name} must be a number or an array of numbers, in rows of one length, got {shown(value)}."
        ) from error


def check_batch(observations: Any, size: int) -> None:
    """Raise ValueError unless an array or tensor is (size,) or (B, size), of finite numbers."""
    shape = tuple(observations.shape)
    if len(shape) not in (1, 2) or shape[-1] != size or 0 in shape:
        raise ValueError(f"observation has shape {shape}; this policy takes ({size},) or (batch, {size}).")
    finite = abs(observations) < math.inf  # not NaN either
    if not bool(finite.all()):
        position = np.argwhere(~to_numpy(finite))[0].tolist()
        raise ValueError(f"observation is NaN or infinite at index {position}.")


def check_per_observation(name: str, numbers: Any, batch: int) -> None:
    """Raise ValueError unless an array or tensor is one finite number, or one for each observation."""
    if numbers.ndim > 1 or (numbers.ndim == 1 and len(numbers) not in (1, batch)):
        raise ValueError(
            f"{name} has shape {tuple(numbers.shape)}; pass one number or one per observation ({batch},)."
        )
    if not bool((abs(numbers) < math.inf).all()):
        raise ValueError(f"{name} is NaN or infinite: {shown(to_numpy(numbers).tolist())}.")


def check_text(name: str, value: Any) -> None:
    """Raise ValueError if a setting is neither text nor None."""
    if not (value is None or isinstance(value, str)):
        raise ValueError(f"{name} must be text or None, got {shown(value)}.")
