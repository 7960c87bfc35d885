"""Files: names in a run's folder, complete or absent writes, JSON. Imports nothing heavy."""

import contextlib
import difflib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from spi_diffusers.documents import MAX_JSON_BYTES, DocumentError, parse_json
from spi_diffusers.leftovers import hidden_folder, name_aside, remove_leftovers

# ---- names in the folder of a training run
#: Where commands write, unless they are told otherwise.
OUTPUTS_FOLDER = "outputs"
CONFIG_FILE = "train_config.json"
#: Beside a policy's weights: what an evaluation must know about their training.
INFO_FILE = "train_info.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
POLICY_FOLDER = "policy"
#: Results of playing the policy; a chosen simulator's folder has its name behind a dash.
EVALUATION_FOLDER = "evaluation"
RESULTS_FILE = "results.json"
REPLAY_FILE = "replay.mp4"
#: In a policy's folder: what `spi assess` expects of it, and what `spi certify` has shown.
ASSESSMENT_FILE, CERTIFICATE_FILE = "assessment.json", "certificate.json"
#: What the Hub shows of a repository.
CARD_FILE = "README.md"
#: What makes a folder a diffusers pipeline, and the code that diffusers loads it with.
INDEX_FILE, CODE_FILE = "model_index.json", "pipeline.py"
#: The entry of the index that holds the SHA-256 of every file of the policy.
CHECKSUMS = "_sha256"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

#: An id on the Hub: organization/name.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: What stands for a file in a clone that was made without Git LFS.
LFS_POINTER = b"version https://git-lfs."


class PolicyError(ValueError):
    """A policy cannot be used; the message names the folder, the file or the repository."""


def local_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user gives it, in which `~` is the home folder; all that come in go through here.

    ValueError: a name in it, or in the current folder's path, is no text. Arrow and safetensors open no such
    file, and would say so only after hours of training.
    """
    found = Path(os.path.expanduser(path))
    try:
        str(found.absolute()).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(found.absolute()).decode(errors="backslashreplace")
        raise ValueError(
            f"{shown}: has a name that is not UTF-8; rename it, or choose another folder"
        ) from None
    return found


def find_local_policy(policy: str | os.PathLike[str], revision: str | None = None) -> Path | None:
    """The folder of a policy on this machine; None where its name is one to look for on the Hub.

    Args:
        policy: Folder of a policy, or of the run that made it, or an id on the Hub (`org/name`). What exists
            on disk is never looked up on the Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        FileNotFoundError: There is no such folder, and it does not look like an id on the Hub; or the folder
            holds no policy. The message names the nearest existing folder.
        PolicyError: A revision of a local folder was asked for.
    """
    if not isinstance(policy, str | os.PathLike) or not str(policy):
        raise PolicyError(f"a policy is named by its folder or its id on the Hub, not by {policy!r:.200}")
    path, name = local_path(policy), str(policy)
    if path.exists():
        if revision is not None:
            raise PolicyError(f"{path}: revision={revision} applies to Hub ids only; this is a local folder")
        return find_policy_folder(path)
    check_hub_id(name, revision, "; for one on the Hub, name a revision such as main")
    return None


def check_hub_id(name: str, revision: str | None = None, advice: str = "") -> None:
    """Refuse, by FileNotFoundError, what is not on disk and is not, or hardly, an id on the Hub.

    Args:
        name: What is looked for.
        revision: Branch, tag or commit: whoever names one means the Hub.
        advice: What to do if it is on the Hub nevertheless.
    """
    hint = did_you_mean(local_path(name))
    if not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"{name}: no such folder, and not an id on the Hub (org/name){hint}")
    if revision is None and is_mistyped(name):
        raise FileNotFoundError(f"{name}: no such folder{hint}{advice}")


def is_mistyped(name: str) -> bool:
    """Whether what is not on disk is rather a path with a typing error than an id on the Hub: something like
    it is beside it, or it begins as the folders do that commands make.
    """
    path = local_path(name)
    return path.parts[:1] == (OUTPUTS_FOLDER,) or (path.parent.exists() and bool(did_you_mean(path)))


def find_policy_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a policy, given that folder or the one of the run that made it.

    Raises:
        FileNotFoundError: There is no such folder, or no policy in it.
    """
    path = local_path(path)
    for folder in (path, path / POLICY_FOLDER):
        if (folder / INDEX_FILE).is_file():
            return folder
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder{did_you_mean(path)}")
    raise FileNotFoundError(
        f"{path}: holds no policy (there is no {INDEX_FILE}). Training saves it at its end; a run that was "
        "stopped before goes on with --resume"
    )


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """End of a message about an unknown name: "; did you mean X?", or nothing where no name is similar.

    Args:
        name: What was asked for.
        known: Names that exist.
        prefix: What the message puts before the name that it proposes.
    """
    by_lower_case = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f"; did you mean {prefix}{by_lower_case[close[0]]}?" if close else ""


