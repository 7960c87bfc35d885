"""Arrays in DSRL's layout, written as npz and as HDF5."""

import h5py
import numpy as np
import pytest


def write_npz(path, arrays):
    np.savez_compressed(path, **arrays)


def write_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip")


FORMATS = [("data.npz", write_npz), ("data.hdf5", write_hdf5)]


formats = pytest.mark.parametrize(("file_name", "write"), FORMATS, ids=["npz", "hdf5"])
