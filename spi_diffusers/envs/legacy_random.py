"""NumPy's legacy random generators, which the simulators still draw from."""

import contextlib
import secrets
from collections.abc import Iterator

import numpy as np

# ruff: noqa: NPY002  (this file is about the generator that the rule advises against)


@contextlib.contextmanager
def global_generator_kept() -> Iterator[None]:
    """Put NumPy's global generator back to where it was, whatever is drawn from it meanwhile."""
    saved = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(saved)


@contextlib.contextmanager
def as_global_generator(generator: np.random.RandomState) -> Iterator[None]:
    """Let the global generator go on from a generator's state, and that one from where it ends."""
    with global_generator_kept():
        np.random.set_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(np.random.get_state())


def reset_seed(seed: int | None, *, is_first: bool) -> int | None:
    """What to seed an environment with that takes 32 bits and, unseeded, draws from the global generator.

    Args:
        seed: as `reset` got it.
        is_first: whether it is the environment's first `reset`.

    Returns:
        The seed in 32 bits; for None, at first one from the operating system, then None: the environment
        goes on in its own stream.
    """
    if seed is not None:
        return seed % 2**32
    return secrets.randbits(32) if is_first else None
