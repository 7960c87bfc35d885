"""From presets, a config file and options to one `TrainConfig`.

Layers, each over the one before: the dataclass's defaults, `presets/default.yaml`, those of the task, those
of the algorithm, the `--config` file, the options.
"""

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from spi_diffusers.config.algorithms import ALGORITHMS, DEFAULT_ALGORITHM
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import ConfigError, bad_value, flatten, leaf_types, short, unknown_field
from spi_diffusers.data.tasks import resolve_task

Layer = tuple[str, dict[str, Any]]  # (what to call it in messages, values by dotted key)

_PRESETS = resources.files("spi_diffusers.config").joinpath("presets")


def make_train_config(
    overrides: Mapping[str, Any] | None = None,
    config_file: str | Path | None = None,
    *,
    source: str = "keyword",
) -> TrainConfig:
    """Merge all layers into a configuration.

    Args:
        overrides: Top layer, nested or with dotted keys: `{"task": "ballcircle", "spi.eta": 0.3}`.
        config_file: YAML or JSON file below it, such as the `train_config.json` of an earlier run.
        source: What messages call the top layer.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: Unknown key, wrong type, broken file, value out of range, or a setting of another
            algorithm; the message names the layer and the key.
        UnknownTaskError: There is no such task.
        FileNotFoundError: There is no such config file.
    """
    upper: list[Layer] = [] if config_file is None else [(str(config_file), _read_file(Path(config_file)))]
    upper.append((source, flatten(overrides or {})))
    said: dict[str, Any] = {}
    for _, layer in upper:
        said |= {key: value for key, value in layer.items() if isinstance(value, str) and value}
    presets = _presets(said.get("task"), said.get("dataset"), said.get("algorithm"))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, layer in [*presets, *upper]:
        _check_keys(layer, name)
        values |= layer
        sources |= dict.fromkeys(layer, name)
    if config_file is not None and upper[-1][1].get("algorithm") is not None:
        _check_preset_counts(presets[-1], upper[0])
    try:
        config = TrainConfig(**_nest(values))
    except ConfigError as error:
        raise ConfigError(f"{error}{_set_by(error, sources)}", error.name) from None
    # A file may serve a whole benchmark, and presets serve every algorithm; what is said last is meant.
    for key in upper[-1][1]:
        if key.split(".")[0] in config.unused_settings():
            own = f"{config.algorithm}, whose own settings are {config.group}.*"
            raise ConfigError(f"{key} has no effect on {own} ({source})", key)
    return config


def read_preset(name: str) -> dict[str, Any]:
    """The settings of `presets/<name>.yaml` by dotted key; none where there is no such file."""
    file = _PRESETS.joinpath(f"{name}.yaml")
    return _parse(file.read_text(encoding="utf-8"), f"preset {name}.yaml") if file.is_file() else {}


# ---- merging


def _presets(task: Any, dataset: Any, algorithm: Any) -> list[Layer]:
    known_task, _ = resolve_task(task, dataset)
    names = ["default"] if known_task is None else ["default", f"tasks/{known_task.short_name}"]
    name = DEFAULT_ALGORITHM if algorithm is None else algorithm
    if isinstance(name, str) and name in ALGORITHMS:  # others are refused with their name later
        names.append(f"algorithms/{name}")
    return [(f"preset {name}.yaml", read_preset(name)) for name in names]


def _check_keys(layer: Mapping[str, Any], source: str) -> None:
    known = leaf_types(TrainConfig)
    for key, value in layer.items():
        if key in known:
            continue
        is_group = any(name.startswith(f"{key}.") for name in known)
        error = bad_value(key, TrainConfig, value) if is_group else unknown_field(key, known)
        raise ConfigError(f"{error} ({source})", key)


def _check_preset_counts(preset: Layer, file: Layer) -> None:
    """Refuse --algorithm where the config file overrides all of its defaults."""
    other = [key for key, value in preset[1].items() if file[1].get(key, value) != value]
    if other and preset[1].keys() <= file[1].keys():
        raise ConfigError(
            f"{preset[0]} has no effect: {file[0]} comes after it and overrides all of its settings, with "
            f"other values for {', '.join(other)}; leave out the algorithm or the file"
        )


def _set_by(error: ConfigError, sources: Mapping[str, str]) -> str:
    """Say which layer set the fields that a message names."""
    if error.name in sources:
        return f" ({sources[error.name]})"
    words = set(re.findall(r"[A-Za-z_]\w*", str(error)))
    culprits = [f"{key} ({source})" for key, source in sources.items() if key.rsplit(".", 1)[-1] in words]
    return f". Set by: {', '.join(culprits)}" if culprits else ""


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"spi.eta": 1} -> {"spi": {"eta": 1}}."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, name = key.split(".")
        group = nested
        for part in path:
            group = group.setdefault(part, {})
        group[name] = value
    return nested


# ---- reading


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2: `no` is text, 1e-3 is a number, and 010 is none. No aliases, no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "aliases are not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                problem = f"{key.value} is set twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


_INT = r"[-+]?(0|[1-9]\d*)"
_FLOAT = r"[-+]?(\.\d+|(0|[1-9]\d*)(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_BOOL = "true|True|TRUE|false|False|FALSE"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(f"^({_BOOL})$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"^({_INT})$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^({_FLOAT})$"), list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, _Loader)


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not a text file in UTF-8 ({error.reason} at byte {error.start})"
        ) from None
    return _parse(text, str(path))


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        is_json = source.endswith(".json")
        content = json.loads(text, object_pairs_hook=_once) if is_json else read_yaml(text)
        if not isinstance(content, dict | None):
            raise ConfigError(f"must hold settings as key: value, got {short(content)}")
        return flatten(content or {})
    except RecursionError:
        raise ConfigError(f"{source}: is nested too deeply to be settings") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}: is not valid YAML{place}: {getattr(error, 'problem', error)}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}: is not valid JSON at line {error.lineno}: {error.msg}") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{twice} is set twice")
    return dict(pairs)
