import numpy as np
import pytest
import torch

from spi_diffusers.data.loading import load_transitions


@pytest.fixture(scope="session")
def small_dataset():
    """Six episodes of the embedded BallCircle data."""
    return load_transitions(None, "ballcircle").select_episodes(torch.arange(6))


@pytest.fixture(scope="session")
def small_file(small_dataset, tmp_path_factory):
    """The same as a file in DSRL's layout, for other processes."""
    batch = small_dataset.transitions
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(
        path,
        observations=batch.observation.numpy(),
        next_observations=batch.next_observation.numpy(),
        actions=batch.action.numpy(),
        rewards=batch.reward.numpy(),
        costs=batch.cost.numpy(),
        terminals=batch.terminated.numpy().astype(np.float32),
        timeouts=batch.truncated.numpy().astype(np.float32),
    )
    return path
