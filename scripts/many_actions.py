"""Act a million times, for single observations and for batches: memory and handles must not grow.

Eight threads that share the policy must act as one does, bit for bit.

    python scripts/many_actions.py --actions 1000000

One core takes half an hour for a million single observations by one thread and by eight, and a minute for
batches.
"""

import argparse
import gc
import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from spi_diffusers import train
from spi_diffusers.cli import run_with_messages

THREADS = 8
BATCH = 1000
ALLOWED_MEGABYTES = 16.0  # what allocators and caches of torch may come to


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--actions", type=int, default=1_000_000, help="for batches as many, rounded up")
    parser.add_argument("--single", type=int, help="for single observations (default: as many)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    small = {"updates": 2, "network": {"hidden_dims": [16, 16]}, "progress": False}
    policy: Any = train("ballcircle", **small)
    failed = False
    for batch, actions in ((None, args.single or args.actions), (BATCH, args.actions)):
        calls = -(-actions // (batch or 1))
        act_all(policy, batch, range(max(calls // 20, 100)), THREADS)  # warms up
        found = {}
        for threads in (1, THREADS):
            before = resources()
            found[threads] = act_all(policy, batch, range(calls), threads)
            memory, handles = (now - then for now, then in zip(resources(), before, strict=True))
            grew = memory > ALLOWED_MEGABYTES or handles > 0
            failed |= grew
            what = f"{calls * (batch or 1)} actions, {batch or 1} at a time, {threads} thread(s)"
            print(f"{what}: {memory:+.1f} MB, {handles:+.0f} handles{': GREW' if grew else ''}", flush=True)
        if len(set(found.values())) > 1:
            failed = True
            print(f"{batch or 1} at a time: {THREADS} threads acted otherwise than one")
    return int(failed)


def act_all(policy: Any, batch: int | None, seeds: range, threads: int) -> str:
    """Act once for each seed, and return a checksum of all actions in the order of the seeds."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(seeds), 1000):  # `map` keeps a future for each of what it gets
            for action in pool.map(lambda seed: act(policy, batch, seed), seeds[start : start + 1000]):
                digest.update(action)
    return digest.hexdigest()


def act(policy: Any, batch: int | None, seed: int) -> bytes:
    shape = (8,) if batch is None else (batch, 8)
    observation = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    output = policy(observation, cost_limit=10.0, generator=seed)
    return np.asarray(output.actions).tobytes()


def resources() -> tuple[float, int]:
    """Memory of this process in MB, and its open files, sockets and pipes."""
    gc.collect()
    process = psutil.Process()
    handles = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return process.memory_info().rss / 2**20, handles


if __name__ == "__main__":
    sys.exit(run_with_messages(main))
