"""Deleting host veths without waiting for all that the kernel does after it.

A deletion takes 15 to 30 ms, of which both ends exist for half of one: they are brought down,
their routes go, then their names; the rest is waiting, without any lock, for whoever on some CPU
may still look at them (RCU). So threads of the reaper send the deletions and sit that out, and the
caller goes on when the name is free.

Rules:
- One thread for each deletion under way, up to a limit; they hold no lock of Python's meanwhile.
  32 delete 600 links a second.
- Each deletion is of one link, by name; those of one call go on beside each other. Deleting by
  group (IFLA_GROUP) would be cheaper still, but a group that a killed agent left behind is one
  that a later agent could delete unseen.
- There is nothing to remember: what a killed agent began the kernel ends, and what it did not
  begin the next DEL deletes.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic, sleep

from cni_plugin import waiting
from cni_plugin.kernel import detach, device
from cni_plugin.kernel.netlink import KernelError, RouteSocket

_MOST_THREADS = 32
_FIRST_LOOK_S = 0.0003  # it takes no less
_PAUSES_S = (0.00005, 0.001)  # the first pause between two looks, and the longest
_PATIENCE_S = 20.0


class _Removal:
    """One deletion: `failure` is set when the kernel refused it."""

    __slots__ = ("failure", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.failure: Exception | None = None


class Reaper:
    """Deletes links of the network namespace in which `start` and `remove` are called."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._removals: SimpleQueue[_Removal | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._free = 0  # threads that wait for work, less the work that waits
        self._look: RouteSocket | None = None

    def start(self) -> None:
        self._look = RouteSocket()
        with self._lock:
            self._add_thread()

    def stop(self) -> None:
        """Return when the kernel is done with everything that was begun."""
        with self._lock:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._removals.put(None)
        for thread in threads:
            thread.join()
        if self._look is not None:
            self._look.close()
            self._look = None

    def remove(self, *names: str) -> None:
        """Delete links, and with a veth its other end; no-op for those that are not there.

        When this returns the names are free, and each link, both ends of it, is down and has no
        routes; a look by netlink no longer finds either. Raises CniError 104 when the kernel
        refuses, or takes too long.
        """
        look = self._look
        if look is None:
            raise RuntimeError("the reaper has not been started")
        begun = [(index, _Removal(name)) for name, index in _indexes(look, names).items()]
        if not begun:
            return
        for _, removal in begun:
            self._begin(removal)
        waiting.begins()
        sleep(_FIRST_LOOK_S)
        deadline = monotonic() + _PATIENCE_S
        for index, removal in begun:
            _wait(look, index, removal, deadline)

    def _begin(self, removal: _Removal) -> None:
        with self._lock:
            self._free -= 1
            if self._free < 0 and len(self._threads) < _MOST_THREADS:
                with suppress(OSError, RuntimeError):  # too many files or threads: wait for a turn
                    self._add_thread()
        self._removals.put(removal)

    def _add_thread(self) -> None:
        with ExitStack() as undo:
            route_socket = undo.enter_context(RouteSocket())
            name = f"reaper-{len(self._threads)}"
            thread = Thread(target=self._work, args=(route_socket,), name=name, daemon=True)
            thread.start()
            undo.pop_all()
        self._threads.append(thread)
        self._free += 1

    def _work(self, route_socket: RouteSocket) -> None:
        with route_socket:
            while (removal := self._removals.get()) is not None:
                try:
                    detach.remove_links(route_socket, removal.name)
                except Exception as e:  # noqa: BLE001  it is the caller's
                    removal.failure = e
                with self._lock:
                    self._free += 1


def _indexes(look: RouteSocket, names: Sequence[str]) -> dict[str, int]:
    """The interface index of each link that is there; a socket finds one only (`device.exists`)."""
    found: dict[str, int] = {}
    with ExitStack() as sockets:
        asking: RouteSocket | None = None
        for name in names:
            if asking is None:
                asking = sockets.enter_context(RouteSocket())
            if device.exists(asking, name):
                asking = None
                index = device.index(look, name)
                if index:
                    found[name] = index
    return found


def _wait(look: RouteSocket, index: int, removal: _Removal, deadline: float) -> None:
    """Return when the link is gone; raises what the kernel refused with."""
    pause, longest = _PAUSES_S
    while device.present(look, index):
        if removal.failure is not None:
            raise removal.failure
        if monotonic() > deadline:
            raise KernelError(errnos.ETIMEDOUT, f"delete link {removal.name}")
        sleep(pause)
        pause = min(pause * 1.5, longest)
