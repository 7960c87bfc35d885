"""Ways to damage a file or a folder, each decided by a random generator alone."""

import gzip
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

#: Values that no field takes as they are, or only some fields.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, "", "abc", "../../x", [], {}, [1], {"a": 1}, -1, 0, 1.5, 10**12, 10**400, -1e308, 1e-320),
    *(
        ["diffusers", "DiffusionPipeline"],
        "x" * 10_000,
        [[[[[]]]]],
        {"__class__": "os.system"},
        "\x00",
        "é" * 300,
    ),
)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


class _Payload:
    """Unpickled, it makes a folder: the trace that something was executed."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def mutate_bytes(content: bytes, random: Random) -> bytes:
    """Flip bits, cut, double, swap, or write absurd numbers over a few bytes."""
    data = bytearray(content)
    size = max(len(data), 1)
    # Headers decide most: half of all places lie in the first 200 bytes.
    place = random.randrange(min(size, 200) if random.random() < 0.5 else size)
    kind = random.choice(("flip", "flip", "cut", "remove", "double", "swap", "number", "number", "zeros"))
    length = random.choice((1, 2, 4, 8, 64, size // 3))
    if kind == "flip":
        for at in (place, *random.choices(range(size), k=random.choice((0, 0, 2, 30)))):
            data[at : at + 1] = bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1])
    elif kind == "cut":
        del data[place:]
    elif kind == "remove":
        del data[place : place + length]
    elif kind == "double":
        data[place:place] = data[place : place + length]
    elif kind == "swap":
        other = random.randrange(size)
        data[place : place + length], data[other : other + length] = (
            data[other : other + length],
            data[place : place + length],
        )
    elif kind == "number":
        number = random.choice((0, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
        width = random.choice((4, 8))
        data[place : place + width] = (number % 2 ** (8 * width)).to_bytes(
            width, random.choice(("little", "big"))
        )
    else:
        data[place : place + length] = bytes(length)
    return bytes(data)


def mutate_json(content: bytes, random: Random) -> bytes:
    """Delete, rename, add or change one key somewhere in a JSON object; cut what is none any more."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return content[1:]
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(tree)
    node, key = random.choice(places)
    kind = random.choice(("change", "change", "delete", "add", "rename"))
    if kind == "delete":
        del node[key]
    elif isinstance(node, dict) and kind == "rename":
        node[f"{key}{random.choice(('_', 's', ' '))}"] = node.pop(key)
    elif isinstance(node, dict) and kind == "add":
        node[random.choice(("unknown", "_class_name", "auto_map", "weights", "../x", ""))] = random.choice(
            ODD_VALUES
        )
    else:
        node[key] = random.choice(ODD_VALUES)
    return json.dumps(tree).encode()


def mutate_text(content: bytes, random: Random) -> bytes:
    """Change one cell of a table or one word of a text."""
    separator = random.choice((b",", b"\n", b":", b" "))
    parts = content.split(separator)
    value = random.choice(ODD_VALUES)
    text = value if isinstance(value, str) else json.dumps(value)
    parts[random.randrange(len(parts))] = text.encode()
    if random.random() < 0.2:
        parts.insert(
            random.randrange(len(parts)),
            random.choice((b"nan", b"inf", b'"', b"\xff\xfe", b"1;2", b"*a", b"&a")),
        )
    return separator.join(parts)


def replacement(random: Random, trace: Path) -> bytes:
    """Something else in a file's place: nothing, text, a pointer, a pickle, a bomb, endless brackets."""
    return random.choice(
        (
            lambda: b"",
            lambda: b"hello",
            lambda: _LFS_POINTER,
            lambda: pickle.dumps(_Payload(trace)),
            lambda: gzip.compress(bytes(200_000_000), 1),
            lambda: b"[" * 100_000,
            lambda: b'{"a":' * 100_000,
            lambda: b"a: &a [x]\n" + b"".join(b"b%d: &b%d [*%s,*%s]\n" % (i, i, p, p) for i, p in _aliases()),
            lambda: f"import os; os.mkdir({str(trace)!r})".encode(),
        )
    )()


def _aliases() -> list[tuple[int, bytes]]:
    return [(level, b"a" if level == 0 else b"b%d" % (level - 1)) for level in range(30)]


def files_below(target: Path) -> list[Path]:
    """The files that can still be mutated."""
    paths = sorted(target.rglob("*")) if target.is_dir() and not target.is_symlink() else [target]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def mutate_path(target: Path, random: Random, trace: Path) -> str:
    """Damage `target` itself, or one of the files below it; returns what was done."""
    files = files_below(target)
    path = random.choice(files)
    is_json = path.suffix == ".json"
    is_text = path.suffix in {".csv", ".yaml", ".yml", ".md", ".py"}
    kinds = ["bytes"] * 6 + ["replace", "place"] + ["structure"] * (8 if is_json or is_text else 0)
    kind = random.choice(kinds)
    name = path.relative_to(target) if path != target else path.name
    if kind == "structure":
        content = path.read_bytes()
        path.write_bytes(mutate_json(content, random) if is_json else mutate_text(content, random))
    elif kind == "bytes":
        path.write_bytes(mutate_bytes(path.read_bytes(), random))
    elif kind == "replace":
        path.write_bytes(replacement(random, trace))
    else:
        kind = _move(path, files, random)
    return f"{kind} {name}"


def _move(path: Path, files: list[Path], random: Random) -> str:
    kind = random.choice(("remove", "folder", "loop", "outside", "pipe", "swap", "unreadable"))
    if kind == "swap":
        other = random.choice(files)
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
        return kind
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "outside":
        path.symlink_to("/etc/hostname")
    elif kind == "pipe":
        os.mkfifo(path)  # reading it would wait for ever
    elif kind == "unreadable":
        path.symlink_to("/proc/self/mem")
    return kind


def fresh_copy(base: Path, target: Path) -> None:
    """Put an untouched copy in place of what was mutated before."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    elif target.is_symlink() or target.exists():
        target.unlink()
    if base.is_dir():
        shutil.copytree(base, target)
    else:
        shutil.copyfile(base, target)
