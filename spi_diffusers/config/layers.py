"""From presets, a config file and the command line to one `TrainConfig`.

Layers, each over the one before: the dataclass's defaults, `presets/default.yaml`, the task's preset, the
chosen variant (`--preset paper`), the `--config` file, the command line.
"""

import argparse
import difflib
import json
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from spi_diffusers.config.algorithms import BASELINES, SPI_METHOD
from spi_diffusers.config.train import ConfigError, TrainConfig
from spi_diffusers.config.validation import flatten
from spi_diffusers.data.tasks import resolve_task

Layer = tuple[str, dict[str, Any]]  # (what to call it in messages, its keys)

_PRESETS = resources.files("spi_diffusers.config").joinpath("presets")


def list_presets() -> list[str]:
    """Names of the presets in the package, without `.yaml`."""
    return sorted(_preset_files())


def make_train_config(
    overrides: Mapping[str, Any] | None = None, config_file: str | Path | None = None
) -> TrainConfig:
    """Merge all layers into a configuration.

    Args:
        overrides: Top layer, nested or with dotted keys: `{"task": "ballcircle", "algorithm.eta": 0.3}`.
        config_file: YAML or JSON file below it, such as the `train_config.json` of an earlier run.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: Unknown key, wrong type, broken file, value out of range, or a setting of another
            algorithm; the message names the layer and the key.
        UnknownTaskError: There is no such task.
        FileNotFoundError: There is no such config file.
    """
    return _merge(_nest(overrides or {}), config_file, "overrides")


