"""Checks of a policy folder, before anything is loaded from it."""

import inspect
import os
import re
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import safe_open

from spi_diffusers import models
from spi_diffusers.files import INDEX_FILE, WEIGHTS_FILE, check_is_content
from spi_diffusers.messages import shown
from spi_diffusers.models.noise_model import SCHEDULERS
from spi_diffusers.pipelines.checks import CHECKSUMS, damaged_files
from spi_diffusers.pipelines.component_configs import (
    MAX_CONFIG_BYTES,
    check_config,
    check_fields,
    check_scheduler,
    naming,
    read_config,
)
from spi_diffusers.pipelines.extraction import MAX_CANDIDATES
from spi_diffusers.pipelines.spi_policy import SPIPolicyPipeline

#: Modules of the component classes. A published folder names the copies that it ships, and one saved from
#: such copies names diffusers' module cache; the class names are the same everywhere.
INSTALLED_MODULES = {
    name: known.__module__
    for name, known in vars(models).items()
    if isinstance(known, type) and issubclass(known, ModelMixin)
}
#: Classes that a component may have. A scheduler is one of `SCHEDULERS`.
KINDS = {
    "noise_model": ("MLPNoiseModel",),
    "reward_critic": ("TwinCritic",),
    "safety_critic": ("TwinCritic",),
    "scheduler": SCHEDULERS,
    "normalizer": ("ObservationNormalizer",),
    "evaluation_critic": ("EvaluationCritic",),
    "student": ("Student",),
    "actor": (
        *("DeterministicActor", "GaussianActor", "BatchConstrainedActor", "DiffusionActor"),
        *("DecisionTransformer", "SwitchingActor"),
    ),
}
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

    Of weights only headers are read, but for their checksums. With `trust_remote_code` the folder may hold
    components that the package does not know. FileNotFoundError: a config or weight file is missing;
    ValueError: a file is damaged or foreign, a field is unknown, missing or of no use, weights and config do
    not fit, or a newer version saved it.
    """
    path = os.path.join(folder, INDEX_FILE)
    index = with_installed_modules(read_config(path))
    class_name = index.get("_class_name")
    if class_name != pipeline_class.__name__:
        raise ValueError(
            f"{path} is of a {class_name!s:.200}: it cannot be loaded as a {pipeline_class.__name__}."
        )
    if "format_version" in index:  # before the fields, of which a newer one may have others
        with naming(path):
            SPIPolicyPipeline.check_format_version(index["format_version"])
    fields = dict(inspect.signature(pipeline_class.__init__).parameters)
    del fields["self"]
    # A policy that says nothing of them has the usual margin, and no student.
    check_fields(path, index, fields, [name for name in fields if name not in ("cost_margin", "student")])
    components = {name: entry for name, entry in index.items() if name in KINDS}
    settings = {name: value for name, value in index.items() if name in fields and name not in KINDS}
    with naming(path):
        pipeline_class.check_settings(**settings)
    for name, entry in components.items():
        if entry == [None, None] and fields[name].default is None:
            continue
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(part, str) for part in entry):
            raise ValueError(f"{path}: '{name}' must name a library and a class, got {shown(entry)}.")
        _check_component(folder, name, *entry, trust_remote_code=trust_remote_code)
    if damaged := damaged_files(folder, read_config(path)):
        raise ValueError(
            f"{os.path.join(folder, damaged[0])} is damaged, or was changed after the policy was saved: its "
            f"checksum is not the one in {INDEX_FILE}. Get it anew; if the change is meant, delete the entry "
            f"{CHECKSUMS} there, load the policy and save it again."
        )


def _check_component(
    folder: str, name: str, library: str, class_name: str, *, trust_remote_code: bool
) -> None:
    index = os.path.join(folder, INDEX_FILE)
    place = os.path.join(folder, name)
    if not _LIBRARY_NAME.fullmatch(library):
        raise ValueError(
            f"{index}: '{name}' names the library {shown(library)}, which is not a valid module name."
        )
    if name == "scheduler":
        if library != "diffusers" or class_name not in SCHEDULERS:
            raise ValueError(
                f"{index}: the scheduler must be one of diffusers' {', '.join(SCHEDULERS)}, got "
                f"{shown(class_name)} of {shown(library)}."
            )
        check_scheduler(os.path.join(place, "scheduler_config.json"), class_name)
        return
    model_class = getattr(models, class_name) if class_name in KINDS[name] else None
    ships_code = os.path.isfile(os.path.join(place, f"{library}.py"))
    if model_class is None and not (trust_remote_code and ships_code):
        known = "which this version does not know: upgrade with `pip install -U spi-diffusers`"
        if class_name in INSTALLED_MODULES:
            known = f"but must be a {' or '.join(KINDS[name])}: get the policy anew"
        raise ValueError(
            f"{index}: '{name}' is a {class_name:.200} of {library:.200}, {known}; or, if you trust the code "
            "that the policy ships, pass trust_remote_code=True."
        )
    path = os.path.join(place, "config.json")
    config = read_config(path)
    shapes = _weight_shapes(place)
    if model_class is not None:
        check_config(path, config, model_class)
        _check_shapes(place, model_class, config, shapes)


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
    check_is_content(path)
    with open(path, "rb") as header:
        length = int.from_bytes(header.read(8), "little")
    if length > MAX_CONFIG_BYTES:
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
    # Before a network is made, even one without memory: a config can name any size.
    largest = max((size for shape in shapes.values() if 0 not in shape for size in shape), default=0)
    for key, value in config.items():
        sizes = value if isinstance(value, list) else [value]
        if key.endswith(("_dim", "_dims", "_pairs")) or key.startswith("num_"):
            bound = MAX_CANDIDATES if key == "num_candidates" else largest  # they have no weights
            too_large = [size for size in sizes if size > bound]
            if too_large or len(sizes) > len(shapes):
                raise ValueError(
                    f"{os.path.join(folder, WEIGHTS_FILE)} does not fit its config.json: {key} names "
                    f"{f'a size of {too_large[0]}' if too_large else f'{len(sizes)} layers'}, more than the "
                    "weights have."
                )
    with naming(path), torch.device("meta"):
        state = model_class.from_config(config).state_dict()
    expected = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key))
    if wrong:
        path, key = os.path.join(folder, WEIGHTS_FILE), wrong[0]
        raise ValueError(
            f"{path} does not fit its config.json: '{key}' has shape {shapes.get(key, 'none (missing)')}, "
            f"expected {expected.get(key, 'none (unknown weight)')}; {len(wrong)} weights differ."
        )
