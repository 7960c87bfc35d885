"""Sub-environments in processes of their own, which end together: nothing hangs, and none is left."""

import contextlib
import functools
import os
import signal
from collections.abc import Callable, Iterable
from multiprocessing import TimeoutError as WaitedTooLong
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv

_SECONDS_TO_END = 2.0  # before a process is killed


class SubEnvironmentDiedError(RuntimeError):
    """The process of a sub-environment has ended, and all others with it; the message says how."""


def _ending_all(method: Callable[..., Any]) -> Callable[..., Any]:
    """What a method of gymnasium's leaves unusable is ended."""

    @functools.wraps(method)
    def ending_all(self: "WorkersVectorEnv", *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except (gymnasium.error.Error, WaitedTooLong):  # of how it is used, or it may be asked again
            raise
        except (EOFError, ConnectionError) as error:  # no one at the other end of a pipe
            raise SubEnvironmentDiedError(self._end()) from error
        except BaseException:  # an error in a process, which gymnasium has ended; or Ctrl-C
            self._end()
            raise

    return ending_all


class WorkersVectorEnv(AsyncVectorEnv):
    """gymnasium's environments in spawned processes; the first that dies or raises ends all of them.

    Where a process dies, `SubEnvironmentDiedError` says which. After an error it is closed.
    """

    def __init__(self, makers: Iterable[Callable[[], gymnasium.Env]]):
        # Forked workers would inherit torch's and the simulator's threads in an undefined state.
        _ending_all(AsyncVectorEnv.__init__)(
            self, [functools.partial(_make, maker, os.getpid()) for maker in makers], context="spawn"
        )

    reset_async = _ending_all(AsyncVectorEnv.reset_async)
    reset_wait = _ending_all(AsyncVectorEnv.reset_wait)
    step_async = _ending_all(AsyncVectorEnv.step_async)
    step_wait = _ending_all(AsyncVectorEnv.step_wait)
    call_async = _ending_all(AsyncVectorEnv.call_async)
    call_wait = _ending_all(AsyncVectorEnv.call_wait)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End the processes; see gymnasium's."""
        if terminate or not all(process.is_alive() for process in self.processes):
            self._end()
            return
        with contextlib.suppress(SubEnvironmentDiedError):
            _ending_all(AsyncVectorEnv.close_extras)(self, timeout)

    def _end(self) -> str:
        """End all processes; returns which of them had ended before, and how."""
        processes = getattr(self, "processes", [])
        dead = []
        for index, process in enumerate(processes):
            process.join(0.1)  # one whose pipe is closed is about to be dead
            if process.exitcode is not None:
                dead.append(f"{index} ({_how(process.exitcode)})")
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(_SECONDS_TO_END)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in getattr(self, "parent_pipes", []):
            if pipe is not None:
                pipe.close()
        self.closed = True
        return (
            f"the process of sub-environment {', '.join(dead) or '?'} has ended, and all others with it; is "
            'there enough memory for so many, and has the script a guard, `if __name__ == "__main__":`?'
        )


def _how(exit_code: int) -> str:
    return f"by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"with exit code {exit_code}"


def _make(maker: Callable[[], gymnasium.Env], parent: int) -> gymnasium.Env:
    if os.getpid() != parent:  # gymnasium makes one in the parent, too, to see its spaces
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    return maker()
