"""Ctrl-C that waits, by real signals; how training stops is tested with the trainer."""

import os
import signal
import subprocess
import sys

import pytest

from spi_diffusers.signals import interrupts_deferred

CHILD = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('alive')"


@pytest.mark.parametrize("fails", [False, True])
def test_an_interrupt_waits_until_the_end_and_reaches_no_process_that_is_started(fails):
    before = signal.getsignal(signal.SIGINT)
    done = []

    def work():
        with interrupts_deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True).stdout)
            if fails:
                raise RuntimeError

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["alive\n"]
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_what_ignores_interrupts_still_does():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_deferred():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN
