"""What goes wrong, and how often."""

import threading
from dataclasses import dataclass


@dataclass
class Fault:
    """One kind of trouble for the next ``count`` requests that match."""

    match: str
    """A kind of request (``graphql``, ``file_stream``, ``storage``), an operation's name, or "".

    Any request matches ""."""
    count: float
    status: int = 0
    retry_after: float | None = None
    seconds: float = 0.0
    cut: bool = False
    after: bool = False
    """The connection is cut only once the request has been carried out."""


class Faults:
    """The faults that lie ahead."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ahead: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._ahead.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._ahead.clear()

    def left(self) -> float:
        """How many requests still meet a fault."""
        with self._lock:
            return sum(fault.count for fault in self._ahead)

    def take(self, kind: str, operation: str) -> list[Fault]:
        """The faults of one request: all the waits, and the first of the others."""
        taken: list[Fault] = []
        with self._lock:
            for fault in self._ahead:
                if fault.match.lower() not in ("", kind, operation.lower()):
                    continue
                if not fault.seconds and any(not earlier.seconds for earlier in taken):
                    continue
                fault.count -= 1
                taken.append(fault)
            self._ahead = [fault for fault in self._ahead if fault.count > 0]
        return taken
