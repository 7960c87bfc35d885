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
#: Files up to this size in memory are read, however small they are on the disk.
_SMALL = 1 << 28
#: Real measurements are compressed less than this; what grows further was made to fill the memory.
_LARGEST_RATIO = 200


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


def check_size(source: str, needed: int, stored: int) -> None:
    """Refuse, by DatasetError, data that would take `needed` bytes in memory and takes `stored` in its file.

    Files can declare any size: one of a kilobyte may unfold to more than the memory holds.
    """
    if needed > _SMALL and needed > _LARGEST_RATIO * stored:
        raise DatasetError(
            f"{source}: declares {needed / 1e9:,.1f} GB of values in {max(stored, 1) / 1e6:,.3f} MB, which "
            "no real data does; it is damaged, or was made to fill the memory"
        )
    available = available_memory()
    if needed > available:
        raise DatasetError(
            f"{source}: takes {needed / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are free; "
            "convert it on a machine with more memory (spi data convert), or in parts: the result is streamed"
        )
