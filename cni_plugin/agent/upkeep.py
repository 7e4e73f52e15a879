"""The agent's upkeep: a thread that puts back what somebody takes away of the node's network.

It listens to the kernel, looks at the inventories once a second, and looks at all of it every
half minute. It has sockets of its own and no part in any call; where it changes something it
takes the node's lock as an ADD does.

Each repair is a line of the log, `repaired` with `what` and `why`. A failure is told once, not
each time it is met again. A mistake of ours in a look is logged, and the next look may do without
it; one outside of them ends the agent, so that none looks as if it kept the node.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial
from logging import Logger
from threading import Thread
from time import monotonic

from cni_plugin import upkeep
from cni_plugin.agent import mtus, ports
from cni_plugin.agent.joining import Joining
from cni_plugin.agent.peers import SharedPeers
from cni_plugin.agent.rulesteps import RuleSteps
from cni_plugin.agent.schedule import PERIOD, Schedule
from cni_plugin.fabric import Fabric, Memory
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.statefolder import node_key
from cni_plugin.kernel.watch import RouteWatch, RulesetWatch
from cni_plugin.records import NetworkRecord, Records
from cni_plugin.spec import CniError

THREAD = "upkeep"
_FILES_S = 1.0
_GATHER_S = 0.02  # each wake-up in the midst of an ADD makes that wait for Python's lock
_STEPS_S = 25.0  # shorter than the period, and rarely where links are never quiet
_NAMED = 4  # reasons of a look that are named one by one
_RULES = "nftables changed"
_INVENTORY = "an inventory changed"


class Upkeep:
    """Of the network namespace in which `start` is called. `memory` is the workers' as well.

    `failed` is called when a mistake of ours has ended the thread.
    """

    def __init__(self, memory: Memory, logger: Logger, failed: Callable[[], None]) -> None:
        self._memory = memory
        self._logger = logger
        self._failed = failed
        self._told: dict[str, None] = {}
        self._files: tuple[object, ...] = ()
        self._mtus = mtus.Mtus(logger)
        self._peers: SharedPeers | None = None
        self._joining, self._rule_steps = Joining(), RuleSteps()
        self._looked_again_at = 0.0
        self._unreached: list[Exception] = []  # what failed on the way to the peers
        self._offload = ""
        self._bell, self._ring = -1, -1
        self._thread: Thread | None = None

    def start(self) -> None:
        """From now on the node is looked after. Raises OSError when the kernel can't be heard."""
        with ExitStack() as undo:
            routes = RouteWatch()
            undo.callback(routes.close)
            ruleset = RulesetWatch()
            undo.callback(ruleset.close)
            self._bell, self._ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.callback(os.close, self._bell)
            undo.callback(os.close, self._ring)
            self._memory.records = self._memory.records or Records(node_key())
            thread = Thread(target=self._run, args=(routes, ruleset), name=THREAD, daemon=True)
            self._memory.watched = True
            undo.callback(setattr, self._memory, "watched", False)
            self._peers = SharedPeers(self._memory, routes)
            self._memory.keep_peers = self._peers.keep
            self._memory.survey = self._peers.survey
            self._memory.join = self._joining.join
            self._memory.work_out = self._rule_steps.work_out
            thread.start()
            undo.pop_all()
        self._thread = thread

    def stop(self) -> None:
        """Return when the thread has ended; a look that has begun is finished."""
        if self._thread is None:
            return
        os.write(self._ring, b"\0")
        self._thread.join()
        os.close(self._bell)
        os.close(self._ring)
        self._thread = None

    def _run(self, routes: RouteWatch, ruleset: RulesetWatch) -> None:
        try:
            self._serve(routes, ruleset)
        except Exception:
            self._logger.exception("the upkeep ended")
            self._failed()
        finally:
            self._memory.watched = False
            self._memory.keep_peers = self._memory.survey = None
            self._memory.join = self._memory.work_out = None
            if self._peers is not None:
                self._peers.close()
            routes.close()
            ruleset.close()

    def _serve(self, routes: RouteWatch, ruleset: RulesetWatch) -> None:
        schedule = Schedule(monotonic())
        poll = select.poll()
        for source in (self._bell, routes.fileno(), ruleset.fileno()):
            poll.register(source, select.POLLIN)
        files_at = monotonic()
        while True:
            pause = min(schedule.due(), files_at) - monotonic()
            ready = {fd for fd, _ in poll.poll(max(0, pause) * 1000)}
            if self._bell in ready or (ready and self._rings_within(_GATHER_S)):
                return
            if routes.fileno() in ready or routes.has_read:
                for reason in routes.changes():
                    self._memory.happened()
                    schedule.note(reason, monotonic())
            if ruleset.fileno() in ready:
                for reason in ruleset.changes():
                    schedule.note(reason, monotonic())
            if monotonic() >= files_at:
                files_at = monotonic() + _FILES_S
                if reason := self._files_changed():
                    schedule.note(reason, monotonic())
            if reasons := schedule.take(monotonic()):
                schedule.looked(monotonic(), *self._look_safely(reasons))

    def _rings_within(self, seconds: float) -> bool:
        return bool(select.select([self._bell], [], [], seconds)[0])

    def _look_safely(self, reasons: tuple[str, ...]) -> tuple[bool, bool]:
        """As `_look`; a mistake of ours is logged as one, and the next look may do without it."""
        begun = monotonic()
        if reasons != (_RULES,):  # one at rules alone leaves the ways to the peers as they are
            self._files = self._state_of_files()
        try:
            return self._look(reasons)
        except Exception:
            self._logger.exception("the upkeep failed")
            return False, True
        finally:
            fields = {"why": _in_words(reasons), "ms": round((monotonic() - begun) * 1000, 3)}
            self._logger.debug("looked", extra={"fields": fields})

    def _files_changed(self) -> str:
        """Whether a record or an inventory has changed since the last look, in words."""
        found = self._state_of_files()
        if found == self._files:
            return ""
        records = found[:1] != self._files[:1]
        return "a network's record changed" if records else _INVENTORY

    def _state_of_files(self) -> tuple[object, ...]:
        records = self._memory.records
        try:
            paths = {record.nodes for record in records.all() if record.nodes} if records else set()
            return (records and records.stamp(), *map(self._state_of_inventory, sorted(paths)))
        except (CniError, OSError) as e:
            return (str(e),)

    def _state_of_inventory(self, path: str) -> object:
        """None for one that is as this agent wrote it: who did that heeds it, too."""
        return None if self._memory.stamp_written(path) else _state(path)

    # --- a look --------------------------------------------------------------------------------

    def _look(self, reasons: tuple[str, ...]) -> tuple[bool, bool]:
        """Put right what is not; whether something was repaired, and whether something failed."""
        found = _Findings()
        found.attempt(partial(self._look_with, reasons, found))
        for what in found.done:
            fields = {"what": what, "why": _in_words(reasons)}
            self._logger.info("repaired", extra={"fields": fields})
        failures = found.failures + self._unreached
        self._tell(failures)
        return bool(found.done), bool(failures)

    def _look_with(self, reasons: tuple[str, ...], found: _Findings) -> list[str]:
        """Nothing on a node that has had no pod since the machine's start."""
        with RouteSocket() as route_socket, closing(Fabric(route_socket, self._memory)) as fabric:
            records = fabric.records.all()
            found.failures += fabric.records.broken
            if records and reasons == (_RULES,):
                _look_at_rules(fabric, found)
            elif records:
                self._memory.happened()
                self._memory.verified = None
                self._look_at_all(fabric, reasons, found)
        return []

    def _look_at_all(self, fabric: Fabric, reasons: tuple[str, ...], found: _Findings) -> None:
        found.attempt(partial(upkeep.drop_gone, fabric))
        _look_at_rules(fabric, found)
        paths = _Findings()
        records = upkeep.peering(fabric)
        for record in records[:1]:  # they agree
            paths.attempt(partial(self._keep_peers, fabric, record, reasons))
        if records and reasons != (PERIOD,):  # the kernel tells when a link's or a route's changes
            paths.attempt(partial(self._mtus.look, fabric, records[0]))
        if monotonic() - self._looked_again_at > _STEPS_S:
            self._looked_again_at = monotonic()
            paths.attempt(partial(self._look_again, fabric))
        found.done += paths.done
        self._unreached = paths.failures  # a look at rules alone says nothing of these

    def _keep_peers(
        self, fabric: Fabric, record: NetworkRecord, reasons: tuple[str, ...]
    ) -> list[str]:
        """After a change of the inventory alone only of the peers that changed."""
        if self._peers is None:
            raise RuntimeError("the upkeep has not been started")
        changes = self._peers.keep(fabric, record, whole=reasons != (_INVENTORY,))
        self._tell_offload(self._peers.offload)
        return changes.words()

    def _look_again(self, fabric: Fabric) -> list[str]:
        """Whether what followed step by step is what all of it says: nobody else would find out."""
        wrong = self._joining.look_again(fabric.route_socket)
        wrong += self._rule_steps.look_again(fabric)
        if wrong:
            self._memory.joined.clear()
            self._memory.happened()
        return wrong

    def _tell_offload(self, reason: str) -> None:
        """Once, when the checksums of the overlay are not left to the network card."""
        if reason and reason != self._offload:
            self._logger.info("checksum offload", extra={"fields": {"why": reason}})
        self._offload = reason

    def _tell(self, failures: list[Exception]) -> None:
        """Each failure once, until a look no longer meets it."""
        now: dict[str, None] = {}
        for failure in failures:
            fields: dict[str, object] = {"error": str(failure)}
            if isinstance(failure, CniError):
                fields = {"code": failure.code, "error": failure.msg}
                if failure.details:
                    fields["remedy"] = failure.details
            text = str(fields["error"])
            if text not in self._told and text not in now:
                self._logger.warning("can't repair", extra={"fields": fields})
            now[text] = None
        for text in self._told:
            if text not in now:
                self._logger.info("no longer", extra={"fields": {"error": text}})
        self._told = now


class _Findings:
    """What a look has done, in words, and what failed in it: one step does not keep the next."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failures: list[Exception] = []

    def attempt(self, step: Callable[[], list[str]]) -> None:
        try:
            self.done += step()
        except (CniError, OSError) as e:
            self.failures.append(e)


def _look_at_rules(fabric: Fabric, found: _Findings) -> None:
    """Rules and host ports; nothing when all transactions since the last look were ours."""
    if not upkeep.are_verified(fabric):
        found.attempt(partial(upkeep.keep_rules, fabric))
        found.attempt(partial(ports.keep, fabric))


def _in_words(reasons: tuple[str, ...]) -> str:
    more = f" and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    return ", ".join(reasons[:_NAMED]) + more


def _state(path: str) -> object:
    """Of a file what changes with it; None when it is not there."""
    with suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return None
