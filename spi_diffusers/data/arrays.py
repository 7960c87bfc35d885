"""HDF5 files and NumPy archives with one array per column, as DSRL publishes them.

DSRL's arrays, episode after episode: `observations` (N, O), `next_observations` (N, O), `actions` (N, A), and
`rewards`, `costs`, `terminals`, `timeouts`, each (N,) or (N, 1). Others are found by their usual names or
named (`roles.py`); arrays in groups go by their paths, such as `infos/cost`. Pickled arrays are never loaded,
and nothing is read from any file but the one that was named.
"""

import importlib
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from spi_diffusers.data.assembly import SourceTable
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.signatures import check_signature
from spi_diffusers.messages import say

#: DSRL's name of each of our columns.
DSRL_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "observation": "observations",
        "next_observation": "next_observations",
        "action": "actions",
        "reward": "rewards",
        "cost": "costs",
        "terminated": "terminals",
        "truncated": "timeouts",
    }
)

_HDF5 = b"\x89HDF\r\n\x1a\n"


def open_npz(path: Path) -> SourceTable:
    """The arrays of a NumPy archive.

    DatasetError, here or when they are read, if the file is not such an archive, is cut off, or holds pickled
    arrays where others are wanted.
    """
    check_signature(path, b"PK", "a NumPy archive (.npz)")
    opened = partial(_opened, path, "NumPy archive", zipfile.ZipFile)

    def size(wanted: list[str]) -> int:
        with opened() as archive:
            return sum(_bytes(_npz_shape(path, archive, name)) for name in wanted)

    def read(wanted: list[str]) -> dict[str, np.ndarray]:
        with opened() as archive:
            return {name: _npz_array(path, archive, name) for name in wanted}

    with opened() as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DatasetError(f"{path}: has several arrays named {twice[0]!r}")
    return SourceTable(str(path), names, read, size=size)


def open_hdf5(path: Path) -> SourceTable:
    """The arrays of an HDF5 file; errors as of `open_npz`, and ImportError if h5py is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path}: reading HDF5 needs h5py: pip install 'spi-diffusers[hdf5]'") from error

    check_signature(path, _HDF5, "an HDF5 file")
    opened = partial(_opened, path, "HDF5 file", partial(h5py.File, mode="r"))

    def size(wanted: list[str]) -> int:
        with opened() as file:
            return sum(_bytes(own_dataset(path, file, name)) for name in wanted)

    def read(wanted: list[str]) -> dict[str, np.ndarray]:
        with opened() as file:
            return {name: _hdf5_array(path, own_dataset(path, file, name)) for name in wanted}

    with opened() as file:
        return SourceTable(str(path), _hdf5_names(file), read, size=size)


@contextmanager
def _opened(path: Path, kind: str, open_file: Callable[[Path], Any]) -> Iterator[Any]:
    """A file, and whatever is raised for a damaged one as a DatasetError."""
    try:
        with open_file(path) as file:
            yield file
    except (DatasetError, ImportError):
        raise
    except Exception as error:  # zipfile, zlib and h5py raise many unrelated types for damaged files
        raise DatasetError(
            f"{path}: the {kind} cannot be opened; it is cut off or damaged ({say(error)})"
        ) from error


def _bytes(item: Any) -> int:
    return math.prod(item.shape or ()) * int(item.dtype.itemsize)


def _unreadable(path: Path, name: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"{path}: column {name!r} cannot be read; the file is cut off or damaged ({say(error)})"
    )


# ---- NumPy archives


def _npz_shape(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """A stand-in of the declared shape and type; DatasetError if the file does not hold as many bytes."""
    entry = archive.getinfo(f"{name}.npy")
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with archive.open(entry) as stream:
            shape, _, dtype = readers[np.lib.format.read_magic(stream)](stream)
            header = stream.tell()
    except Exception as error:
        raise _unreadable(path, name, error) from error
    if not dtype.hasobject and header + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise DatasetError(
            f"{path}: column {name!r} declares the shape {shape}, but holds {entry.file_size - header} "
            "bytes; the file is cut off or damaged"
        )
    return np.broadcast_to(np.empty((), dtype), shape)


def _npz_array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    try:
        with archive.open(f"{name}.npy") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:
        if "allow_pickle" in str(error):
            raise DatasetError(
                f"{path}: column {name!r} is a pickled object array, and pickles are never loaded; save it "
                "as a plain number array"
            ) from error
        raise _unreadable(path, name, error) from error


# ---- HDF5 files


def _hdf5_names(file: Any) -> list[str]:
    """Paths of all arrays, links to arrays included, whether they lead somewhere or not."""
    import h5py

    names: list[str] = []
    # Each object is visited once, and no links: a file may link its groups in a circle.
    groups = {"": file}

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Group):
            groups[f"{path}/"] = item
        elif isinstance(item, h5py.Dataset):
            names.append(path)

    file.visititems(visit)
    for path, group in groups.items():
        for name in group:
            link = group.get(name, getlink=True)
            is_soft = isinstance(link, h5py.SoftLink) and _soft_dataset(group, name)
            if is_soft or isinstance(link, h5py.ExternalLink):
                names.append(path + name)
    return names


def _soft_dataset(group: Any, name: str) -> bool:
    import h5py

    try:
        return group.get(name, getclass=True) is h5py.Dataset
    except (KeyError, RuntimeError, OSError):  # it leads nowhere, or round in a circle
        return False


def own_dataset(path: Path, file: Any, name: str) -> Any:
    """An array of an HDF5 file; DatasetError if its values are in another file, or cannot be decoded.

    Links, external storage and virtual datasets may name any file of this machine.
    """
    import h5py

    try:
        item = None if isinstance(file.get(name, getlink=True), h5py.ExternalLink) else file[name]
        elsewhere = item is None or item.file.filename != file.filename or item.external or item.is_virtual
    except Exception as error:
        raise _unreadable(path, name, error) from error
    if item is None or elsewhere:
        raise DatasetError(
            f"{path}: column {name!r} keeps its values in another file (an external link, external storage "
            "or a virtual dataset), from which nothing is read; copy them into this file"
        )
    if item.shape is None:
        raise DatasetError(f"{path}: column {name!r} is empty (it holds no array)")
    _check_filters(path, item)
    return item


def own_values(path: Path) -> int:
    """Bytes of all values; DatasetError for what is no HDF5 file, or if any value is in another file."""
    import h5py

    check_signature(path, _HDF5, "an HDF5 file")
    with h5py.File(path, "r") as file:
        return sum(_bytes(own_dataset(path, file, name)) for name in _hdf5_names(file))


def _check_filters(path: Path, item: Any) -> None:
    import h5py

    properties = item.id.get_create_plist()
    for code, _, _, name in map(properties.get_filter, range(properties.get_nfilters())):
        if h5py.h5z.filter_avail(code):
            continue
        where = f"{path}: column {item.name.lstrip('/')!r} is compressed by the HDF5 filter {code}"
        where += f" ({name.decode(errors='replace')[:50]})" if name else ""
        try:
            importlib.import_module("hdf5plugin")  # registers its filters
        except ImportError as error:
            raise ImportError(
                f"{where}, which h5py has not; run `pip install hdf5plugin`, or write the file with gzip"
            ) from error
        if not h5py.h5z.filter_avail(code):
            raise DatasetError(f"{where}, which neither h5py nor hdf5plugin has; write the file with gzip")


def _hdf5_array(path: Path, item: Any) -> np.ndarray:
    try:
        return np.asarray(item[()])
    except Exception as error:
        raise _unreadable(path, item.name.lstrip("/"), error) from error
