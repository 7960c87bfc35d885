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
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from spi_diffusers.data.assembly import Columns, dataset_from_parts
from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.memory import check_size
from spi_diffusers.data.roles import ColumnNames, choose_columns
from spi_diffusers.data.signatures import check_signature
from spi_diffusers.data.tasks import Task
from spi_diffusers.data.transitions import TransitionDataset
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


def load_npz(
    path: Path, task: Task | None = None, columns: ColumnNames | None = None, *, clip_actions: bool = False
) -> TransitionDataset:
    """Load a NumPy archive. Missing next observations are derived.

    Args:
        path: the `.npz` file.
        task: fixes the dimensions and the action range, where given.
        columns: which arrays hold what; by default those with usual names.
        clip_actions: clip actions outside [-1, 1] instead of refusing them.

    Raises:
        DatasetError: the file is not such an archive, is cut off, holds pickled arrays, declares more than
            fits into memory, or its columns do not pass the checks of `TransitionDataset.from_columns`.
    """
    check_signature(path, b"PK", "a NumPy archive (.npz)")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise DatasetError(f"{path}: has several arrays named {twice[0]!r}")
            wanted = _wanted(path, names, columns)
            headers = {name: _npz_shape(path, archive, name) for name in wanted}
            check_size(str(path), sum(map(_bytes, headers.values())))
            arrays = {name: _npz_array(path, archive, name) for name in wanted}
    except DatasetError:
        raise
    except Exception as error:  # zipfile and zlib raise many unrelated types for damaged archives
        raise DatasetError(
            f"{path}: the NumPy archive cannot be opened; it is cut off or damaged ({say(error)})"
        ) from error
    return _from_arrays(path, names, arrays, task, columns, clip_actions)


def load_hdf5(
    path: Path, task: Task | None = None, columns: ColumnNames | None = None, *, clip_actions: bool = False
) -> TransitionDataset:
    """Load an HDF5 file, as `load_npz`; ImportError if h5py is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path}: reading HDF5 needs h5py: pip install 'spi-diffusers[hdf5]'") from error

    check_signature(path, _HDF5, "an HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            names = _hdf5_names(file)
            datasets = {name: own_dataset(path, file, name) for name in _wanted(path, names, columns)}
            check_size(str(path), sum(map(_bytes, datasets.values())))
            arrays = {name: _hdf5_array(path, item) for name, item in datasets.items()}
    except (DatasetError, ImportError):
        raise
    except Exception as error:  # h5py raises many unrelated types for damaged files
        raise DatasetError(
            f"{path}: the HDF5 file cannot be opened; it is cut off or damaged ({say(error)})"
        ) from error
    return _from_arrays(path, names, arrays, task, columns, clip_actions)


def _wanted(path: Path, names: list[str], columns: ColumnNames | None) -> list[str]:
    chosen = choose_columns(str(path), names, columns or ColumnNames())
    index = ["frame_index"] if "frame_index" in names else []
    return list(dict.fromkeys([name for found in chosen.values() for name in found] + index))


def _from_arrays(
    path: Path,
    names: list[str],
    arrays: Mapping[str, np.ndarray],
    task: Task | None,
    columns: ColumnNames | None,
    clip_actions: bool,
) -> TransitionDataset:
    part = Columns(str(path), names, lambda chosen: arrays)
    # Warnings point at the caller of `load_npz` or `load_hdf5`.
    return dataset_from_parts([part], str(path), columns, task, clip_actions=clip_actions, stacklevel=4)


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
