"""Arrow columns as NumPy arrays."""

from typing import TYPE_CHECKING

import numpy as np

from spi_diffusers.data.columns import VECTOR_COLUMNS, DatasetError

if TYPE_CHECKING:
    import pyarrow as pa


def column_to_numpy(
    column: "pa.ChunkedArray", name: str, source: str, *, vector: bool | None = None, first_row: int = 0
) -> np.ndarray:
    """View an Arrow column as a NumPy array, without a copy where Arrow's memory allows it.

    One chunk of numbers is viewed in place (read-only); several chunks are joined by one copy, and bool
    columns are unpacked from bits.

    Args:
        column: numbers or bools, or for vectors lists of numbers that all have one length.
        name: its name, for messages.
        source: where it comes from, for messages.
        vector: whether it holds a list per row; by default what its name means in our layout.
        first_row: number of its first row, for messages.

    Returns:
        (N,) for numbers and bools, (N, D) for lists.

    Raises:
        DatasetError: it holds nulls, lists of different lengths, or no numbers.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    def error(problem: str) -> DatasetError:
        return DatasetError(f"{source}: column {name!r} {problem}")

    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if array.null_count:
        row = first_row + pc.index(pc.is_null(array), True).as_py()
        raise error(f"has {array.null_count} missing values (null), first in row {row}")
    lists = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    is_list = any(check(array.type) for check in lists)
    if vector is None:
        vector = name in VECTOR_COLUMNS
    if is_list != vector:
        wanted = "one list of numbers per row" if vector else "one number per row"
        raise error(f"must hold {wanted}, not {array.type}")
    width = 0
    if is_list:
        lengths = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) > 1:
            raise error(f"holds lists of different lengths: {sorted(lengths)[:5]}")
        width = lengths[0] if lengths else getattr(array.type, "list_size", 0)
        rows, array = len(array), array.flatten()
        if array.null_count:
            row = first_row + pc.index(pc.is_null(array), True).as_py() // width
            raise error(f"has {array.null_count} missing values (null), first in row {row}")
    numeric = pa.types.is_floating(array.type) or pa.types.is_integer(array.type)
    if not (numeric or pa.types.is_boolean(array.type)):
        raise error(f"must hold numbers, not {array.type}")
    values = array.to_numpy(zero_copy_only=numeric)
    return values.reshape(rows, width) if is_list else values
