"""Faults that a test asks the Hub server for: which requests, what goes wrong, and how often."""

import re
import threading
from dataclasses import dataclass, field

KINDS = {
    "status": "answer with `number` as the HTTP status, without doing anything",
    "drop before": "close the connection before anything is done",
    "drop within": "close it after half of the request's body, or of the answer's where there is none",
    "drop after": "do what is asked, then close it without an answer",
    "slow": "wait `number` milliseconds before answering",
    "wrong bytes": "flip one bit of what is stored (uploads) or sent (downloads); sizes are right",
    "short": "send half of the body and call that all of it",
}


@dataclass
class Fault:
    """Something that goes wrong with the requests it fits.

    Attributes:
        kind: one of `KINDS`.
        method: HTTP method, or "" for any.
        path: regular expression, searched for in the unquoted path.
        times: how many requests fail.
        skip: how many requests that fit go well before.
        number: HTTP status, or milliseconds.
        headers: sent with the status.
    """

    kind: str
    method: str = ""
    path: str = ""
    times: int = 1
    skip: int = 0
    number: int = 500
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        assert self.kind in KINDS, self.kind


class FaultPlan:
    """The faults that are still to come; threads of the server take from it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self.happened: list[str] = []

    def set(self, *faults: Fault) -> None:
        """Replace what was planned."""
        with self._lock:
            self._faults, self.happened = list(faults), []

    def take(self, method: str, path: str) -> Fault | None:
        """The fault of this request, if it is to have one."""
        with self._lock:
            for fault in self._faults:
                if fault.times > 0 and fault.method in ("", method) and re.search(fault.path, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    self.happened.append(f"{fault.kind}: {method} {path}")
                    return fault
            return None
