"""The agent's life: open, serve, drain, end.

Every worker is a thread that waits in accept(2) by itself, when it leads (`lead`), and nothing is
handed from thread to thread. A few are enough, for they share one core of Python; when all have
been busy for a while (executed IPAM plugins may take long), more are started, up to a limit.

The agent holds nothing that is lost with it: every call starts from the store and the kernel.
"""

from __future__ import annotations

import gc
import os
import select
from collections.abc import Callable
from contextlib import suppress
from logging import Logger
from threading import Thread
from time import perf_counter, sleep
from typing import NamedTuple, Protocol

from cni_plugin.agent.connection import Connection
from cni_plugin.agent.lead import Lead
from cni_plugin.agent.listener import Listener
from cni_plugin.agent.reaper import Reaper
from cni_plugin.agent.upkeep import Upkeep
from cni_plugin.agent.worker import Turns, Worker
from cni_plugin.fabric import Memory
from cni_plugin.kernel.netns import OWN

_WORKERS = 4
_MOST_WORKERS = 256
_TICK_S = 0.5
_HELD_UP_S = 0.1  # a call takes milliseconds
_HEARTBEAT_S = 0.9  # a client that waits longer than this hears from us every half second


class Following(Protocol):
    """What follows a cluster beside the calls, in threads of its own."""

    def start(self) -> None: ...
    def stop(self) -> None:
        """Return when what has begun is finished."""
        ...


class Options(NamedTuple):
    """`idle_s`: end after so many seconds without a call that was ours to serve; 0 for never.

    Those that are declined don't count: an agent that an upgrade has left behind, or one of a
    network namespace that nobody calls from any more, would otherwise never give way.

    `follow` makes what follows a cluster, None for an agent that follows none.
    """

    workers: int = _WORKERS
    idle_s: float = 0.0
    follow: Callable[[Memory], Following] | None = None


class Server:
    """Serves the calls that reach `listener` until `stop` is called, or it has been idle."""

    def __init__(self, listener: Listener, logger: Logger, options: Options) -> None:
        self._listener = listener
        self._logger = logger
        self._options = options
        self._busy: dict[Connection, float] = {}
        self._turns = Turns()
        self._lead = Lead()
        self._reaper = Reaper()
        self._memory = Memory()
        self._upkeep = Upkeep(self._memory, logger, self.stop)  # who looks after us starts the next
        self._following = options.follow(self._memory) if options.follow else None
        self._home = os.stat(OWN).st_ino
        self._threads: list[Thread] = []
        self._ending = False
        self._ended = False
        self._bell, self._ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._last_call = perf_counter()
        self._last_beat = 0.0

    def start(self) -> None:
        """From now on calls are served."""
        self._reaper.start()
        try:
            self._upkeep.start()
        except (OSError, RuntimeError) as e:  # too many files or threads: calls come first
            self._logger.warning("no upkeep", extra={"fields": {"error": str(e)}})
        if self._following is not None:
            self._following.start()
        for _ in range(self._options.workers):
            self._add_worker()
        gc.collect()
        gc.freeze()  # what is loaded stays: no need to look through it again and again

    def stop(self) -> None:
        """Take no more calls; those that have come are served. Returns at once; a signal's handler
        or a thread may call it, and does no more than write a byte."""
        if self._ended:
            return
        with suppress(BlockingIOError):  # it has been rung often enough
            os.write(self._ring, b"\0")

    def run(self, withdrawn: Callable[[], None]) -> None:
        """Return when the last call has been served after `stop`, or after an idle time.

        `withdrawn` is called when no new client can reach us any more.
        """
        while not select.select([self._bell], [], [], self._pause())[0]:
            self._look_after()
        self._ending = True
        withdrawn()
        self._listener.withdraw()
        for thread in self._threads:  # the list may grow meanwhile
            while thread.is_alive():
                thread.join(_HELD_UP_S)
                self._keep_going()
        if self._following is not None:
            self._following.stop()
        self._upkeep.stop()
        self._reaper.stop()
        self._ended = True
        os.close(self._bell)
        os.close(self._ring)

    def _pause(self) -> float:
        """Seconds until the next look: while calls are served, a leader may be held up."""
        return _HELD_UP_S if self._busy else _TICK_S

    def _look_after(self) -> None:
        """What keeps calls going, and the end of an idle agent."""
        ages = self._keep_going()
        if not self._listener.is_ours():  # who looks after us starts the next one
            self._logger.error("socket is gone", extra={"fields": {"path": self._listener.path}})
            self.stop()
        idle_s = self._options.idle_s
        if idle_s and not ages and perf_counter() - self._last_call > idle_s:
            self._logger.info("idle", extra={"fields": {"seconds": idle_s}})
            self.stop()

    def _keep_going(self) -> list[float]:
        """Heartbeats, the next leader, more workers where all are stuck; how long each call has
        been in work, in seconds."""
        self._beat()
        self._lead.term.end_after(_HELD_UP_S)
        now = perf_counter()
        ages = [now - begun for begun in list(self._busy.values())]
        stuck = len(ages) >= len(self._threads) and min(ages) > _TICK_S / 2
        if stuck:  # twice as many: who waits in the queue hears nothing from us
            try:
                for _ in range(min(len(self._threads), _MOST_WORKERS - len(self._threads))):
                    self._add_worker()
            except RuntimeError as e:  # as many threads as this system gives us
                self._logger.warning("no more workers", extra={"fields": {"error": str(e)}})
        return ages

    def _beat(self) -> None:
        now = perf_counter()
        if now - self._last_beat < _TICK_S:
            return
        self._last_beat = now
        for connection, begun in list(self._busy.items()):
            if now - begun > _HEARTBEAT_S:
                try:
                    connection.heartbeat()
                except OSError as e:  # its worker will find out as well
                    self._logger.debug("heartbeat failed", extra={"fields": {"error": str(e)}})

    def _add_worker(self) -> None:
        thread = Thread(target=self._work, name=f"worker-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError:
            self._threads.remove(thread)
            raise

    def _work(self) -> None:
        remove, busy = self._reaper.remove, self._busy
        worker = Worker(self._home, self._turns, remove, busy, self._memory, self._logger)
        try:
            while self._serve_next(worker):
                pass
        finally:
            worker.close()

    def _serve_next(self, worker: Worker) -> bool:
        """Lead, until the next client has been served or its call waits; False at the end."""
        term = self._lead.take()
        try:
            client, _ = self._listener.socket.accept()
        except OSError:
            term.end()
            if self._ending:
                return False
            self._logger.exception("can't accept a client")
            sleep(_TICK_S)
            return True
        term.begin()
        try:
            if worker.serve(client, term.end):
                self._last_call = perf_counter()
        except Exception:
            self._logger.exception("a worker failed")
        finally:
            term.end()
        return True
