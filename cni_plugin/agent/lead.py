"""Which worker takes the next client: one at a time, the leader.

Python runs one thread at a time, and threads that take turns within their calls lose a third of the
throughput to that. So one worker leads: it waits for a client and serves it. As soon as its call
waits for somebody else (the kernel, the client, an executed plugin) it gives up the lead, and
another worker goes on. A leader that is held up without having said so is relieved after a while.
"""

from __future__ import annotations

from threading import Lock
from time import perf_counter


class Term:
    """One worker's time as the leader."""

    def __init__(self, free: Lock) -> None:
        self._free = free
        self._over = Lock()
        self._begun = 0.0

    def begin(self) -> None:
        """A client has come."""
        self._begun = perf_counter()

    def end(self) -> None:
        """Give up the lead; again, and by whomever, it changes nothing."""
        if self._over.acquire(blocking=False):
            self._free.release()

    def end_after(self, seconds: float) -> None:
        """Relieve a leader that has been at work for longer than this."""
        if self._begun and perf_counter() - self._begun > seconds:
            self.end()


class Lead:
    """The lead among the workers of an agent."""

    def __init__(self) -> None:
        self._free = Lock()
        self.term = Term(Lock())  # of nobody

    def take(self) -> Term:
        """Wait for the lead."""
        self._free.acquire()
        self.term = Term(self._free)
        return self.term
