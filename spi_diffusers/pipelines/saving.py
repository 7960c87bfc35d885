"""Completing a saved policy folder: the code that diffusers loads it with, and checksums."""

import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spi_diffusers.files import (
    ASSESSMENT_FILE,
    CERTIFICATE_FILE,
    CODE_FILE,
    CONFIG_FILE,
    INDEX_FILE,
    INFO_FILE,
    WEIGHTS_FILE,
    folder_aside,
    replace_file,
    replace_folder,
    sha256_of,
    to_json,
)
from spi_diffusers.leftovers import hidden_folder, remove_leftovers
from spi_diffusers.pipelines.checks import CHECKSUMS, index_sha256
from spi_diffusers.pipelines.component_configs import read_config
from spi_diffusers.pipelines.policy_folder import INSTALLED_MODULES

_IMPORT = re.compile(
    r"^from spi_diffusers\.pipelines\.(\w+) import (?:\(.*?^\)|[^\n(]*)\n", re.MULTILINE | re.DOTALL
)
#: Actors and their losses share code, so the baselines' is not shipped.
_BASELINE_CODE = b'''"""The policy of a baseline acts with the package only: pip install spi-diffusers."""

from spi_diffusers.pipelines.baseline_policy import BaselinePolicyPipeline

__all__ = ["BaselinePolicyPipeline"]
'''


