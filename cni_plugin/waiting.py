"""Saying that a call begins to wait: for a lock, for the kernel, for another process.

An agent gives the next client to another worker then. The code that waits does not know whether
there is an agent, so it says so here, and whoever serves the call listens for its own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[], None] | None] = ContextVar("listener", default=None)


def begins() -> None:
    """This thread's call begins to wait, or may. Cheap; may be said again and again."""
    listener = _listener.get()
    if listener is not None:
        listener()


@contextmanager
def heard_by(listener: Callable[[], None]) -> Iterator[None]:
    """For the block, `listener` is called when a call of this thread begins to wait."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
