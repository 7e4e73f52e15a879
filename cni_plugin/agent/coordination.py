"""Following a cluster: three threads beside those that serve calls.

One listens to the source, whatever that takes. One brings about what was heard, and again what
failed or what somebody has undone. One tells the cluster how this node does (`telling`). They wait
for each other as little as calls wait for them.

Bursts are gathered, and after a turn the next waits, so that a large cluster in motion costs a
share of a processor and of the disk, and not all of it.

A mistake of ours in a turn is logged, and the turn is made again with nothing but what the source
has told; one in that, too, ends the agent.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from logging import INFO, WARNING, Logger
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic, sleep, time

from cni_plugin.agent.clusternode import ClusterNode, Outcome, Place
from cni_plugin.agent.clusterstate import AWAY, HEARD, STARTING, About, ClusterState, Notice
from cni_plugin.agent.telling import Teller, Wanted
from cni_plugin.fabric import Memory
from cni_plugin.membership import Membership, Refusal
from cni_plugin.sources import Away, Change, Gone, Listed, Member, Put, Readiness, Source
from cni_plugin.spec import CniError

FOLLOWING, COORDINATING = "cluster", "coordination"
_GATHER_S = 0.05
_TICK_S = 5.0  # the MTU of the paths may have changed: nobody tells this thread
_WHOLE_S = 30.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 30.0
_FILES_S = 1.0  # somebody may have changed what this node wrote, or what it goes by
_SHARE = 3.0  # a turn of t seconds is followed by a pause of this times t, at most
_LONGEST_PAUSE_S = 2.0
_REPORTERS = 3  # nodes that tell what all see: the first may have no agent
_LINE_S = 60e-6  # for each line of the inventory: in a storm that is written at 2 MB/s, and no more


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
        about: Callable[[], About] = About,
    ) -> None:
        """`failed` is called when mistakes of ours have ended one of the threads: an agent that
        no longer follows must not look like one that does. `about` says at any time, and at once,
        which cluster it is."""
        self._source = source
        self._failed = failed
        self._name = place.name
        self._memory = memory
        self._logger = logger
        self._node = ClusterNode(place, memory, logger)
        self._members = Membership(place.name)
        self._told: dict[str, Member] = {}  # as the source did, whatever was made of it
        self._heard: SimpleQueue[Change | None] = SimpleQueue()
        self._outcome: Outcome | None = None
        self._readiness: Readiness | None = None
        self._refusals: frozenset[Refusal] = frozenset()
        self._teller = Teller(source, logger, failed)
        self._files: object = None
        self._about = about
        self._notice: Notice | None = None
        self._state, self._reason, self._since = STARTING, "", int(time())
        self._listed = False
        self._retry_s = 0.0
        self._epoch, self._brought_about_at = -1, 0.0
        self._threads: list[Thread] = []

    def start(self) -> None:
        """From now on the cluster is followed."""
        self._notice = Notice(self._logger)
        self._teller.start()
        for name, run in ((FOLLOWING, self._follow), (COORDINATING, self._run)):
            thread = Thread(target=run, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Return when the threads have ended; what has begun is finished."""
        self._source.stop()
        self._heard.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._teller.stop()
        if self._notice is not None:
            self._notice.withdraw()

    def _follow(self) -> None:
        try:
            self._source.follow(self._heard.put)
        except Exception:
            self._logger.exception("the cluster is no longer followed")
            self._failed()

    def _run(self) -> None:
        try:
            self._note()
            self._resume()
            while self._turn():
                self._note()
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
        try:
            self._heed(heard, begun)
        except Exception:
            self._logger.exception("a mistake of podwire: all of the cluster is looked at anew")
            self._forget()
            self._heed(heard, begun, whole=True)
        if not self._listed:
            return True
        self._tell()
        took = monotonic() - begun
        pause = max(took * _SHARE, len(self._members.nodes()) * _LINE_S)
        sleep(min(pause, _LONGEST_PAUSE_S))
        return True

    def _heed(self, heard: list[Change], now: float, whole: bool = False) -> None:
        changed = [self._take(change) for change in heard]
        if self._listed and (whole or any(changed) or self._is_due(now)):
            self._bring_about(now)

    def _forget(self) -> None:
        """Trust nothing that followed from change to change, only what the source has told."""
        self._members = Membership(self._name)
        self._members.apply(Listed(tuple(self._told.values())))
        self._node.forget()

    def _gather(self, seconds: float) -> list[Change] | None:
        """What comes within so many seconds, and shortly after; None at the end. Files that have
        changed, and routes that somebody waits for, end the wait as well."""
        heard: list[Change | None] = []
        until = monotonic() + seconds
        while not heard:
            try:
                left = max(0.0, until - monotonic())
                heard.append(self._heard.get(timeout=min(left, _FILES_S)))
                sleep(_GATHER_S)
                while True:
                    heard.append(self._heard.get_nowait())
            except Empty:
                if heard or monotonic() >= until or self._has_moved():
                    break
        changes = [change for change in heard if change is not None]
        return changes if len(changes) == len(heard) else None

    def _take(self, change: Change) -> bool:
        """Whether something is to be done about it."""
        if isinstance(change, Away):
            self._logger.warning("the cluster is away", extra={"fields": {"why": change.reason}})
            self._enter(AWAY, change.reason)
            return False
        if self._state != HEARD:
            if self._state == AWAY:
                self._logger.info("the cluster is back")
            self._enter(HEARD)
        self._listed = self._listed or isinstance(change, Listed)
        self._record(change)
        return self._members.apply(change) or isinstance(change, Listed)

    def _record(self, change: Change) -> None:
        if isinstance(change, Listed):
            self._told = {member.name: member for member in change.members}
        elif isinstance(change, Put):
            self._told[change.member.name] = change.member
        elif isinstance(change, Gone):
            self._told.pop(change.name, None)

    def _enter(self, state: str, reason: str = "") -> None:
        if state != self._state:
            self._state, self._since = state, int(time())
        self._reason = reason

    def _has_moved(self) -> bool:
        routes = self._node.is_waiting and self._memory.epoch != self._epoch
        return routes or self._files_changed()

    def _files_changed(self) -> bool:
        return self._listed and self._node.files() != self._files

    def _is_due(self, now: float) -> bool:
        """After a failure, when links or files have changed, and now and then anyway."""
        return bool(
            self._retry_s
            or self._files_changed()
            or self._memory.epoch != self._epoch
            or not self._node.is_settled
            or now - self._brought_about_at > _WHOLE_S
        )

    def _bring_about(self, now: float) -> None:
        self._epoch, self._brought_about_at = self._memory.epoch, now
        self._files = files = self._node.files()
        self._outcome = outcome = self._node.bring_about(self._members)
        if self._node.files() != files:  # what was written is looked at once more, gone or not
            self._files = None
        refusals = frozenset(self._node.refusals)
        for refusal in sorted(refusals - self._refusals):
            self._logger.warning("refused", extra={"fields": refusal._asdict()})
        self._refusals = refusals
        if outcome.readiness != self._readiness:
            self._readiness = outcome.readiness
            level = INFO if outcome.readiness.ready else WARNING
            self._logger.log(level, "node", extra={"fields": outcome.readiness._asdict()})

    def _tell(self) -> None:
        """Have the cluster told, and look again before long while pods can't come."""
        if self._outcome is not None:
            ours = frozenset(filter(self._is_ours, self._node.refusals))
            self._teller.tell(Wanted(self._outcome.announcement, self._outcome.readiness, ours))
        if self._outcome is not None and self._outcome.readiness.ready:
            self._retry_s = 0.0
        else:
            self._retry_s = min(max(2 * self._retry_s, _FIRST_RETRY_S), _LONGEST_RETRY_S)

    def _is_ours(self, refusal: Refusal) -> bool:
        """Whether this node is to report it: as the refused one or the holder; without a holder as
        one of the first by name, since the refused node may have no agent."""
        if self._name in (refusal.name, refusal.holder):
            return True
        return not refusal.holder and self._name in self._members.first(_REPORTERS)

    def _note(self) -> None:
        """Let this node's people know how it stands."""
        if self._notice is not None:
            refused = tuple(sorted(self._refusals))
            self._notice.show(
                ClusterState(
                    self._about(),
                    self._name,
                    self._state,
                    self._since,
                    self._reason,
                    self._readiness,
                    refused,
                    self._teller.failure,
                )
            )
