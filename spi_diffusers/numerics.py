"""Numbers that do not depend on what a process has set for all of its libraries."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def own_numerics() -> Iterator[None]:
    """NumPy's and torch's usual settings meanwhile: float32, gradients, no error for a tiny number.

    It also decorates functions. A process may have chosen bfloat16 for its own networks, or errors for
    underflow; training and evaluation come to the same numbers there. Threads share torch's default type, so
    only long jobs use this; what acts names its types.
    """
    import numpy as np
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)
