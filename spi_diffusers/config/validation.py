"""The one validator of settings: dataclasses whose annotations say what a field takes; imports no torch.

pydantic checks the fields, and the errors become `ConfigError`, one line that names the field, what was
expected, and what came.
"""

import difflib
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields, is_dataclass
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from spi_diffusers.files import nearest
from spi_diffusers.messages import shown

T = TypeVar("T")


def _plain(value: Any) -> Any:
    return value.item() if type(value).__module__ == "numpy" and value.shape == () else value


def listed(values: Any) -> Any:
    """Any iterable but text as a tuple, for fields that take several values; else as it is, to be refused."""
    is_several = isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping)
    return tuple(values) if is_several and getattr(values, "shape", None) != () else values


_NUMPY = BeforeValidator(_plain)  # np.int64(3) is a whole number too
Text = Annotated[str, Field(strict=True, min_length=1)]
Flag = Annotated[bool, Field(strict=True)]
_LARGEST = 2**63 - 1  # what torch and files hold
Whole = Annotated[int, Field(strict=True, ge=0, le=_LARGEST), _NUMPY]
Count = Annotated[int, Field(strict=True, ge=1, le=_LARGEST), _NUMPY]
Steps = Annotated[
    int, Field(strict=True, ge=1, le=1000), _NUMPY
]  # of diffusion, for each of which memory is made
Even = Annotated[int, Field(strict=True, ge=2, multiple_of=2), _NUMPY]
Sizes = Annotated[list[Count], Field(min_length=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), _NUMPY]
#: One number, or several; also an array of NumPy.
Numbers = Number | Annotated[list[Number], Field(min_length=1), BeforeValidator(listed)]
NotNegative = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0), _NUMPY]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0), _NUMPY]
Share = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=1), _NUMPY]
PositiveShare = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=1), _NUMPY]
ShareBelowOne = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, lt=1), _NUMPY]
ShareBetween = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, lt=1), _NUMPY]


class ConfigError(ValueError):
    """A configuration cannot be used; the message is one line that names the field.

    Attributes:
        name: Dotted name of the field; empty where a rule over several fields is broken.
    """

    def __init__(self, message: str, name: str = ""):
        super().__init__(message)
        self.name = name


@dataclass_transform(field_specifiers=(field,))
def settings(cls: type[T] | None = None, *, frozen: bool = False) -> Any:
    """Make a class a dataclass that refuses bad fields with `ConfigError`."""
    if cls is None:
        return functools.partial(settings, frozen=frozen)
    made: Any = dataclass(config=ConfigDict(extra="forbid"), frozen=frozen)(cls)
    validate: Callable[..., None] = made.__init__

    @functools.wraps(validate)
    def __init__(self: Any, *values: Any, **named: Any) -> None:
        try:
            validate(self, *values, **named)
        except ValidationError as error:
            names = [field.name for field in fields(made)]
            raise _explain(error, made, dict(zip(names, values, strict=False)) | named) from None

    made.__init__ = __init__
    return made


