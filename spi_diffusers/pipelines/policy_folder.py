"""Checks a policy folder before anything is loaded from it."""

import json
import os
import re
import sys
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import safe_open

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
#: Where the package has the classes of a policy folder. A published folder names the copies that it ships,
#: and one saved from such copies names diffusers' module cache: the class names are the same everywhere.
INSTALLED_MODULES = {
    "CostCalibration": "spi_diffusers.models.cost_calibration",
    "MLPNoiseModel": "spi_diffusers.models.noise_model",
    "ObservationNormalizer": "spi_diffusers.models.normalizer",
    "TwinCritic": "spi_diffusers.models.critics",
}
#: Names become paths and modules, so they must be plain.
_COMPONENT_NAME = re.compile(r"[A-Za-z]\w*")
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


def check_policy_folder(folder: str, *, trust_remote_code: bool = False) -> None:
    """Raise an error that names the file if a policy folder cannot be loaded completely.

    Only headers are read, so a check costs milliseconds and no memory.

    Args:
        folder: Local folder of a policy.
        trust_remote_code: Whether code in the folder may be run, for components that the package does not
            know.

    Raises:
        FileNotFoundError: A config or weight file is missing.
        ValueError: A file is truncated or foreign, or weights and config do not fit.
    """
    path = os.path.join(folder, "model_index.json")
    for name, entry in with_installed_modules(_read_json(folder, "model_index.json")).items():
        if name.startswith("_") or not isinstance(entry, list) or entry == [None, None]:
            continue
        if len(entry) != 2 or not all(isinstance(part, str) for part in entry):
            raise ValueError(f"{path}: '{name}' must name a library and a class, got {entry!r}.")
        library, class_name = entry
        if not _COMPONENT_NAME.fullmatch(name) or not _LIBRARY_NAME.fullmatch(library):
            raise ValueError(f"{path}: {name!r} from {library!r} is no plain name of a component: refused.")
        if library == "diffusers":
            _read_json(folder, name, "scheduler_config.json")
            continue
        config = _read_json(folder, name, "config.json")
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


def _weight_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    path = os.path.join(folder, WEIGHTS_FILE)
    if not os.path.isfile(path):
        others = sorted(set(os.listdir(folder)) - {"config.json"})
        raise FileNotFoundError(
            f"{path} is missing; its folder holds {', '.join(others) or 'nothing else'}. Only safetensors "
            "weights of this name are loaded, never a pickle."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises errors of its own kind
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def _check_shapes(
    folder: str, model_class: Any, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    try:
        with torch.device("meta"):
            state = model_class.from_config(config).state_dict()
    except (TypeError, ValueError, KeyError) as error:
        path = os.path.join(folder, "config.json")
        raise ValueError(f"{path} cannot be used: {error}") from error
    expected = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key))
    if wrong:
        path, key = os.path.join(folder, WEIGHTS_FILE), wrong[0]
        raise ValueError(
            f"{path} does not fit its config.json: '{key}' has shape {shapes.get(key, 'none (missing)')}, "
            f"expected {expected.get(key, 'none (unknown weight)')}; {len(wrong)} weights differ."
        )


def _read_json(*parts: str) -> dict[str, Any]:
    path = os.path.join(*parts)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: this is not a complete policy folder.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not complete JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content
