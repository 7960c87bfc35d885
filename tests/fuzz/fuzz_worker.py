"""Loads mutated inputs, one after the other, and prints a line of JSON for each that is not handled well.

    python tests/fuzz/fuzz_worker.py KIND BASE FIRST COUNT

KIND says how BASE (a file or a folder, never changed) is loaded; mutation number n depends on n alone, so
that a COUNT of 1 repeats one of them. Handled well is: within 20 seconds and 1 GB more memory, a load whose
result is right, or a ValueError or OSError of one line that names the input. Nothing is executed or written.
"""

import hashlib
import json
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from mutate import files_below, fresh_copy, mutate_path

from spi_diffusers.config.train import TrainConfig
from spi_diffusers.config.validation import leaf_types

SECONDS, BYTES = 20, 10**9
SETTINGS = tuple(leaf_types(TrainConfig))


class TooSlow(BaseException):
    """Raised by the alarm; nothing that catches exceptions catches it."""


def load_policy(path: Path) -> Any:
    """Actions of a policy at fixed observations."""
    from spi_diffusers import SPIPolicyPipeline

    pipeline = SPIPolicyPipeline.from_pretrained(path)
    observation = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    generator = torch.Generator().manual_seed(0)
    limits = {"cost_budget": 5.0, "steps_left": 50}
    return pipeline(observation, generator=generator, return_dict=False, **limits)[0].tolist()


def load_data(path: Path) -> float | None:
    """A dataset that loads keeps what it promises; where the format has checksums, it is the one written."""
    from spi_diffusers import load_transitions

    dataset = load_transitions(path)
    batch = dataset.transitions
    assert len(batch) == len(dataset.episode_index) > 0
    assert all(bool(column.isfinite().all()) for column in (batch.observation, batch.action, batch.reward))
    assert bool((batch.cost >= 0).all())
    has_checksums = path.is_dir() or path.suffix == ".npz"
    return float(batch.observation.double().sum() + batch.reward.double().sum()) if has_checksums else None


def load_config(path: Path) -> None:
    """The settings of a file, checked."""
    from spi_diffusers.config.layers import make_train_config

    make_train_config({}, path, source="command line")


LOADERS: dict[str, Callable[[Path], Any]] = {"policy": load_policy, "data": load_data, "config": load_config}


def main(kind: str, base: Path, first: int, count: int) -> None:
    load = LOADERS[kind]
    workplace = Path(tempfile.mkdtemp(prefix="fuzz-"))
    target, trace = workplace / base.name, workplace / "executed"
    fresh_copy(base, target)
    right = load(target)
    before = _digest(base)

    signal.signal(signal.SIGALRM, _too_slow)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + BYTES, resource.RLIM_INFINITY))
    for number in range(first, first + count):
        fresh_copy(base, target)
        random = Random(f"{kind} {base.name} {number}")
        times = random.choice((1, 1, 1, 2))
        done = " and ".join(mutate_path(target, random, trace) for _ in range(times) if files_below(target))
        mutated = _digest(target)
        signal.alarm(SECONDS)
        try:
            result = load(target)
            fault = None if result == right else "loaded, but as something else"
        except (ValueError, OSError) as error:
            fault = _unclear(error, base.name)
        except TooSlow:
            fault = f"took more than {SECONDS} seconds"
        except BaseException as error:
            fault = f"{type(error).__name__}: {str(error)[:300]}"
        signal.alarm(0)
        if trace.exists():
            fault = "executed"
            shutil.rmtree(trace)
        if _digest(target) != mutated:
            fault = "the input was changed"
        if fault is not None:
            print(json.dumps({"number": number, "done": done, "fault": fault}), flush=True)
    if _digest(base) != before:
        print(json.dumps({"number": -1, "done": "", "fault": "the base was changed"}))
    shutil.rmtree(workplace)


def _unclear(error: Exception, name: str) -> str | None:
    text = str(error)
    if len(text.splitlines()) != 1 or len(text) > 2000:
        return f"{len(text.splitlines())} lines, {len(text)} characters: {type(error).__name__}: {text[:300]}"
    if name in text or (name.startswith("config") and any(key in text for key in SETTINGS)):
        return None
    return f"does not name the input: {type(error).__name__}: {text[:300]}"


def _digest(path: Path) -> str:
    """What is on disk, not following links and not reading pipes."""
    digest = hashlib.sha256()
    for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
        digest.update(f"{one.relative_to(path.parent)} {one.is_symlink()} {one.is_dir()}".encode())
        if one.is_file() and not one.is_symlink():
            digest.update(one.read_bytes())
    return digest.hexdigest()


def _too_slow(*_: Any) -> None:
    raise TooSlow


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
