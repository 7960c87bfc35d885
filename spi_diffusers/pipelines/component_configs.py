"""What the configs of a policy folder may say: fields, types and ranges, of components and of schedulers.

Fields and types are those of the classes' own constructors, which also check the ranges.
"""

import contextlib
import functools
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_origin

import diffusers
from pydantic import Field, TypeAdapter, ValidationError

from spi_diffusers.config.validation import (
    Count,
    Flag,
    Share,
    ShareBetween,
    Steps,
    Text,
    Whole,
    bad_value,
)
from spi_diffusers.files import nearest, read_json
from spi_diffusers.messages import shown
from spi_diffusers.models.noise_model import SCHEDULERS
from spi_diffusers.pipelines.values import LARGEST

#: Configs and headers of ours are smaller. Both are read before anything is known about a folder.
MAX_CONFIG_BYTES = 1_000_000
_Real = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
_PositiveReal = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=LARGEST)]
_TYPES: dict[Any, Any] = {
    int: Count,
    float: _Real,
    bool: Flag,
    str: Text,
    Sequence[int]: list[Count],
    Sequence[float]: list[_Real],
    float | Sequence[float]: _Real | list[_Real],
    Sequence[str] | None: list[Text] | None,
}
#: What diffusers' annotations of its schedulers leave open; None as well where that is the default. Left out
#: is what does not go with a model that predicts the noise of a few large steps.
_SCHEDULER_TYPES: dict[str, Any] = {
    "num_train_timesteps": Steps,
    "beta_start": ShareBetween,
    "beta_end": ShareBetween,
    "beta_schedule": Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"],
    "trained_betas": list[ShareBetween],
    "variance_type": Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"],
    "prediction_type": Literal["epsilon"],
    "clip_sample_range": _PositiveReal,
    "sample_max_value": _PositiveReal,
    "dynamic_thresholding_ratio": Share,
    "timestep_spacing": Literal["linspace", "leading", "trailing"],
    "steps_offset": Whole,
    "solver_order": Count,
    "disable_corrector": list[Whole],
    "rescale_betas_zero_snr": Literal[False],
    "use_flow_sigmas": Literal[False],
    "use_dynamic_shifting": Literal[False],
    "timestep_type": Literal["discrete"],
    "lambda_min_clipped": float,  # minus infinity by default
    "sigma_min": _PositiveReal,
    "sigma_max": _PositiveReal,
    "shift_terminal": None,
    "solver_p": None,
}


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of one of a policy folder's JSON files, which are small."""
    return read_json(path, MAX_CONFIG_BYTES)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Make any error about a config's content one that names the file."""
    try:
        yield
    except Exception as error:  # constructors of components and schedulers raise many types
        message = " ".join(str(error).split())
        raise ValueError(f"{path}: {message:.400}") from error


def check_fields(path: str, config: Mapping[str, Any], known: Iterable[str], required: Iterable[str]) -> None:
    """Refuse a config with unknown fields, which mean something to the version that wrote them, and with
    missing ones, for which diffusers would take its defaults.
    """
    known = list(known)
    unknown = sorted(key for key in config if not key.startswith("_") and key not in known)
    if unknown:
        raise ValueError(
            f"{path}: unknown field{'s' * (len(unknown) > 1)} {', '.join(map(shown, unknown[:5]))}"
            f"{nearest(unknown[0], known)}; this version knows no such setting and would act differently. If "
            "a newer one saved the policy, upgrade with `pip install -U spi-diffusers`."
        )
    missing = [name for name in required if name not in config]
    if missing:
        raise ValueError(f"{path}: the field {missing[0]!r} is missing; get the file anew.")


def check_config(path: str, config: Mapping[str, Any], model_class: Any) -> None:
    """Check the config of a component; ValueError names file and field."""
    parameters = _parameters(model_class)
    check_class(path, config, model_class.__name__)
    # What is None by default is not there in policies of versions that did not know it.
    required = [name for name, parameter in parameters.items() if parameter.default is not None]
    check_fields(path, config, parameters, required)
    hints = {name: _TYPES[parameter.annotation] for name, parameter in parameters.items()}
    _check_types(path, config, hints)


def check_scheduler(path: str, class_name: str) -> None:
    """Check the config of a scheduler, and that it can be made; ValueError names file and field."""
    config = read_config(path)
    check_class(path, config, class_name)
    kind = getattr(diffusers, class_name)
    parameters = _parameters(kind)
    # A scheduler that was made from another's config keeps its fields, without effect. Other versions of
    # diffusers have other fields, but not fewer of those whose types are given here.
    known = {name for other in SCHEDULERS for name in _parameters(getattr(diffusers, other))}
    same_version = config.get("_diffusers_version") == diffusers.__version__
    required = [name for name in parameters if same_version or name in _SCHEDULER_TYPES]
    check_fields(path, config, known, required)
    hints = {
        name: _scheduler_type(name, parameter.annotation, parameter.default)
        for name, parameter in parameters.items()
    }
    _check_types(path, config, hints)
    steps, betas = config["num_train_timesteps"], config.get("trained_betas")
    if betas is not None and len(betas) != steps:
        raise ValueError(f"{path}: trained_betas must be a list of num_train_timesteps={steps} numbers.")
    with naming(path):
        scheduler = kind.from_config(config)
        scheduler.set_timesteps(steps)
        if float(scheduler.timesteps.max()) > steps - 1:
            raise ValueError(f"steps_offset={config['steps_offset']} leads beyond the last timestep.")


def check_class(path: str, config: Mapping[str, Any], class_name: str) -> None:
    """Refuse the config of another class."""
    if config.get("_class_name") != class_name:
        raise ValueError(f"{path} is of a {shown(config.get('_class_name'))}, expected {class_name!r}.")


def _scheduler_type(name: str, hint: Any, default: Any) -> Any:
    if name in _SCHEDULER_TYPES:
        hint = _SCHEDULER_TYPES[name]
        return hint if hint is None or default is not None else hint | None
    if get_origin(hint) is Literal:
        return hint
    return Whole if hint is int else Flag | None if hint == bool | None else _TYPES[hint]


@functools.cache
def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """What a constructor takes, by name."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {parameter.name: parameter for parameter in parameters}


def _check_types(path: str, config: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    for name in [name for name in hints if name in config]:
        try:
            _adapter(hints[name]).validate_python(config[name])
        except ValidationError:
            raise ValueError(f"{path}: {bad_value(name, hints[name], config[name])}.") from None


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)
