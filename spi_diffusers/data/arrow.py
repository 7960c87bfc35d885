"""Arrow columns as NumPy arrays.

Row by row access of `datasets` is some 200 times slower than a tensor gather, so the columns are viewed
without a copy, and copied once, whole, into contiguous tensors.
"""

import re
from typing import TYPE_CHECKING

import numpy as np

from spi_diffusers.data.columns import VECTOR_COLUMNS, DatasetError
from spi_diffusers.messages import shown

if TYPE_CHECKING:
    import pyarrow as pa


def column_to_numpy(
    column: "pa.ChunkedArray", name: str, source: str, *, vector: bool | None = None, first_row: int = 0
) -> np.ndarray:
    """View an Arrow column as a NumPy array: (N,) for numbers and bools, (N, D) for lists.

    One chunk of numbers is viewed in place (read-only); several chunks are joined by one copy, and bool
    columns are unpacked from bits. `vector` says whether lists are expected, by default what the name means
    in our layout. DatasetError for nulls, lists of different lengths, or what is not a number.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    def error(problem: str) -> DatasetError:
        return DatasetError(f"{source}: column {name!r} {problem}")

    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if array.null_count:
        row = first_row + pc.index(pc.is_null(array), True).as_py()
        raise error(f"has {array.null_count} missing values (null), first in row {row}")
    if vector is None:
        vector = name in VECTOR_COLUMNS
    if is_list(array.type) != vector:
        wanted = "one list of numbers per row" if vector else "one number per row"
        raise error(f"must hold {wanted}, not {array.type}")
    width = 0
    if vector:
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
        raise error(f"must hold numbers, not {array.type}{_example(array)}")
    values = array.to_numpy(zero_copy_only=numeric)
    return values.reshape(rows, width) if vector else values


def _example(array: "pa.Array") -> str:
    """One of the texts, where texts are: the first that is no number, if there is one."""
    import pyarrow as pa

    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        return ""
    texts = array.to_pylist()
    number = re.compile(r"[-+.\deE]+")
    text = next((text for text in texts if not number.fullmatch(text)), texts[0] if texts else "")
    return f" such as {shown(text)}"


def is_list(kind: "pa.DataType") -> bool:
    """Whether values of a type are lists, of a fixed length or not."""
    import pyarrow as pa

    checks = (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    return any(check(kind) for check in checks)