def with_code(index: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A `model_index.json` that names the code beside it, and that code by its path in the folder.

    Without the checksums, which are of other files. ValueError: a component is of no class of this package.
    """
    index = {key: value for key, value in index.items() if key not in ("_name_or_path", CHECKSUMS)}
    class_name = index["_class_name"]
    class_name = class_name[1] if isinstance(class_name, list) else class_name
    if class_name not in ("SPIPolicyPipeline", "BaselinePolicyPipeline"):
        return index, {}  # a class of the user, who has its code
    is_baseline = class_name == "BaselinePolicyPipeline"
    index["_class_name"] = [CODE_FILE.removesuffix(".py"), class_name]
    code = {CODE_FILE: _BASELINE_CODE if is_baseline else pipeline_code()}
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry[0] == "diffusers":
            continue
        if not isinstance(entry[0], str):  # left out, or the numbers of a range
            continue
        if entry[1] not in INSTALLED_MODULES:
            raise ValueError(
                f"'{name}' is a {entry[1]}, which is no class of this package: its code cannot go with the "
                "policy."
            )
        module = INSTALLED_MODULES[entry[1]]
        if is_baseline:
            index[name] = [module, entry[1]]
            continue
        module = module.rpartition(".")[2]
        index[name] = [module, entry[1]]
        code[f"{name}/{module}.py"] = _source("models", module)
    return index, code


def sealed(index: Mapping[str, Any], sums: Mapping[str, str]) -> bytes:
    """The text of a `model_index.json` with the checksums of the policy's files, by path."""
    content = {**index, CHECKSUMS: dict(sorted(sums.items()))}
    content[CHECKSUMS][INDEX_FILE] = index_sha256(content)
    return to_json(content)


def complete_folder(folder: Path) -> None:
    """Add code and checksums to what diffusers has saved in a new folder; ValueError as in `with_code`."""
    index, code = with_code(read_config(folder / INDEX_FILE))
    _finish_components(folder, stat.S_IMODE((folder / INDEX_FILE).stat().st_mode))
    for name, content in code.items():
        (folder / name).write_bytes(content)
    (folder / INDEX_FILE).write_bytes(to_json(index))
    seal_folder(folder)


def add_component(folder: Path, name: str, component: Any) -> None:
    """Put a component into a saved policy, or in the place of an old one; all else there stays as it is.

    Whoever is stopped in between leaves the policy without the component.

    Args:
        folder: Of the policy.
        name: What the pipeline calls the component.
        component: One of this package's classes.

    Raises:
        OSError: The folder cannot be written.
    """
    old = read_config(folder / INDEX_FILE)
    named = [INSTALLED_MODULES[type(component).__name__], type(component).__name__]
    index, code = with_code({**old, name: named})
    sums = {path: sha256 for path, sha256 in old[CHECKSUMS].items() if path.partition("/")[0] != name}
    kept = {path: sha256 for path, sha256 in sums.items() if path not in code}
    with hidden_folder(folder, folder) as aside:
        component.save_pretrained(aside / name)
        _finish_components(aside, stat.S_IMODE((folder / INDEX_FILE).stat().st_mode))
        replace_file(folder / INDEX_FILE, sealed({**index, name: [None, None]}, kept))
        for path, content in code.items():
            replace_file((aside if path.startswith(f"{name}/") else folder) / path, content)
        replace_folder(aside / name, folder / name)
    new = [path for path in (folder / name).iterdir() if path.is_file()]
    sums |= {path: sha256_of(folder / path) for path in code}
    sums |= {path.relative_to(folder).as_posix(): sha256_of(path) for path in new}
    replace_file(folder / INDEX_FILE, sealed(index, sums))


def _finish_components(folder: Path, mode: int) -> None:
    """Store the components that diffusers has saved in a folder as a policy has them."""
    for path in folder.glob("*/*config.json"):
        config = read_config(path)
        if config.pop("_name_or_path", None) is not None:  # a folder of this machine, which diffusers notes
            path.write_text(f"{json.dumps(config, indent=2, sort_keys=True)}\n", encoding="utf-8")
    for path in folder.glob(f"*/{WEIGHTS_FILE}"):
        _shrink(path)
        path.chmod(mode)  # safetensors leaves weights to their owner, whatever the umask says


def in_half_precision(value: Tensor) -> Tensor:
    """Weights rounded to what half precision holds, in float32; as they are where it cannot hold them."""
    rounded = value.half().float()
    return rounded if bool(rounded.isfinite().all()) else value


def _shrink(file: Path) -> None:
    """Store weights in half precision if that changes none of them; loading makes float32 of it again."""
    weights = load_file(file)
    if all(torch.equal(value, in_half_precision(value)) for value in weights.values()):
        save_file({name: value.half() for name, value in weights.items()}, file, {"format": "pt"})


def seal_folder(folder: Path) -> None:
    """Note the checksums of all files of a policy folder, as they are, in its index."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != INDEX_FILE]
    sums = {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}
    (folder / INDEX_FILE).write_bytes(sealed(read_config(folder / INDEX_FILE), sums))


@contextlib.contextmanager
def moved_when_complete(folder: Path, *, has_record: bool) -> Iterator[Path]:
    """A new folder to write, which replaces `folder` if all goes well.

    Where `folder` holds other files than a policy's, or cannot be moved, these stay: the files replace those
    of the same names, one by one, and a training record that is not replaced goes. The index comes last, so
    that a policy of which a part was replaced is seen to be damaged.

    Raises:
        NotADirectoryError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a policy is saved to a folder.")
    remove_leftovers(folder)
    if not folder.exists() or _is_replaceable(folder):
        with folder_aside(folder, replace=True) as aside:
            yield aside
            if folder.exists():
                shutil.copymode(folder, aside)
        return
    with hidden_folder(folder, folder) as aside:
        yield aside
        is_stale = not has_record and (folder / INFO_FILE).exists()
        paths = [path for path in aside.rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: path.name == INDEX_FILE):
            if path.name == INDEX_FILE and is_stale:
                (folder / INFO_FILE).write_bytes(b"")  # damage, by the old index
                (folder / CONFIG_FILE).unlink(missing_ok=True)
            target = folder / path.relative_to(aside)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
        if is_stale:
            (folder / INFO_FILE).unlink()


def _is_replaceable(folder: Path) -> bool:
    """Whether a folder holds nothing but a policy's files, and another one can be put in its place.

    What was assessed or certified of the policy goes with it.
    """
    try:
        own = read_config(folder / INDEX_FILE)[CHECKSUMS].keys()
    except (OSError, ValueError, KeyError, AttributeError):
        return False
    fixed = folder.is_symlink() or folder.is_mount() or not os.access(folder.parent, os.W_OK)
    if fixed or Path.cwd().is_relative_to(folder.resolve()):
        return False
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return all(name in own or name in (ASSESSMENT_FILE, CERTIFICATE_FILE) for name in files)


def pipeline_code() -> bytes:
    """The code of SPI's pipeline as one file: `spi_policy.py`, with the modules beside it that it imports."""
    merged: set[str] = set()

    def merge(module: str) -> str:
        def source(found: re.Match[str]) -> str:
            if found[1] in merged:
                return ""
            merged.add(found[1])
            return merge(found[1])

        return _IMPORT.sub(source, _source("pipelines", module).decode())

    return merge("spi_policy").encode()


def _source(package: str, module: str) -> bytes:
    return resources.files(f"spi_diffusers.{package}").joinpath(f"{module}.py").read_bytes()
