"""Signals that ask a process to stop: they wait for a moment at which nothing is left half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequest(BaseException):
    """A signal asked to stop; not an Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Let SIGTERM, where it would end the process at once, raise StopRequest: temporary files go away."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StopRequest(number)

    catches = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if catches:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if catches:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a request to stop after the current update.

    The second one acts as it did before, so that a run which does not come to an end can still be stopped.
    Outside the main thread, where Python allows no handlers, nothing is caught, and a signal that the process
    ignores (under nohup, or as a shell's background job) stays ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interrupts = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._interrupts and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        self._restore()

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let SIGINT raise KeyboardInterrupt at once meanwhile: in code that may take long."""
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def __exit__(self, *exc_info: object) -> None:
        self._restore()


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the end; processes that are started meanwhile never get it."""
    before = signal.getsignal(signal.SIGINT)
    caught: list[tuple[int, FrameType | None]] = []
    catches = threading.current_thread() is threading.main_thread() and callable(before)
    if catches:  # blocked here, it may reach another thread, for which Python acts in this one
        signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    blocks = hasattr(signal, "pthread_sigmask")  # not on Windows
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else set()
    try:
        yield
    finally:
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if catches:
            signal.signal(signal.SIGINT, before)
        if caught and callable(before):
            before(*caught[0])
