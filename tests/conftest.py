"""What every test shares: one CPU thread, and hypothesis without a deadline on a machine that may be busy."""

import hypothesis
import pytest

hypothesis.settings.register_profile("tests", deadline=None, max_examples=50)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # With networks this small, threads cost more than they give.
    import torch

    torch.set_num_threads(1)
