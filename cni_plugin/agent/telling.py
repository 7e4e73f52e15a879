"""Telling the cluster how this node does, in a thread of its own.

An API server that takes its time, or never answers, holds up nobody else: what peers need in the
kernel does not wait for what people read. What is told is what is wanted last; what was wanted
before and could not be told is not told any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from logging import Logger
from threading import Condition, Thread
from typing import NamedTuple

from cni_plugin.membership import Refusal
from cni_plugin.sources import Announcement, Readiness, Source, SourceError

THREAD = "telling"
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 30.0
_REPORTS = 10  # at once; the rest a little later


class Wanted(NamedTuple):
    """What the cluster is to know; `announcement` is None while it can't be told."""

    announcement: Announcement | None
    readiness: Readiness
    refusals: frozenset[Refusal] = frozenset()


class Teller:
    """`failed` is called when a mistake of ours has ended the thread."""

    def __init__(self, source: Source, logger: Logger, failed: Callable[[], None]) -> None:
        self._source = source
        self._logger = logger
        self._failed = failed
        self._news = Condition()
        self._wanted: Wanted | None = None
        self._is_new = self._ended = False
        self._reported: frozenset[Refusal] = frozenset()
        self._failure = ""
        self._retry_s = 0.0
        self._thread: Thread | None = None

    def start(self) -> None:
        self._thread = Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended; the source has been stopped before."""
        with self._news:
            self._ended = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()

    def tell(self, wanted: Wanted) -> None:
        """See that the cluster knows this, also when it has known it before: somebody may have
        changed it there. What just failed is tried again in its time, unless it is something new.
        """
        with self._news:
            if wanted != self._wanted or not self._retry_s:
                self._wanted, self._is_new = wanted, True
                self._news.notify()

    @property
    def failure(self) -> str:
        """Why the cluster could not be told the last time, "" when it could; for any thread."""
        return self._failure

    def _run(self) -> None:
        try:
            while (wanted := self._next()) is not None:
                self._tell(wanted)
        except Exception:
            self._logger.exception("the cluster is no longer told")
            self._failed()

    def _next(self) -> Wanted | None:
        """What is wanted, when it is time to tell it; None at the end."""
        with self._news:
            while True:
                self._news.wait_for(lambda: self._is_new or self._ended, self._retry_s or None)
                if self._ended:
                    return None
                self._is_new = False
                if self._wanted is not None:
                    return self._wanted

    def _tell(self, wanted: Wanted) -> None:
        failure = next(filter(None, map(_attempt, self._steps(wanted))), "")
        if failure and failure != self._failure:
            self._logger.warning("can't tell the cluster", extra={"fields": {"why": failure}})
        self._failure = failure
        if failure:
            retry_s = min(max(2 * self._retry_s, _FIRST_RETRY_S), _LONGEST_RETRY_S)
        else:
            retry_s = _FIRST_RETRY_S if wanted.refusals - self._reported else 0.0
        with self._news:
            self._retry_s = retry_s

    def _steps(self, wanted: Wanted) -> Iterator[Callable[[], None]]:
        if wanted.announcement is not None:
            yield partial(self._source.announce, wanted.announcement)
        yield partial(self._source.say_ready, wanted.readiness)
        self._reported &= wanted.refusals  # one that comes again is told again
        for refusal in sorted(wanted.refusals - self._reported)[:_REPORTS]:
            yield partial(self._report, refusal)

    def _report(self, refusal: Refusal) -> None:
        self._source.report(refusal.name, refusal.reason, refusal.message)
        self._reported |= {refusal}


def _attempt(step: Callable[[], None]) -> str:
    """Why it failed, "" when it did not."""
    try:
        step()
    except SourceError as e:
        return str(e)
    return ""
