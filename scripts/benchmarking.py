"""What the benchmark scripts share: processes on a fixed number of cores, and facts about the machine."""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_pinned(cores: int, arguments: Sequence[str]) -> Any:
    """Run this script again in a fresh process that may use `cores` cores, and return the JSON it prints.

    The number of threads is set in the environment as well, because libraries size their thread pools when
    they are loaded.

    Raises:
        SystemExit: The process failed; its own messages are above.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)}
    process = subprocess.run(
        [sys.executable, sys.argv[0], *arguments, "--worker-cores", str(cores)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.returncode != 0:
        raise SystemExit(f"error: the measuring process on {cores} core(s) failed; see above.")
    return json.loads(process.stdout.splitlines()[-1])


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pin_to_cores(cores: int) -> bool:
    """Restrict this process to the first `cores` of its cores; False where the system cannot (macOS)."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    return True


def peak_memory_mb() -> float:
    """Largest resident memory this process ever had, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def cpu_facts() -> dict[str, Any]:
    """Name of the processor, and which instructions for bfloat16 it has."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "bfloat16_instructions": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
    }


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code; nothing that names the machine or the day."""
    from spi_diffusers.training.runtime import package_versions

    return {
        **cpu_facts(),
        "cores": available_cores(),
        "system": platform.system(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": package_versions(),
    }


def check_cores(cores: Sequence[int]) -> list[int]:
    """The wanted core counts that this machine has, with a note about the others.

    Raises:
        SystemExit: It has none of them.
    """
    most = available_cores()
    usable = [count for count in cores if 1 <= count <= most]
    for count in sorted(set(cores) - set(usable)):
        print(f"Skipping {count} cores: this process may use {most}.", file=sys.stderr)
    if not usable:
        raise SystemExit(f"error: --cores {' '.join(map(str, cores))}: this process may use 1 to {most}.")
    return usable


def save(path: Path, results: dict[str, Any]) -> None:
    """Write a results file: complete, or not at all.

    Raises:
        OSError: It cannot be written; an old one is intact.
    """
    from spi_diffusers.files import replace_file, to_json

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, to_json(results))
    print(f"Results written to {path}.")


def ratios_within_rounds(rates: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios within each round."""
    ratios = [rate / other for rate, other in zip(rates, reference, strict=True)]
    return {
        "median": round(statistics.median(ratios), 2),
        "min": round(min(ratios), 2),
        "max": round(max(ratios), 2),
    }


def positive(kind: type) -> Any:
    """An argparse type: a number above zero."""

    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above zero, got {text}")
        return value

    return number
