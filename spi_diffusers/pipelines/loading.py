"""Loading of policies: from a folder or the Hub, checked before anything is loaded, with their record."""

import hashlib
import inspect
import json
import logging
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from diffusers import ModelMixin
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from safetensors import safe_open

from spi_diffusers import models
from spi_diffusers.data.network import explain, with_retries
from spi_diffusers.files import (
    CONFIG_FILE,
    INDEX_FILE,
    INFO_FILE,
    WEIGHTS_FILE,
    PolicyError,
    did_you_mean,
    find_local_policy,
    read_json,
    to_json,
    write_durably,
)
from spi_diffusers.pipelines.spi_policy import SPIPolicyPipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Base

    from spi_diffusers.pipelines import BaselinePolicyPipeline
else:
    _Base = object  # mixed into a pipeline, which is a DiffusionPipeline

logger = logging.getLogger(__name__)

#: Modules of the component classes. A published folder names the copies that it ships, and one saved from
#: such copies names diffusers' module cache; the class names are the same everywhere.
INSTALLED_MODULES = {
    name: known.__module__
    for name, known in vars(models).items()
    if isinstance(known, type) and issubclass(known, ModelMixin)
}
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
#: Configs and headers of ours are smaller. Both are read before anything is known about a folder.
_MAX_JSON_BYTES = _MAX_HEADER_BYTES = 1_000_000
_MAX_TIMESTEPS = 100_000
_MAX_CANDIDATES = 100_000
#: A library's name becomes a path or a module, so it must be plain.
_LIBRARY_NAME = re.compile(r"[A-Za-z]\w*(\.\w+)*")


def resolve_policy(
    policy: str | os.PathLike[str],
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    **options: Any,
) -> Path:
    """Find the folder of a policy (with `model_index.json`), and download it if it is on the Hub.

    `policy` is its folder, the one of its run, or an id on the Hub (`org/name`); what exists on disk is never
    looked up on the Hub. `trust_remote_code` downloads the code that the repository ships as well; options
    (`token`, `cache_dir`, `local_files_only`, `force_download`) are huggingface_hub's.

    FileNotFoundError: no such folder and no id on the Hub, or no policy in it; PolicyError: the Hub cannot be
    reached or has no such policy, or a revision of a local folder was asked for.
    """
    local, name = find_local_policy(policy, revision), str(policy)
    if local is not None:
        return local
    patterns = ["*.json", "*.safetensors"] + (["*.py"] if trust_remote_code else [])
    download = partial(snapshot_download, name, revision=revision, allow_patterns=patterns, **options)
    try:
        folder = Path(with_retries(download, what=f"Loading {name}"))
    except Exception as error:  # huggingface_hub and httpx raise many unrelated types here
        hint = did_you_mean(Path(policy).expanduser())
        raise PolicyError(f"{name}: cannot be loaded from the Hub: {explain(error)}{hint}") from error
    if not (folder / INDEX_FILE).is_file():
        raise PolicyError(f"{name}: holds no policy: {INDEX_FILE} is missing.")
    return folder


def load_pipeline(
    policy: str | os.PathLike[str], *, revision: str | None = None
) -> "SPIPolicyPipeline | BaselinePolicyPipeline":
    """Load a policy of SPI or of a baseline; arguments and errors as in `resolve_policy`."""
    folder = resolve_policy(policy, revision)
    kind: Any = pipeline_class(folder)
    shows_bars = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()  # loading five small files needs none
    try:
        return kind.from_pretrained(str(folder))
    finally:
        if shows_bars:
            diffusers_logging.enable_progress_bar()


def pipeline_class(folder: Path) -> "type[CheckedLoading]":
    """The class of a policy's pipeline, by the name in its `model_index.json`; ValueError if it is none of
    ours.
    """
    from spi_diffusers import pipelines

    known = {kind.__name__: kind for kind in (pipelines.SPIPolicyPipeline, pipelines.BaselinePolicyPipeline)}
    path = folder / INDEX_FILE
    name = with_installed_modules(_read(str(path))).get("_class_name", "SPIPolicyPipeline")
    if name not in known:
        raise ValueError(f"{path} is of a {name}: it cannot be loaded as a {' or a '.join(known)}.")
    return known[name]


