"""The options of `spi train` that come from the configuration's dataclasses: their fields and docstrings."""

import argparse
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin

from spi_diffusers.config.algorithms import ALGORITHMS, DEFAULT_ALGORITHM
from spi_diffusers.config.layers import make_train_config, read_preset
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import ConfigError, leaf_types, union_parts, unwrap
from spi_diffusers.documents import DocumentError, parse_yaml
from spi_diffusers.messages import shown

#: What `spi train --help` shows, by the title of its group; `--help-all` shows the rest.
_USUAL = {
    "what to train": ("task", "dataset", "algorithm", "cost_limit", "updates", "seed", "config"),
    "where": ("output_dir", "resume", "device", "mixed_precision"),
    "SPI's own": ("spi.eta", "spi.imitation_share"),
}
_METAVARS = {"task": "TASK", "dataset": "DATASET", "algorithm": "NAME", "output_dir": "DIR"}
_CONFIG_TEXT = "YAML or JSON file of settings. Options override it."


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and one option per field of `TrainConfig` (`--spi.eta`), grouped by dataclass."""
    parser.conflict_handler = "resolve"  # the command brings its own --help
    group = parser.add_argument_group("training")
    group.add_argument("--config", metavar="FILE", help=_CONFIG_TEXT)
    default, varying = read_preset(DEFAULT_ALGORITHM), _varying_defaults()
    for cls, path in _classes(TrainConfig):
        if path:
            group = parser.add_argument_group(f"{path.rstrip('.')}: {cls.__doc__.splitlines()[0]}")
        for key, settings in _options(cls, path, default, varying).items():
            _add(group, key, settings)


def add_usual_arguments(parser: argparse.ArgumentParser, algorithm: str | None) -> None:
    """Add the options that users decide on, with short texts, and those of the chosen algorithm.

    Args:
        parser: For help; it reads no command line.
        algorithm: Whose own settings are shown; None: SPI's most important ones.
    """
    preset = read_preset(algorithm or DEFAULT_ALGORITHM)
    varying = set() if algorithm else _varying_defaults()
    options = {
        key: one
        for cls, path in _classes(TrainConfig)
        for key, one in _options(cls, path, preset, varying).items()
    }
    options["config"] = {"metavar": "FILE", "help": _CONFIG_TEXT}
    groups = dict(_USUAL)
    if algorithm in ALGORITHMS:
        entry = ALGORITHMS[algorithm]
        own = {entry.group, *entry.uses}
        del groups["SPI's own"]
        groups[f"{algorithm}'s own"] = tuple(key for key in options if key.split(".")[0] in own)
    for title, keys in groups.items():
        group = parser.add_argument_group(title)
        for key in keys:
            _add(group, key, {**options[key], "help": _first_sentence(options[key]["help"])})


def config_from_arguments(args: argparse.Namespace) -> TrainConfig:
    """The configuration that a command line asks for; see `make_train_config` for the errors."""
    hints = leaf_types(TrainConfig)
    given = {key: value for key, value in vars(args).items() if key in hints}
    overrides = {key: _read_option(key, value, hints[key]) for key, value in given.items()}
    return make_train_config(overrides, args.config, source="command line")


# ---- from fields to options


def _classes(cls: Any, path: str = "") -> Iterator[tuple[Any, str]]:
    """A dataclass and those in its fields, with the prefix of their dotted names."""
    yield cls, path
    leaves = leaf_types(cls)
    for field in fields(cls):
        if field.name not in leaves:
            yield from _classes(field.default_factory, f"{path}{field.name}.")


def _varying_defaults() -> set[str]:
    """The settings whose default depends on the algorithm, where none is chosen yet.

    Those of the top level: a group belongs to few algorithms, and its defaults are SPI's.
    """
    return {key for name in ALGORITHMS for key in read_preset(name) if "." not in key}


def _options(
    cls: Any, path: str, preset: Mapping[str, Any], varying: Collection[str]
) -> dict[str, dict[str, Any]]:
    """What `add_argument` takes, by dotted key; the defaults shown are those of the preset."""
    hints, texts = leaf_types(cls), _attribute_texts(cls)
    if cls is TrainConfig:
        texts["algorithm"] = f"One of {', '.join(ALGORITHMS)}. {texts['algorithm'].partition('. ')[2]}"
    options: dict[str, dict[str, Any]] = {}
    for field in fields(cls):
        if field.name not in hints:
            continue
        key, kinds = f"{path}{field.name}", _kinds(hints[field.name])
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = preset.get(key, default)
        is_silent = default is None or default is False or default == []
        shown = "the algorithm's" if key in varying else _shown(default)
        shown = "" if is_silent else f" (default: {shown})"
        options[key] = {
            "metavar": _METAVARS.get(key, _metavar(kinds)),
            "help": (texts[field.name] + shown).replace("%", "%%"),
        }
        if any(get_origin(kind) is list for kind in kinds):
            options[key]["nargs"] = "*"
        elif bool in kinds:
            options[key] |= {"nargs": "?", "const": "true"}
    return options


def _add(group: "argparse._ArgumentGroup", key: str, settings: dict[str, Any]) -> None:
    group.add_argument(f"--{key.replace('_', '-')}", dest=key, default=argparse.SUPPRESS, **settings)


def _kinds(hint: Any) -> list[Any]:
    """The types that a field may have, but for None."""
    return [unwrap(part)[0] for part in union_parts(hint) if part is not type(None)]


def _metavar(kinds: list[Any]) -> str:
    words: list[str] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            words += get_args(kind)
        elif get_origin(kind) is list:
            words.append(_metavar(_kinds(get_args(kind)[0])))
        else:
            words.append({int: "N", float: "X", bool: "true|false", str: "TEXT"}[kind])
    return "|".join(words)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else json.dumps(value).strip('"')


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


def _first_sentence(text: str) -> str:
    text, _, default = text.partition(" (default: ")
    sentence = re.split(r"(?<!Eq)\. ", text)[0].rstrip(".")
    return f"{sentence} (default: {default}" if default else sentence


# ---- from the text of options to values


def _read_option(key: str, value: Any, hint: Any) -> Any:
    """Turn the text of an option into data; text fields are taken as they are."""
    if isinstance(value, list):
        *others, several = sorted(_kinds(hint), key=lambda kind: get_origin(kind) is list)
        if len(value) == 1 and (others or value[0].startswith("[")):
            return _read_yaml(key, value[0])
        return [_read_option(key, item, get_args(several)[0]) for item in value]
    if str in _kinds(hint):
        optional = type(None) in union_parts(hint)
        return None if optional and value in ("", "null") else value
    return _read_yaml(key, value)


def _read_yaml(key: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except DocumentError:
        raise ConfigError(f"--{key} cannot be read: {shown(text)} (command line)", key) from None
