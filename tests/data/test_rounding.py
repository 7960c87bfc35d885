import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from spi_diffusers.data.rounding import round_significant

LARGEST = 2.0**127
FLOATS = st.floats(-LARGEST, LARGEST, width=32)


@given(
    values=arrays.arrays(np.float32, arrays.array_shapes(max_dims=3), elements=FLOATS),
    bits=st.integers(1, 24),
)
def test_bits_error_and_shape(values, bits):
    rounded = round_significant(values, bits)
    assert rounded.shape == values.shape
    assert rounded.dtype == np.float32
    assert (rounded.view(np.uint32) & ((1 << (24 - bits)) - 1) == 0).all()
    error = abs(rounded.astype(np.float64) - values)
    # Half a unit in the last place kept; below 2**-126 float32 has fewer bits.
    assert (error <= np.maximum(2.0**-bits * abs(values.astype(np.float64)), 2.0 ** (-126 - bits))).all()
    np.testing.assert_array_equal(round_significant(rounded, bits), rounded)
    np.testing.assert_array_equal(round_significant(-values, bits), -rounded)


@given(one=FLOATS, other=FLOATS)
def test_order_is_kept(one, other):
    low, high = round_significant(np.array(sorted([one, other]), dtype=np.float32))
    assert low <= high


def test_by_hand():
    step = 2.0**-11  # between neighbours of 12 bits in [1, 2)
    values = np.array([1 + 0.4 * step, 1 + 0.5 * step, 1 + 0.6 * step, 2 - 0.5 * step, 0.0, -1.0, 3.0])
    expected = [
        1.0,
        1 + step,
        1 + step,
        2.0,
        0.0,
        -1.0,
        3.0,
    ]  # half goes away from zero, also over a power of 2
    assert round_significant(values.astype(np.float32)).tolist() == expected


def test_all_bits_and_strided_input():
    values = np.linspace(-1, 1, 40, dtype=np.float32)
    np.testing.assert_array_equal(round_significant(values, 24), values)
    grid = values.reshape(8, 5)
    np.testing.assert_array_equal(round_significant(grid[::2, ::3]), round_significant(grid)[::2, ::3])
    before = values.copy()
    round_significant(values)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("bits", [0, 25, -1])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=f"bits must be between 1 and 24, got {bits}"):
        round_significant(np.ones(3, dtype=np.float32), bits)
