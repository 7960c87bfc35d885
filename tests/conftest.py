"""What every test shares: one CPU thread, short videos, hypothesis without a deadline, missing simulators."""

import signal
from importlib.util import find_spec

import hypothesis
import pytest

hypothesis.settings.register_profile("tests", deadline=None, max_examples=50)
hypothesis.settings.load_profile("tests")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Where bullet-safety-gym cannot be installed (Python 3.12), a test that needs it is skipped."""
    report = (yield).get_result()
    if not report.failed or find_spec("bullet_safety_gym"):
        return
    said = f"{report.longrepr}{report.capstderr}{report.caplog}"
    if "bullet-safety-gym, which cannot be imported" in said or "bullet_safety_gym'" in said:
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1], "Skipped: bullet-safety-gym is not installed")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # With networks this small, threads cost more than they give.
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interrupts():
    # Ignored in what a shell runs in the background; tests send them.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _short_videos():
    """Drawing an episode takes longer than all the rest of its test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spi_diffusers.evaluation.video.MAX_FRAMES", 4)
        yield


@pytest.fixture(scope="session")
def small_dataset():
    """Six episodes of the embedded BallCircle data."""
    import torch

    from spi_diffusers.data.loading import load_transitions

    return load_transitions(None, "ballcircle").select_episodes(torch.arange(6))


@pytest.fixture(scope="session")
def small_file(small_dataset, tmp_path_factory):
    """The same as a file in DSRL's layout, for other processes."""
    import numpy as np

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


@pytest.fixture(scope="module")
def run_folder(small_file, tmp_path_factory):
    """The folder of a small training run; what a module's tests leave in it, its others find."""
    from command_line import TINY

    from spi_diffusers.cli import main

    folder = tmp_path_factory.mktemp("run")
    code = main(
        ["train", "--task", "ballcircle", "--dataset", str(small_file), "--output_dir", str(folder), *TINY]
    )
    assert code == 0
    return folder
