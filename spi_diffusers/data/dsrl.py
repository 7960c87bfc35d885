"""Files in DSRL's layout: HDF5 as DSRL publishes it, and NumPy archives with the same arrays.

Arrays, episode after episode: `observations` (N, O), `next_observations` (N, O), `actions` (N, A), and
`rewards`, `costs`, `terminals`, `timeouts`, each (N,) or (N, 1). Pickled arrays are never loaded.
"""

import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from spi_diffusers.data.columns import COLUMNS, ColumnChecker, DatasetError
from spi_diffusers.data.tasks import Task
from spi_diffusers.data.transitions import TransitionDataset

#: DSRL's name of each of our columns.
DSRL_NAMES: Mapping[str, str] = {
    "observation": "observations",
    "next_observation": "next_observations",
    "action": "actions",
    "reward": "rewards",
    "cost": "costs",
    "terminated": "terminals",
    "truncated": "timeouts",
}

_SIGNATURES = {
    b"PK\x03\x04": "a zip archive",
    b"\x89HDF": "an HDF5 file",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a single NumPy array (.npy)",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a parquet file",
    b"\x80": "a Python pickle",
    b"version https://git-lfs": "a Git LFS pointer; fetch the real file with `git lfs pull`",
    b"<": "an HTML or XML page",
}


def load_npz(path: Path, task: Task | None = None, *, clip_actions: bool = False) -> TransitionDataset:
    """Load a NumPy archive in DSRL's layout. Missing `next_observations` are derived.

    Args:
        path: the `.npz` file.
        task: fixes the dimensions and the action range, where given.
        clip_actions: clip actions outside [-1, 1] instead of refusing them.

    Raises:
        DatasetError: the file is not such an archive, is cut off, holds pickled arrays, or its columns
            do not pass the checks of `TransitionDataset.from_columns`.
    """
    _check_signature(path, b"PK", "a NumPy archive (.npz)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _from_arrays(path, list(archive.files), archive.__getitem__, task, clip_actions)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DatasetError(
            f"{path}: the NumPy archive cannot be opened; it is cut off or damaged ({error})"
        ) from error


def load_hdf5(path: Path, task: Task | None = None, *, clip_actions: bool = False) -> TransitionDataset:
    """Load one of DSRL's HDF5 files, as `load_npz`; ImportError if h5py is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path}: reading HDF5 needs h5py: pip install 'spi-diffusers[hdf5]'") from error

    _check_signature(path, b"\x89HDF\r\n\x1a\n", "an HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            names = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
            # Those in groups are not read, but shown where one is missing. (No links are visited here.)
            file.visititems(
                lambda name, item: names.append(name) if "/" in name and hasattr(item, "dtype") else None
            )
            return _from_arrays(path, names, lambda name: file[name][()], task, clip_actions)
    except OSError as error:
        raise DatasetError(
            f"{path}: the HDF5 file cannot be opened; it is cut off or damaged ({error})"
        ) from error


def derive_next_observation(columns: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Fill in `next_observation` where a file has none, from the row that follows in the same episode.

    The last row of an episode has no following row. Where the episode terminated, the bootstrap is cut
    and the value is never used, so the observation itself stands in. Where it was only truncated, the
    value would be bootstrapped from and any stand-in would be wrong, so the row is dropped and the row
    before it becomes the truncated end of the episode; an episode of that one row disappears.

    Returns:
        The new columns without the index columns, and the number of dropped rows.
    """
    terminated, truncated = columns["terminated"], columns["truncated"]
    observation = columns["observation"]
    drop = truncated & ~terminated
    following = np.concatenate([observation[1:], observation[-1:]])
    new = {name: columns[name] for name in COLUMNS}
    new["next_observation"] = np.where(terminated[:, None], observation, following)
    # The row before a dropped one becomes the end, unless the dropped row is all there is of its episode.
    longer = drop & (columns["frame_index"] > 0)
    new["truncated"] = truncated.copy()
    new["truncated"][np.flatnonzero(longer) - 1] = True
    return {name: values[~drop] for name, values in new.items()}, int(drop.sum())


def dataset_from_raw(
    raw: Mapping[str, np.ndarray],
    source: str,
    names: Mapping[str, str],
    task: Task | None = None,
    *,
    clip_actions: bool = False,
    stacklevel: int = 2,
) -> TransitionDataset:
    """As `TransitionDataset.from_columns`; a missing `next_observation` is derived, with a warning.

    `stacklevel` says whose line the warning names (2: the caller's).
    """
    if "next_observation" not in raw and "observation" in raw:
        stand_in = {**raw, "next_observation": raw["observation"]}
        clean = ColumnChecker(source, names).clean(stand_in, task, clip_actions=clip_actions)
        raw, dropped = derive_next_observation(clean)
        warnings.warn(
            f"{source}: has no {names.get('next_observation', 'next_observation')!r}; took the following row "
            f"of each episode, and dropped the last row of {dropped} truncated episodes, for which nothing "
            "follows",
            stacklevel=stacklevel + 1,
        )
    return TransitionDataset.from_columns(
        raw, task=task, source=source, names=names, clip_actions=clip_actions
    )


def _check_signature(path: Path, expected: bytes, kind: str) -> None:
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(expected):
        return
    if not head:
        raise DatasetError(f"{path}: is empty (0 bytes), not {kind}")
    is_ = next((name for magic, name in _SIGNATURES.items() if head.startswith(magic)), "something else")
    raise DatasetError(f"{path}: is not {kind} but {is_} (it starts with the bytes {head[:8].hex(' ')})")


def _from_arrays(
    path: Path, available: list[str], read: Callable[[str], np.ndarray], task: Task | None, clip_actions: bool
) -> TransitionDataset:
    raw: dict[str, np.ndarray] = {}
    for column, name in DSRL_NAMES.items():
        if name not in available:
            continue
        try:
            raw[column] = np.asarray(read(name))
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            reason = (
                "is a pickled object array, and pickles are never loaded; save it as a plain number array"
                if "allow_pickle" in str(error)
                else f"cannot be read; the file is cut off or damaged ({error})"
            )
            raise DatasetError(f"{path}: column {name!r} {reason}") from error
    # Not left to the checks later, which know only what was read.
    ColumnChecker(str(path), DSRL_NAMES).check_present({*raw, "next_observation"}, available)
    # Warnings point at the caller of `load_npz` or `load_hdf5`.
    return dataset_from_raw(raw, str(path), DSRL_NAMES, task, clip_actions=clip_actions, stacklevel=4)
