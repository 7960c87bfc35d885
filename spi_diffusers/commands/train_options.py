"""The options of `spi train` that come from the configuration's dataclasses: their fields and docstrings."""

import argparse
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin

import yaml

from spi_diffusers.config.layers import make_train_config, read_preset, read_yaml
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import ConfigError, leaf_types, union_parts, unwrap


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and one option per field of `TrainConfig` (`--spi.eta`) to a parser."""
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or JSON file of settings; the options below override it"
    )
    _add_fields(parser, TrainConfig, "", read_preset("default"))


def config_from_arguments(args: argparse.Namespace) -> TrainConfig:
    """The configuration that a command line asks for; see `make_train_config` for the errors."""
    hints = leaf_types(TrainConfig)
    given = {key: value for key, value in vars(args).items() if key in hints}
    overrides = {key: _read_option(key, value, hints[key]) for key, value in given.items()}
    return make_train_config(overrides, args.config, source="command line")


def _add_fields(parser: argparse.ArgumentParser, cls: Any, path: str, preset: Mapping[str, Any]) -> None:
    """One option per field; the defaults that are shown are those of the preset that is always there."""
    title = f"{path.rstrip('.')}: {cls.__doc__.splitlines()[0]}" if path else "training"
    group = parser.add_argument_group(title)
    hints, texts = leaf_types(cls), _attribute_texts(cls)
    nested: list[tuple[Any, str]] = []
    for field in fields(cls):
        key = f"{path}{field.name}"
        if field.name not in hints:
            nested.append((field.default_factory, f"{key}."))
            continue
        kinds = [unwrap(part)[0] for part in union_parts(hints[field.name])]
        settings: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS}
        if any(get_origin(kind) is list for kind in kinds):
            settings["nargs"] = "*"
        elif bool in kinds:
            settings |= {"nargs": "?", "const": "true"}
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = preset.get(key, default)
        shown = "" if default is None or default == [] else f" (default: {json.dumps(default)})"
        text = (texts.get(field.name, "") + shown).replace("%", "%%")
        group.add_argument(f"--{key}", metavar=_metavar(hints[field.name]), help=text, **settings)
        if "_" in key:  # --batch-size works like --batch_size, but is not listed twice
            group.add_argument(f"--{key.replace('_', '-')}", help=argparse.SUPPRESS, **settings)
    for hint, prefix in nested:
        _add_fields(parser, hint, prefix, preset)


def _attribute_texts(cls: type) -> dict[str, str]:
    """The texts of the Google-style `Attributes:` sections of a class and its bases."""
    texts: dict[str, str] = {}
    name = ""
    for base in reversed(cls.__mro__):
        for line in (base.__doc__ or "").partition("Attributes:")[2].splitlines():
            start = re.match(r" {4,8}(\w+): (.*)", line)
            if start and not line.startswith(" " * 9):
                name = start.group(1)
                texts[name] = start.group(2)
            elif name and line.strip():
                texts[name] += f" {line.strip()}"
    return texts


def _metavar(hint: Any) -> str:
    parts = [part for part in union_parts(hint) if part is not type(None)]
    if len(parts) > 1:
        return "|".join(_metavar(part).strip("{}") for part in parts)
    kind, _ = unwrap(parts[0])
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if get_origin(kind) is list:
        return _metavar(get_args(kind)[0])
    return {int: "INT", float: "FLOAT", bool: "true|false", str: "TEXT"}[kind]


def _read_option(key: str, value: Any, hint: Any) -> Any:
    """Turn the text of an option into data; text fields are taken as they are."""
    kinds = [unwrap(part)[0] for part in union_parts(hint)]
    if isinstance(value, list):
        if len(value) == 1 and value[0].startswith("["):
            return _read_yaml(key, value[0])
        return [_read_option(key, item, get_args(kinds[0])[0]) for item in value]
    if str in kinds:
        return None if type(None) in kinds and value in ("", "null") else value
    return _read_yaml(key, value)


def _read_yaml(key: str, text: str) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"--{key} cannot be read: {text!r} (command line)", key) from None
