"""Numbers that do not depend on what a process has set for all of its libraries."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_lock = threading.Lock()
_jobs = 0
#: Torch's default type before the first of them.
_dtype_before: Any = None


@contextlib.contextmanager
def own_numerics() -> Iterator[None]:
    """NumPy's and torch's usual settings meanwhile: float32, gradients, no error for a tiny number.

    It also decorates functions. A process may have chosen bfloat16 for its own networks, or errors for
    underflow; training and evaluation come to the same numbers there. Threads share torch's default type, so
    only long jobs use this; what acts names its types. Of jobs side by side, the last to end puts the type
    back that the first one found.
    """
    import numpy as np
    import torch

    global _jobs, _dtype_before
    with _lock:
        if not _jobs:
            _dtype_before = torch.get_default_dtype()
        _jobs += 1
        torch.set_default_dtype(torch.float32)
    try:
        with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"), torch.enable_grad():
            yield
    finally:
        with _lock:
            _jobs -= 1
            if not _jobs:
                torch.set_default_dtype(_dtype_before)