class CheckedLoading(_Base):
    """What a policy's pipeline gets its loading from; to be named before diffusers' own class.

    Attributes:
        extractions: Ways in which the policy can choose its actions.
        publishable: Whether `spi publish` takes the policy.
    """

    extractions: ClassVar[tuple[str, ...]]
    publishable: ClassVar[bool]

    _training_record: dict[str, dict[str, Any]] | None = None
    _recorded_state = ""

    @property
    def training_record(self) -> dict[str, dict[str, Any]] | None:
        """How the policy was trained: `{"config": ..., "info": ...}`, None if unknown.

        `config` is the content of `train_config.json`, which `spi train --config` takes. `info` is that of
        `train_info.json`: algorithm, seed, updates, seconds, dataset, versions. Training and
        `from_pretrained` set it; `save_pretrained` writes both files beside the weights.
        """
        return self._training_record

    @training_record.setter
    def training_record(self, record: dict[str, dict[str, Any]] | None) -> None:
        if record is not None and record.keys() != {"config", "info"}:
            raise ValueError(f"training_record must have the keys config and info, got {sorted(record)}.")
        self._training_record = record
        self._recorded_state = self._state() if record is not None else ""

    @property
    def is_as_trained(self) -> bool:
        """Whether weights and settings are still those that `training_record` is about."""
        return self.training_record is not None and self._state() == self._recorded_state

    @property
    def default_limit(self) -> float | None:
        """Cost limit to evaluate the policy at unless another one is named; None takes the task's."""
        return None

    def __repr__(self) -> str:
        config, network = self.config, next(iter(self.components.values())).config
        steps = f", at most {config.max_episode_steps} steps" if config.max_episode_steps else ""
        trained = "not recorded"
        if self.training_record is not None:
            words = "{algorithm}, {updates:,} updates, seed {train_seed}, on {dataset[id]}"
            try:
                trained = words.format(**self.training_record["info"])
            except (LookupError, TypeError, ValueError):  # not written by training
                trained = str(self.training_record["info"])
            trained += "" if self.is_as_trained else "; changed since"
        lines = (
            f"task: {config.task or 'no DSRL task'}{steps}",
            f"sizes: observation {network.observation_dim}, action {network.action_dim}",
            f"acts: {self._how_it_acts()}",
            f"trained: {trained}",
        )
        return "\n  ".join((f"{type(self).__name__}(", *lines)) + "\n)"

    def _how_it_acts(self) -> str:
        raise NotImplementedError

    def _state(self) -> str:
        """Checksum of all weights and settings."""
        digest = hashlib.sha256()
        for name, part in [("", self), *sorted(self.components.items())]:
            if part is None:
                continue
            settings = {key: value for key, value in part.config.items() if not key.startswith("_")}
            digest.update(f"{name} {json.dumps(settings, sort_keys=True, default=str)}".encode())
            if isinstance(part, torch.nn.Module):
                for key, value in part.state_dict().items():
                    content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
                    digest.update(f"{key} {value.dtype}".encode() + content.numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """Load a policy from a folder (its own, or its run's) or from the Hub; arguments as in diffusers.

        Only safetensors weights are loaded, never a pickle. The folder is checked first: diffusers itself
        only warns about missing weights, and then goes on with random ones. The code of the installed package
        is used, not the code that a repository ships.

        Raises:
            FileNotFoundError: There is no such folder, or a config or weight file is missing.
            ValueError: A file is truncated or foreign, weights and config do not fit, or the Hub has no such
                policy.
        """
        if not kwargs.setdefault("use_safetensors", True):
            raise ValueError("use_safetensors=False would load a pickle, which can run code: refused.")
        trust = bool(kwargs.get("trust_remote_code", False))
        options = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
        folder = str(resolve_policy(pretrained_model_name_or_path, trust_remote_code=trust, **options))
        check_policy_folder(folder, cls, trust_remote_code=trust)
        pipeline = super().from_pretrained(folder, **kwargs)
        config, info = Path(folder) / CONFIG_FILE, Path(folder) / INFO_FILE
        if config.is_file() and info.is_file():
            pipeline.training_record = {"config": read_json(config), "info": read_json(info)}
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        *args: Any,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Save the policy to a folder, as safetensors, with its training record.

        A policy that was changed since it was trained is saved without the record, which is about other
        weights.

        Args:
            save_directory: The folder. `spi evaluate`, `spi card` and `spi publish` take it.
            safe_serialization: Must be true: a policy is never saved as a pickle.
            *args: As in diffusers.
            push_to_hub: Publish it as well, by [`push_to_hub`].
            repo_id: Where to publish it, `org/name`.
            **kwargs: As in diffusers; with `push_to_hub` those of [`push_to_hub`].

        Raises:
            ValueError: `safe_serialization` is off, or `repo_id` is missing.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write a pickle, which can run code: refused.")
        if push_to_hub and repo_id is None:
            raise ValueError("push_to_hub=True needs repo_id='org/name'.")
        save_directory = os.path.expanduser(save_directory)
        super().save_pretrained(save_directory, True, *args, **({} if push_to_hub else kwargs))
        record = self.training_record
        if record is not None and not self.is_as_trained:
            logger.warning(
                "The policy was changed after its training; it is saved without a training record."
            )
            record = None
        config, info = Path(save_directory) / CONFIG_FILE, Path(save_directory) / INFO_FILE
        if record is not None:
            write_durably(config, to_json(record["config"]))
            write_durably(info, to_json(record["info"]))
        elif info.exists():  # of the policy that was here before
            info.unlink()
            config.unlink(missing_ok=True)
        if push_to_hub:
            self.push_to_hub(str(repo_id), **kwargs)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in diffusers, but naming the modules of the installed package, not the shipped code."""
        loaded = super().load_config(pretrained_model_name_or_path, **kwargs)
        if isinstance(loaded, tuple):  # further results were asked for
            return (with_installed_modules(loaded[0]), *loaded[1:])
        return with_installed_modules(loaded)


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
    index = with_installed_modules(_read(path))
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
        config = _read(os.path.join(folder, name, "config.json"))
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
    config = _read(path)
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


def _read(path: str) -> dict[str, Any]:
    return read_json(path, _MAX_JSON_BYTES)
