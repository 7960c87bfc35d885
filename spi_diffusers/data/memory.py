"""How much memory there is, and whether data fits into it before any of it is read."""

from pathlib import Path

from spi_diffusers.data.columns import DatasetError

#: Limit and use of the control group that a container runs in, of cgroup versions 2 and 1, and how the cached
#: files are called that it can do without.
_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def available_memory() -> int:
    """Bytes that can be used without swapping: of the machine, or of the container if that has fewer."""
    import psutil

    available = int(psutil.virtual_memory().available)
    for folder, limit_file, usage_file, cached in _CGROUPS:
        try:
            limit = int(Path(folder, limit_file).read_text())
            usage = int(Path(folder, usage_file).read_text())
            lines = Path(folder, "memory.stat").read_text().splitlines()
            usage -= int(dict(line.split() for line in lines)[cached])
        except (OSError, ValueError, KeyError):  # no such files; "max" is no limit
            continue
        available = min(available, max(limit - usage, 0))
    return available


def check_size(source: str, needed: int, available: int | None = None) -> None:
    """Refuse, by DatasetError, data that needs more bytes of memory than are available (by default, now).

    Files can declare any size: one of a kilobyte may unfold to more than the memory holds.
    """
    if available is None:
        available = available_memory()
    if needed > available:
        raise DatasetError(
            f"{source}: needs {needed / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are free; "
            "stream it if it is in the parquet layout (--streaming), else turn it into that on a machine "
            "with more memory (spi data convert), or free some"
        )