def flatten(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """{"spi": {"eta": 1}} -> {"spi.eta": 1}; ConfigError if the same field is there in both forms."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_group = isinstance(value, Mapping) and value  # an empty one would vanish
        new = flatten(value, f"{path}{key}.") if is_group else {f"{path}{key}": value}
        if twice := flat.keys() & new.keys():
            raise ConfigError(f"{min(twice)} is set twice", min(twice))
        flat |= new
    return flat


def leaf_types(cls: type, path: str = "") -> dict[str, Any]:
    """The annotations of all fields of nested dataclasses, by dotted name."""
    leaves: dict[str, Any] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        leaves |= leaf_types(hint, f"{path}{name}.") if is_dataclass(hint) else {f"{path}{name}": hint}  # type: ignore[arg-type]
    return leaves


def unknown_field(name: str, known: Iterable[str]) -> ConfigError:
    """The error for a field that does not exist, with the nearest name."""
    known, own = list(known), name.rsplit(".", 1)[-1]
    last = {key.rsplit(".", 1)[-1]: key for key in known}
    close = difflib.get_close_matches(own, last, n=1)
    # "eta" and "algorithm.eta" are for "spi.eta".
    hint = "" if own in last else nearest(name, known)
    hint = hint or (f"; did you mean {last[close[0]]}?" if close else "")
    return ConfigError(f"unknown setting {name}{hint}", name)


def bad_value(name: str, hint: Any, value: Any) -> ConfigError:
    """The error for a field that holds something else than it takes."""
    expected = "a group of settings" if is_dataclass(hint) else describe(hint)
    if isinstance(value, int) and value > _LARGEST:
        expected += " and below 2^63"
    if isinstance(value, float) and not math.isfinite(value):
        expected = expected.replace("number", "finite number") if "whole" not in expected else expected
    kinds = [unwrap(part)[0] for part in union_parts(hint)]
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    message = f"{name} must be {expected}, got {shown(value)}{nearest(str(value), choices)}"
    if str in kinds and isinstance(value, bool | int | float):
        message += "; put it in quotes"
    return ConfigError(message, name)


def describe(hint: Any) -> str:
    """What a field takes, in words: "a whole number of at least 1 or null"."""
    if len(parts := union_parts(hint)) > 1:
        words = [describe(part) for part in parts]
        return " or ".join(sorted(words, key=lambda word: word.startswith("a list")))
    kind, limits = unwrap(hint)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}" if len(get_args(kind)) > 1 else str(get_args(kind)[0])
    if is_dataclass(kind):
        return "an object with the right fields"
    if get_origin(kind) is dict:
        return "an object of texts"
    if get_origin(kind) in (list, tuple):
        several = "a list of at least one item, each" if limits else "a list, each"
        return f"{several} {describe(get_args(kind)[0])}"
    if kind is str and limits:
        return "non-empty text"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return _bounded(names[kind], limits)


def _bounded(noun: str, limits: Mapping[str, Any]) -> str:
    if limits.get("multiple_of") == 2:
        noun = noun.replace("a whole", "an even")
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    high = None if high == _LARGEST else high
    if low is None:
        return noun
    if high is not None:
        return f"{noun} in {'(' if 'gt' in limits else '['}{low}, {high}{')' if 'lt' in limits else ']'}"
    if "gt" in limits:
        return noun.replace("a ", "a positive ") if low == 0 else f"{noun} above {low}"
    return f"{noun} of at least {low}"


def unwrap(hint: Any) -> tuple[Any, dict[str, Any]]:
    """An annotation without what `Annotated` adds, and its limits by name."""
    if get_origin(hint) is not Annotated:
        return hint, {}
    kind, *extras = get_args(hint)
    found = [limit for extra in extras for limit in getattr(extra, "metadata", ())]
    names = ("ge", "gt", "le", "lt", "multiple_of", "min_length")
    return kind, {name: getattr(limit, name) for limit in found for name in names if hasattr(limit, name)}


def union_parts(hint: Any) -> tuple[Any, ...]:
    """The choices of a union; an annotation of another kind alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _explain(error: ValidationError, cls: Any, given: Any) -> ValueError:
    """The error of our own that says what pydantic found first."""
    first = error.errors(include_url=False)[0]
    path: list[str] = []
    hint = cls
    for part in first["loc"]:
        if not is_dataclass(hint):  # an item of a list or one choice of several: the whole field is shown
            break
        hints = get_type_hints(hint, include_extras=True)
        path.append(fields(hint)[part].name if isinstance(part, int) else part)
        hint = hints.get(path[-1])
    name = ".".join(path)
    cause = first.get("ctx", {}).get("error")
    if type(cause) is ValueError:  # a rule of ours is broken: of one field, or of several in a group
        of_group = is_dataclass(hint)
        return ConfigError(f"{name}: {cause}" if of_group and path else str(cause), "" if of_group else name)
    if cause is not None:
        return cause
    if hint is None:
        return unknown_field(name, leaf_types(cls))
    for key in path:
        given = given.get(key) if isinstance(given, Mapping) else getattr(given, key)
    return bad_value(name, hint, given)