def restore_train_config(saved: Mapping[str, Any]) -> TrainConfig:
    """A configuration as it was when it was saved, whatever the presets say today.

    Args:
        saved: What `TrainConfig.to_dict` gave. Settings that did not exist yet get their defaults: a preset
            may change them now, but did not then.

    Raises:
        ConfigError: A setting does not exist any more, or is of the wrong type or out of range.
    """
    _check_layer(TrainConfig, dict(saved), "saved configuration")
    return _decode(dict(saved), [])


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config` and one option per field of `TrainConfig` (`--algorithm.eta`) to a parser."""
    parser.add_argument(
        "--config", metavar="FILE", help="YAML or JSON file of settings; the options below override it"
    )
    _add_fields(parser, TrainConfig, "", flatten(_read_preset("default")))


def config_from_arguments(args: argparse.Namespace) -> TrainConfig:
    """The configuration that a command line asks for; see `make_train_config` for the errors."""
    given = {key: value for key, value in vars(args).items() if key in _leaf_types(TrainConfig)}
    types_ = _leaf_types(TrainConfig)
    overrides = _nest({key: _read_option(key, value, types_[key]) for key, value in given.items()})
    return _merge(overrides, args.config, "command line")


# ---- merging


def _merge(overrides: dict[str, Any], config_file: str | Path | None, top: str) -> TrainConfig:
    upper: list[Layer] = []
    if config_file is not None:
        upper.append((str(config_file), _read_file(Path(config_file))))
    upper.append((top, overrides))
    for source, layer in upper:
        _check_layer(TrainConfig, layer, source)
    layers = [*_preset_layers(upper), *upper]
    merged: dict[str, Any] = {}
    for _, layer in layers:
        _deep_update(merged, layer)
    config = _decode(merged, layers)
    # A file may serve a whole benchmark, and presets serve every algorithm; what is said last is meant.
    for key in flatten(overrides):
        if key.split(".")[0] in config.unused_settings():
            raise ConfigError(f"{top}: {_without_effect(config, key)}")
    if config_file is not None and overrides.get("preset") is not None:
        _check_preset_counts(layers, f"preset {overrides['preset']}.yaml")
    return config


def _decode(values: dict[str, Any], layers: Sequence[Layer]) -> TrainConfig:
    """The checked configuration; `layers` are where the values come from, for messages."""
    import draccus

    try:
        return draccus.decode(TrainConfig, values)
    except draccus.utils.DraccusException as error:
        # draccus hides what __post_init__ said behind "Couldn't instantiate class ...".
        cause = error.__cause__
        if isinstance(cause, ConfigError) or type(cause) is ValueError:
            raise ConfigError(f"{cause}{_culprits(str(cause), layers)}") from error
        if isinstance(cause, ValueError):
            raise cause from error
        raise ConfigError(str(error)) from error


def _check_preset_counts(layers: Sequence[Layer], name: str) -> None:
    """Refuse a preset of which the config file, a whole train_config.json, leaves nothing: it misleads."""
    preset, (file, over) = flatten(dict(layers)[name]), layers[-2]
    above = flatten(over)
    other = [key for key, value in preset.items() if key in above and above[key] != value]
    if other and preset.keys() <= above.keys():
        raise ConfigError(
            f"{name} has no effect: {file} comes after it, sets all that it sets, and has other values for "
            f"{', '.join(other)}. Leave out one of the two."
        )


def _without_effect(config: TrainConfig, key: str) -> str:
    group = "algorithm" if config.method == SPI_METHOD else BASELINES[config.method].settings
    return f"{key} has no effect on {config.method}, whose own settings are {group}.*"


def _preset_layers(upper: Sequence[Layer]) -> list[Layer]:
    def chosen(key: str) -> Any:
        return next((layer[key] for _, layer in reversed(upper) if layer.get(key) is not None), None)

    names = ["default"]
    task, variant = chosen("task"), chosen("preset")
    known_task, _ = resolve_task(task, chosen("dataset"))
    if known_task is not None:
        names.append(known_task.short_name)
    known = list_presets()
    if variant is not None:
        if variant not in known:
            raise ConfigError(f"preset '{variant}' does not exist; there are {', '.join(known)}.")
        names.append(variant)
    layers = [(f"preset {name}.yaml", _read_preset(name)) for name in dict.fromkeys(names) if name in known]
    for source, layer in layers:
        _check_layer(TrainConfig, layer, source)
    return layers


def _culprits(message: str, layers: Sequence[Layer]) -> str:
    """Say which layer set the fields that a message names."""
    words = set(re.findall(r"[A-Za-z_]\w*", message))
    origin: dict[str, str] = {}
    for source, layer in layers:
        origin |= {key: source for key in flatten(layer) if key.rsplit(".", 1)[-1] in words}
    if not origin:
        return ""
    return " Set by: " + ", ".join(f"{key} ({source})" for key, source in origin.items()) + "."


def _check_layer(cls: type, layer: Any, source: str, path: str = "") -> None:
    where = path.rstrip(".")
    if not isinstance(layer, dict):
        what = f"'{where}' must be a group of settings" if where else "must hold settings as key: value"
        raise ConfigError(f"{source}: {what}, got {layer!r}.")
    hints = get_type_hints(cls)
    for key, value in layer.items():
        if key == "mixed_precision" and value is False:
            value = layer[key] = "no"  # YAML reads a bare `no` as false
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean '{path}{close[0]}'?" if close else f"known keys: {', '.join(hints)}."
            raise ConfigError(f"{source}: unknown key '{path}{key}'; {hint}")
        if is_dataclass(hints[key]):
            _check_layer(hints[key], value, source, f"{path}{key}.")
        else:
            _check_value(hints[key], value, source, f"{path}{key}")


def _check_value(hint: Any, value: Any, source: str, key: str) -> None:
    """Refuse what draccus would bend: null, or true for a number, or a number for text."""
    from draccus.parsers.decoding import get_decoding_fn
    from draccus.utils import DraccusException

    options = _options(hint)
    if value is None and type(None) in options:
        return
    fits = value is not None
    if isinstance(value, bool):
        fits = bool in options
    elif str in options:
        fits = isinstance(value, str)
    elif isinstance(value, dict) or (
        isinstance(value, list) and not any(get_origin(o) is list for o in options)
    ):
        fits = False
    if fits:
        try:
            get_decoding_fn(hint)(value, ())
            return
        except (DraccusException, ValueError, TypeError):
            pass
        except Exception as error:  # draccus raises bare Exception for a list field that holds no list
            if type(error) is not Exception:
                raise
    quotes = " (put it in quotes)" if str in options and not isinstance(value, dict | list | None) else ""
    raise ConfigError(f"{source}: '{key}' must be {_describe(hint)}, got {value!r}{quotes}.")


# ---- reading


def _preset_files() -> dict[str, Any]:
    folders = (_PRESETS, _PRESETS.joinpath("tasks"), _PRESETS.joinpath("algorithms"))
    files = [file for folder in folders for file in folder.iterdir()]
    return {file.name.removesuffix(".yaml"): file for file in files if file.name.endswith(".yaml")}


def _read_preset(name: str) -> dict[str, Any]:
    return _parse(_preset_files()[name].read_text(encoding="utf-8"), f"preset {name}.yaml")


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not a text file in UTF-8 ({error.reason} at byte {error.start})."
        ) from error
    return _parse(text, str(path))


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        if source.endswith(".json"):
            return json.loads(text)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"{source}: is not valid YAML{place}: {getattr(error, 'problem', error)}."
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}: is not valid JSON at line {error.lineno}: {error.msg}.") from error
    return {} if content is None else content


def _read_option(key: str, value: Any, hint: Any) -> Any:
    """Turn the text of an option into data; text fields are taken as they are."""
    if isinstance(value, list):
        if len(value) == 1 and value[0].startswith("["):
            return _parse_yaml_option(key, value[0])
        return [item if _item_is_text(hint) else _parse_yaml_option(key, item) for item in value]
    options = _options(hint)
    if str in options:
        return None if type(None) in options and value in ("", "null") else value
    return _parse_yaml_option(key, value)


def _parse_yaml_option(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"command line: --{key} cannot be read: {text!r}.") from error


def _item_is_text(hint: Any) -> bool:
    return get_args(hint) == (str,)


# ---- the dataclasses' fields


def _add_fields(parser: argparse.ArgumentParser, cls: type, path: str, preset: Mapping[str, Any]) -> None:
    """One option per field; the defaults that are shown are those of the preset that is always there."""
    doc = cls.__doc__ or ""
    title = f"{path.rstrip('.')}: {doc.splitlines()[0]}" if path else "training"
    group = parser.add_argument_group(title)
    hints, texts = get_type_hints(cls), _attribute_texts(doc)
    nested: list[tuple[Any, str]] = []
    for field in fields(cls):
        hint, key = hints[field.name], f"{path}{field.name}"
        if is_dataclass(hint):
            nested.append((hint, f"{key}."))
            continue
        settings: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS}
        if get_origin(hint) is list:
            settings["nargs"] = "*"
        elif bool in _options(hint):
            settings |= {"nargs": "?", "const": "true"}
        default = field.default_factory() if callable(field.default_factory) else field.default
        default = preset.get(key, default)
        shown = "" if default is None or default == [] else f" (default: {json.dumps(default)})"
        text = (texts.get(field.name, "") + shown).replace("%", "%%")
        if key == "preset":
            text += f" There are {', '.join(name for name in list_presets() if name != 'default')}."
        group.add_argument(f"--{key}", metavar=_metavar(hint), help=text, **settings)
        if "_" in key:  # --batch-size works like --batch_size, but is not listed twice
            group.add_argument(f"--{key.replace('_', '-')}", help=argparse.SUPPRESS, **settings)
    for hint, prefix in nested:
        _add_fields(parser, hint, prefix, preset)


def _attribute_texts(doc: str) -> dict[str, str]:
    """The texts of a Google-style `Attributes:` section."""
    texts: dict[str, str] = {}
    name = ""
    for line in doc.partition("Attributes:")[2].splitlines():
        start = re.match(r" {4,8}(\w+): (.*)", line)
        if start and not line.startswith(" " * 9):
            name = start.group(1)
            texts[name] = start.group(2)
        elif name and line.strip():
            texts[name] += f" {line.strip()}"
    return texts


def _leaf_types(cls: type, path: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        leaves |= _leaf_types(hint, f"{path}{name}.") if is_dataclass(hint) else {f"{path}{name}": hint}  # type: ignore[arg-type]
    return leaves


def _options(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have, with str for a choice of texts."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(option for part in get_args(hint) for option in _options(part))
    return (str,) if get_origin(hint) is Literal else (hint,)


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint)) if len(get_args(hint)) > 1 else str(get_args(hint)[0])
    if get_origin(hint) is list:
        return f"a list, each {_describe(get_args(hint)[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names[hint]


def _metavar(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "{" + ",".join(get_args(hint)) + "}"
    if get_origin(hint) is list:
        return _metavar(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return "|".join(_metavar(part).strip("{}") for part in get_args(hint) if part is not type(None))
    return {int: "INT", float: "FLOAT", bool: "true|false", str: "TEXT"}[hint]


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"algorithm.eta": 1} -> {"algorithm": {"eta": 1}}; nested input stays as it is."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        _deep_update(nested, value)
    return nested


def _deep_update(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, dict):
            _deep_update(target.setdefault(key, {}), value)
        else:
            target[key] = value
