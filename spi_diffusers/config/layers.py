"""From presets, a config file and options to one `TrainConfig`.

Layers, each over the one before: the dataclass's defaults, the algorithm's `presets/<name>.yaml`, the
`--config` file, the options.
"""

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from spi_diffusers.config.algorithms import ALGORITHMS, DEFAULT_ALGORITHM
from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import ConfigError, bad_value, flatten, leaf_types, unknown_field
from spi_diffusers.documents import MAX_YAML_BYTES, DocumentError, parse_json, parse_yaml
from spi_diffusers.files import local_path, read_file
from spi_diffusers.messages import shown

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
    upper: list[Layer] = []
    if config_file is not None:
        upper.append((str(config_file), _read_file(local_path(config_file))))
    upper.append((source, flatten(overrides or {})))
    said: dict[str, Any] = {}
    for _, layer in upper:
        said |= {key: value for key, value in layer.items() if isinstance(value, str) and value}
    presets = _presets(said.get("algorithm"))
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
    return _parse(file.read_bytes(), f"preset {name}.yaml") if file.is_file() else {}


# ---- merging


def _presets(algorithm: Any) -> list[Layer]:
    name = DEFAULT_ALGORITHM if algorithm is None else algorithm
    known = isinstance(name, str) and name in ALGORITHMS  # others are refused with their name later
    return [(f"preset {name}.yaml", read_preset(name))] if known else []


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


def _read_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such config file")
    return _parse(read_file(path, MAX_YAML_BYTES + 1), str(path))


def _parse(text: bytes, source: str) -> dict[str, Any]:
    is_json = source.endswith(".json")
    try:
        content = parse_json(text, MAX_YAML_BYTES) if is_json else parse_yaml(text)
    except DocumentError as error:
        raise ConfigError(f"{source}: {'cannot be read as JSON: ' if is_json else ''}{error}") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"{source}: must hold settings as key: value, got {shown(content)}")
    try:
        return flatten(content or {})
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}", error.name) from None
