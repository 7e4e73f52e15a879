"""Following a cluster: two threads beside those that serve calls.

One listens to the source, whatever that takes. The other brings about what was heard, tells the
cluster how this node does, and tries again what failed. Calls wait for neither.

Bursts are gathered, and after a long turn the next waits, so that a large cluster in motion costs
a share of a processor and not all of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from logging import INFO, WARNING, Logger
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic, sleep

from cni_plugin.agent.clusternode import ClusterNode, Outcome, Place
from cni_plugin.fabric import Memory
from cni_plugin.membership import Membership, Refusal
from cni_plugin.sources import Away, Change, Listed, Readiness, Source, SourceError
from cni_plugin.spec import CniError

FOLLOWING, COORDINATING = "cluster", "coordination"
_GATHER_S = 0.05
_TICK_S = 5.0  # the MTU of the paths may have changed: nobody tells this thread
_WHOLE_S = 30.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 30.0
_REPORTS = 10  # a turn; the rest waits for the next
_SHARE = 3.0  # a turn of t seconds is followed by a pause of this times t, at most
_LONGEST_PAUSE_S = 2.0


def _end_process() -> None:
    """As an administrator does, so that calls are finished; who looks after us starts the next."""
    os.kill(os.getpid(), signal.SIGTERM)


class Coordination:
    """Of the network namespace in which `start` is called. `memory` is the workers' as well."""

    def __init__(
        self,
        source: Source,
        place: Place,
        memory: Memory,
        logger: Logger,
        failed: Callable[[], None] = _end_process,
    ) -> None:
        """`failed` is called when a mistake of ours has ended one of the threads: an agent that
        no longer follows must not look like one that does."""
        self._source = source
        self._failed = failed
        self._name = place.name
        self._memory = memory
        self._logger = logger
        self._node = ClusterNode(place, memory, logger)
        self._members = Membership(place.name)
        self._heard: SimpleQueue[Change | None] = SimpleQueue()
        self._outcome: Outcome | None = None
        self._readiness: Readiness | None = None
        self._refusals: frozenset[Refusal] = frozenset()
        self._reported: frozenset[Refusal] = frozenset()
        self._listed = self._away = False
        self._failure = ""
        self._retry_s = 0.0
        self._epoch, self._brought_about_at = -1, 0.0
        self._threads: list[Thread] = []

    def start(self) -> None:
        """From now on the cluster is followed."""
        for name, run in ((FOLLOWING, self._follow), (COORDINATING, self._run)):
            thread = Thread(target=run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Return when both threads have ended; what has begun is finished."""
        self._source.stop()
        self._heard.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _follow(self) -> None:
        try:
            self._source.follow(self._heard.put)
        except Exception:
            self._logger.exception("the cluster is no longer followed")
            self._failed()

    def _run(self) -> None:
        try:
            self._resume()
            while self._turn():
                pass
        except Exception:
            self._logger.exception("the cluster is no longer heeded")
            self._failed()

    def _resume(self) -> None:
        try:
            self._node.resume()
        except (CniError, OSError) as e:
            self._logger.warning("can't resume", extra={"fields": {"error": str(e)}})

    # --- a turn ---------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Wait for something to do and do it; False at the end."""
        heard = self._gather(self._retry_s or _TICK_S)
        if heard is None:
            return False
        begun = monotonic()
        changed = [self._take(change) for change in heard]
        if not self._listed:
            return True
        if any(changed) or self._is_due(begun):
            self._bring_about(begun)
        self._tell()
        took = monotonic() - begun
        sleep(min(took * _SHARE, _LONGEST_PAUSE_S))
        return True

    def _gather(self, seconds: float) -> list[Change] | None:
        """What comes within so many seconds, and shortly after; None at the end."""
        heard: list[Change | None] = []
        try:
            heard.append(self._heard.get(timeout=seconds))
            sleep(_GATHER_S)
            while True:
                heard.append(self._heard.get_nowait())
        except Empty:
            pass
        changes = [change for change in heard if change is not None]
        return changes if len(changes) == len(heard) else None

    def _take(self, change: Change) -> bool:
        """Whether something is to be done about it."""
        if isinstance(change, Away):
            self._logger.warning("the cluster is away", extra={"fields": {"why": change.reason}})
            self._away = True
            return False
        if self._away:
            self._away = False
            self._logger.info("the cluster is back")
        self._listed = self._listed or isinstance(change, Listed)
        return self._members.apply(change) or isinstance(change, Listed)

    def _is_due(self, now: float) -> bool:
        """After a failure, when links have changed, and now and then anyway."""
        return bool(
            self._retry_s
            or self._memory.epoch != self._epoch
            or not self._node.is_settled
            or now - self._brought_about_at > _WHOLE_S
        )

    def _bring_about(self, now: float) -> None:
        self._epoch, self._brought_about_at = self._memory.epoch, now
        self._outcome = outcome = self._node.bring_about(self._members)
        refusals = frozenset(self._node.refusals)
        for refusal in sorted(refusals - self._refusals):
            self._logger.warning("refused", extra={"fields": refusal._asdict()})
        self._refusals = refusals
        if outcome.readiness != self._readiness:
            self._readiness = outcome.readiness
            level = INFO if outcome.readiness.ready else WARNING
            self._logger.log(level, "node", extra={"fields": outcome.readiness._asdict()})

    # --- telling --------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell the cluster what is not known to have been told; try again later what fails."""
        failure = next(filter(None, map(_attempt, self._to_tell())), "")  # each may take a while
        if failure and failure != self._failure:
            self._logger.warning("can't tell the cluster", extra={"fields": {"why": failure}})
        self._failure = failure
        ready = self._outcome is not None and self._outcome.readiness.ready
        if ready and not failure:
            self._retry_s = 0.0
        else:
            self._retry_s = min(max(2 * self._retry_s, _FIRST_RETRY_S), _LONGEST_RETRY_S)

    def _to_tell(self) -> Iterator[Callable[[], None]]:
        if self._outcome is None:
            return
        if self._outcome.announcement is not None:
            yield partial(self._source.announce, self._outcome.announcement)
        yield partial(self._source.say_ready, self._outcome.readiness)
        wanted = frozenset(r for r in self._node.refusals if self._is_ours(r))
        for refusal in sorted(wanted - self._reported)[:_REPORTS]:
            yield partial(self._report, refusal)
        self._reported &= wanted  # one that comes again is told again

    def _is_ours(self, refusal: Refusal) -> bool:
        """Whether this node is to report it: as the refused one or the holder; without a holder as
        the first of all by name, since the refused node may have no agent."""
        if self._name in (refusal.name, refusal.holder):
            return True
        first = min((node.name for node in self._members.nodes()), default="")
        return not refusal.holder and self._name == first

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
