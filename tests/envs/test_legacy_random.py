"""NumPy's legacy generators, drawn from without a trace."""

import numpy as np
import pytest

from spi_diffusers.envs.legacy_random import as_global_generator, global_generator_kept, reset_seed

# ruff: noqa: NPY002  (what is tested is about the generator that the rule advises against)


def test_what_is_drawn_from_the_global_generator_leaves_no_trace():
    np.random.seed(0)
    expected = np.random.RandomState(0).random(2)
    assert np.random.random() == expected[0]
    with pytest.raises(ZeroDivisionError), global_generator_kept():
        1 / int(np.random.random(5)[0])
    assert np.random.random() == expected[1]


def test_an_own_generator_goes_on_where_it_was():
    own, expected = np.random.RandomState(7), np.random.RandomState(7).random(4)
    np.random.seed(0)
    for start in (0, 2):
        with as_global_generator(own):
            assert np.random.random(2).tolist() == expected[start : start + 2].tolist()
    assert np.random.random() == np.random.RandomState(0).random()


def test_seeds_of_a_reset():
    assert reset_seed(3, is_first=True) == reset_seed(3, is_first=False) == 3
    assert reset_seed(2**32 + 5, is_first=True) == 5
    assert reset_seed(None, is_first=False) is None
    first, second = (reset_seed(None, is_first=True) for _ in range(2))
    assert first != second  # from the operating system; alike once in four billion times
    assert 0 <= first < 2**32