def did_you_mean(path: str | os.PathLike[str]) -> str:
    """End of a message about a missing path: the most similar name that exists there; empty if none is."""
    missing = Path(path)
    while not missing.parent.exists():
        missing = missing.parent
    names = os.listdir(missing.parent) if missing.parent.is_dir() else []
    return nearest(missing.name, names, prefix="" if str(missing.parent) == "." else f"{missing.parent}/")


def short_name(policy: str | os.PathLike[str]) -> str:
    """What to call a policy: the name of its repository on the Hub, or of its run's folder."""
    path = local_path(policy)
    if path.exists():
        path = path.resolve()
        path = path.parent if path.name == POLICY_FOLDER else path
    return path.name


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(path: str | os.PathLike[str], max_bytes: int = -1) -> bytes:
    """The first `max_bytes` of a file, or all of it.

    Raises:
        OSError: There is none, it cannot be read, or it is a pipe or the like, which would be waited for; the
            message names it.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{path} is no regular file")
    try:
        with open(path, "rb") as file:
            return file.read(max_bytes)
    except OSError as error:  # of a failed read, it has no name
        raise type(error)(error.errno, error.strerror, str(path)) from None


def check_is_content(path: str | os.PathLike[str]) -> None:
    """Refuse a Git LFS pointer, which stands for a file in a clone that was made without LFS; ValueError."""
    if read_file(path, len(LFS_POINTER)) == LFS_POINTER:
        raise ValueError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs install` and `git lfs pull` "
            "in its clone."
        )


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk holds it.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file aside and rename it into place: the old content stays until the new one is complete.

    Raises:
        OSError: The disk is full, or the folder cannot be written; the old file is intact.
    """
    with written_aside(path) as aside:
        aside.write_bytes(content)


def replace_folder(aside: Path, target: Path) -> None:
    """Put a finished folder in place of `target`; what was there is moved out of the way, then removed.

    A kill between both moves leaves nothing under the name: the old folder is beside it, hidden, and the same
    call made again puts the new one there.

    Args:
        aside: The complete folder, on the same file system.
        target: Where it goes.
    """
    old = None
    if target.exists():
        old = name_aside(target)
        target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        if old is not None:
            old.rename(target)
        raise
    sync_folder(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    remove_leftovers(target.parent, of=target)


@contextlib.contextmanager
def folder_aside(target: Path, *, replace: bool) -> Iterator[Path]:
    """Give a new folder to fill, which takes the place of `target` once that is done.

    If anything fails on the way, the new folder is removed, and what was at `target` before is untouched.
    Missing parents are made.

    Args:
        target: Where it goes.
        replace: Replace whatever is there then; else it must be nothing, or an empty folder.

    Yields:
        The folder to fill, in the same one.

    Raises:
        OSError: It cannot be written, or there is something that must not be replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(target) as aside:
        yield aside
        if replace:
            replace_folder(aside, target)
        else:
            aside.replace(target)
            sync_folder(target.parent)
            remove_leftovers(target.parent, of=target)


def check_new_folder(folder: Path) -> None:
    """FileExistsError if there is a file of this name, or a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is not empty; name a new folder")


def remove_folder(folder: Path) -> None:
    """Remove a folder such that a kill in between never leaves a part of it under its name, and nothing that
    is put there meanwhile is removed.
    """
    aside = name_aside(folder)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    remove_leftovers(folder.parent, of=folder)


def sync_folder(folder: Path) -> None:
    """Wait until the disk holds a folder's entries (renames)."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(content: Any) -> bytes:
    """JSON text as it is written to files: indented, keys in order of insertion, newline at the end."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


@contextlib.contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the name of a new file to write; move it to `path` once it is complete and on the disk.

    If anything fails on the way (a full disk, an interrupt), the new file is removed, and what was at
    `path` before is untouched. Missing folders are made.

    Args:
        path: where the file shall be.

    Yields:
        A path in the same folder with the same suffix, which the caller writes.

    Raises:
        IsADirectoryError: `path` is a folder.
        OSError: the file cannot be written; the message names the path.
    """
    path = local_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it")
    aside = name_aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()  # where nothing can be written, this shows before the work is done
        yield aside
        with aside.open("rb+") as file:  # a rename can reach the disk before the content does
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
        remove_leftovers(path.parent, of=path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(NotADirectoryError):  # a parent is a file: reported above
            aside.unlink(missing_ok=True)


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: The file.
        max_bytes: Largest size that is read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is too large, not complete JSON, or holds something else than an object.
    """
    path = Path(path)
    try:
        text = read_file(path, max_bytes + 1)
        check_is_content(path)
        content = parse_json(text, max_bytes)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing.") from None
    except DocumentError as error:
        raise ValueError(f"{path} is not complete JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
    return content
