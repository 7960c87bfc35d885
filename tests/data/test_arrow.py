import numpy as np
import pyarrow as pa
from data_factory import make_dataset

from spi_diffusers.data.arrow import column_to_numpy
from spi_diffusers.data.writing import to_arrow


def test_a_single_chunk_is_viewed_without_a_copy():
    table = to_arrow(make_dataset())
    for name in ("observation", "action", "reward", "cost", "episode_index"):
        chunk = table.column(name).chunk(0)
        values = chunk.flatten() if hasattr(chunk, "flatten") and name in ("observation", "action") else chunk
        view = column_to_numpy(table.column(name), name, "here")
        assert view.__array_interface__["data"][0] == values.buffers()[1].address


def test_slices_and_chunks_keep_their_rows():
    table = to_arrow(make_dataset())
    whole = np.array(table.column("observation").to_pylist(), dtype=np.float32)
    sliced = table.slice(2, 5).column("observation")
    np.testing.assert_array_equal(column_to_numpy(sliced, "observation", "here"), whole[2:7])
    chunked = pa.concat_tables([table.slice(6), table.slice(1, 2)]).column("observation")
    assert chunked.num_chunks == 2
    np.testing.assert_array_equal(column_to_numpy(chunked, "observation", "here"), whole[[6, 7, 8, 1, 2]])
