"""Checks of a policy folder, before anything is loaded from it."""

import inspect
import os
import re
import sys
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import safe_open

from spi_diffusers import models
from spi_diffusers.files import INDEX_FILE, WEIGHTS_FILE, read_json
from spi_diffusers.pipelines.spi_policy import SPIPolicyPipeline

#: Modules of the component classes. A published folder names the copies that it ships, and one saved from
#: such copies names diffusers' module cache; the class names are the same everywhere.
INSTALLED_MODULES = {
    name: known.__module__
    for name, known in vars(models).items()
    if isinstance(known, type) and issubclass(known, ModelMixin)
}
#: Configs and headers of ours are smaller. Both are read before anything is known about a folder.
_MAX_JSON_BYTES = _MAX_HEADER_BYTES = 1_000_000
_MAX_TIMESTEPS = 100_000
_MAX_CANDIDATES = 100_000
#: A library's name becomes a path or a module, so it must be plain.
_LIBRARY_NAME = re.compile(r"[A-Za-z]\w*(\.\w+)*")


def with_installed_modules(index: dict[str, Any]) -> dict[str, Any]:
    """The content of a `model_index.json` with our classes taken from the package, not from shipped code."""
    changed = {}
    for name, entry in index.items():
        if name == "_class_name" and isinstance(entry, list | tuple) and len(entry) == 2:
            entry = entry[1]
        elif isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], str):
            entry = [INSTALLED_MODULES.get(entry[1], entry[0]), entry[1]]
        changed[name] = entry
    return changed


def check_policy_folder(
    folder: str, pipeline_class: Any = SPIPolicyPipeline, *, trust_remote_code: bool = False
) -> None:
    """Raise an error that names the file if a policy folder cannot be loaded completely.

    Only headers are read, so a check costs milliseconds and no memory. With `trust_remote_code` the folder
    may hold components that the package does not know. FileNotFoundError: a config or weight file is missing;
    ValueError: a file is truncated or foreign, weights and config do not fit, or a newer version saved it.
    """
    path = os.path.join(folder, INDEX_FILE)
    index = with_installed_modules(read_config(path))
    class_name = index.get("_class_name", pipeline_class.__name__)
    if class_name != pipeline_class.__name__:
        raise ValueError(f"{path} is of a {class_name}: it cannot be loaded as a {pipeline_class.__name__}.")
    SPIPolicyPipeline.check_format_version(index.get("format_version", 1))
    _check_known_fields(path, index, pipeline_class)
    for name in _component_names(pipeline_class):
        if not isinstance(index.get(name), list):
            raise ValueError(f"{path}: '{name}' must name a library and a class, got {index.get(name)!r}.")
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry == [None, None]:
            continue
        if len(entry) != 2 or not all(isinstance(part, str) for part in entry):
            raise ValueError(f"{path}: '{name}' must name a library and a class, got {entry!r}.")
        library, class_name = entry
        if not _LIBRARY_NAME.fullmatch(library):
            raise ValueError(
                f"{path}: '{name}' names the library {library!r}, which is not a valid module name."
            )
        if library == "diffusers":
            _check_scheduler(os.path.join(folder, name))
            continue
        config = read_config(os.path.join(folder, name, "config.json"))
        shapes = _weight_shapes(os.path.join(folder, name))
        model_class = getattr(sys.modules.get(library), class_name, None)
        if isinstance(model_class, type) and issubclass(model_class, ModelMixin):
            _check_shapes(os.path.join(folder, name), model_class, config, shapes)
        elif not trust_remote_code:
            raise ValueError(
                f"{path}: '{name}' is a {class_name} of {library}, which this version does not know: upgrade "
                "with `pip install -U spi-diffusers`, or, if you trust the code that the policy ships, pass "
                "trust_remote_code=True."
            )


def _component_names(pipeline_class: Any) -> list[str]:
    """Components that a pipeline must have."""
    parameters = inspect.signature(pipeline_class.__init__).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.name != "self"]


def _weight_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    path = os.path.join(folder, WEIGHTS_FILE)
    if os.path.exists(f"{path}.index.json"):  # diffusers would load what it names instead
        raise ValueError(f"{path}.index.json: weights in several files are not loaded; remove it.")
    if not os.path.isfile(path):
        others = sorted(set(os.listdir(folder)) - {"config.json"})
        raise FileNotFoundError(
            f"{path} is missing; its folder holds {', '.join(others) or 'nothing else'}. Only safetensors "
            "weights of this name are loaded, never a pickle."
        )
    with open(path, "rb") as header:
        length = int.from_bytes(header.read(8), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(
            f"{path} is truncated or not a safetensors file: its header would have {length} bytes."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises errors of its own kind
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _check_shapes(
    folder: str, model_class: Any, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    path = os.path.join(folder, "config.json")
    _check_known_fields(path, config, model_class)
    # Before a network is made, even one without memory: a config can name any size.
    largest = max((size for shape in shapes.values() if 0 not in shape for size in shape), default=0)
    for key, value in config.items():
        sizes = value if isinstance(value, list) else [value]
        if key.endswith(("_dim", "_dims", "_pairs")) or key.startswith("num_"):
            bound = _MAX_CANDIDATES if key == "num_candidates" else largest  # they have no weights
            too_large = [size for size in sizes if isinstance(size, int | float) and size > bound]
            if too_large or len(sizes) > len(shapes):
                raise ValueError(
                    f"{os.path.join(folder, WEIGHTS_FILE)} does not fit its config.json: {key} names "
                    f"{f'a size of {too_large[0]}' if too_large else f'{len(sizes)} layers'}, more than the "
                    "weights have."
                )
    try:
        with torch.device("meta"):
            state = model_class.from_config(config).state_dict()
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    expected = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key))
    if wrong:
        path, key = os.path.join(folder, WEIGHTS_FILE), wrong[0]
        raise ValueError(
            f"{path} does not fit its config.json: '{key}' has shape {shapes.get(key, 'none (missing)')}, "
            f"expected {expected.get(key, 'none (unknown weight)')}; {len(wrong)} weights differ."
        )


def _check_known_fields(path: str, config: dict[str, Any], known_class: Any) -> None:
    """Fields that this version does not know mean something to the version that wrote them."""
    known = inspect.signature(known_class.__init__).parameters
    unknown = sorted(key for key in config if not key.startswith("_") and key not in known)
    if unknown:
        raise ValueError(
            f"{path}: unknown field{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown[:5]))}; this "
            "version knows no such setting and would act differently. If a newer one saved the policy, "
            "upgrade with `pip install -U spi-diffusers`."
        )


def _check_scheduler(folder: str) -> None:
    path = os.path.join(folder, "scheduler_config.json")
    config = read_config(path)
    steps = config.get("num_train_timesteps", 1)
    if not isinstance(steps, int) or not 1 <= steps <= _MAX_TIMESTEPS:
        raise ValueError(f"{path}: num_train_timesteps must be 1 to {_MAX_TIMESTEPS}, got {steps!r}.")
    betas = config.get("trained_betas")
    if betas is None:
        return
    if not isinstance(betas, list) or len(betas) != steps:
        raise ValueError(f"{path}: trained_betas must be a list of num_train_timesteps={steps} numbers.")
    wrong = [beta for beta in betas if not isinstance(beta, int | float) or not 0 < beta < 1]
    if wrong:
        raise ValueError(f"{path}: trained_betas must lie in (0, 1), got {wrong[0]!r}.")


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of one of a policy folder's JSON files, which are small."""
    return read_json(path, _MAX_JSON_BYTES)
