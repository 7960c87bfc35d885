"""The name of this machine's processor: what a simulation's last digits may depend on."""

import platform
from pathlib import Path


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Say what kind of processor this is.

    Args:
        cpuinfo: where Linux tells the model; elsewhere it does not exist.

    Returns:
        The model, e.g. `Intel(R) Xeon(R) Processor`; where it is not told, the architecture, e.g. `arm64`.
    """
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown"
