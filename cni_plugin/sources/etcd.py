"""etcd as the source of the nodes, for hosts without Kubernetes: they share a network's subnets.

Every node holds its subnets by a lease, and says there how it is reached; all of them watch each
other's keys. See docs/etcd.md for the keys, and ADR 13 for the reasons.

Two threads: `follow`'s own, which reads, claims and tells, and one that renews the lease and asks
the member that the watch comes from whether it is alive: TCP says only that its host is. What that
one finds wrong it leaves to the other, by breaking off its watch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from logging import Logger, getLogger
from math import inf
from threading import Event, Thread
from typing import Any

from cni_plugin.sources import (
    Announcement,
    Away,
    Change,
    Listed,
    Member,
    Readiness,
    SourceError,
    ownends,
)
from cni_plugin.sources.etcd_addresses import Choose, kept
from cni_plugin.sources.etcd_agreement import agreed
from cni_plugin.sources.etcd_claims import NoSubnetError
from cni_plugin.sources.etcd_gateway import Gateway
from cni_plugin.sources.etcd_layout import Network
from cni_plugin.sources.etcd_lease import SubnetLease
from cni_plugin.sources.etcd_members import Members
from cni_plugin.sources.etcd_messages import (
    CompactedError,
    EtcdError,
    KeyValue,
    Snapshot,
    UnreachableError,
)
from cni_plugin.sources.etcd_messages import Event as WatchEvent
from cni_plugin.sources.etcd_options import PODWIRE, EtcdOptions
from cni_plugin.sources.etcd_tls import Reread
from cni_plugin.sources.etcd_watch import Attended
from cni_plugin.spec import CniError

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds, from one attempt to the next
_START_SECONDS = 2.0  # for each endpoint: an agent that starts does not wait long
_SHORT = 1.0  # seconds: a watch that breaks sooner is not tried again at once
_PULSE = 20.0  # seconds, from one look at the watch's member to the next
_RENEWAL_PAUSE = 5.0  # seconds, at most, after a renewal that failed
_GLANCE = 2.0  # seconds, from one look at this node's own addresses to the next
_NEWS = 10.0  # seconds: another reason for being away is told so often at most

Tell = Callable[[Change], None]


class EtcdSource:
    """A cluster of nodes that meet in etcd; see `sources.Source`."""

    def __init__(
        self,
        options: EtcdOptions,
        logger: Logger | None = None,
        choose: Choose | None = None,
    ) -> None:
        """`choose` says which addresses the node has now, where they may change. Raises CniError 7
        for options that can't be."""
        self._options = options
        self._log = logger or getLogger(__name__)
        self._layout = options.layout()
        self._choose = choose or (lambda: options.addresses)
        self._ended = Event()
        self._tls = Reread(options.tls, (options.cacert, options.cert, options.key))
        self._gateway = Gateway(options.endpoints, self._tls, options.login())
        self._lease = SubnetLease(
            self._gateway,
            self._layout,
            options.own,
            options.ttl,
            options.state_file,
            self._ended,
            self._log,
        )
        self._attended = Attended(self._ended)
        # Of `follow`'s thread:
        self._failures = 0  # since the last list
        self._reason, self._told_at = "", 0.0

    @property
    def lease_until(self) -> float:
        """When this node's subnets would be free if etcd heard nothing any more, in seconds since
        1970; 0 without a lease."""
        return self._lease.until

    # --- the network ----------------------------------------------------------------------------

    def network(self) -> Network:
        """What the cluster's nodes agree on; the first node of all writes it. For the start of an
        agent, which does not wait long.

        Raises CniError 7 when this node's options say otherwise, or neither etcd nor they say
        anything, and SourceError when etcd can't be asked.
        """
        options = self._options
        gateway = Gateway(options.endpoints, self._tls, options.login(), _START_SECONDS)
        try:
            return agreed(gateway, self._layout, options.pools)
        except EtcdError as e:
            raise SourceError(f"etcd: {e}") from e
        finally:
            gateway.close()

    def conf_keys(self) -> Mapping[str, Any]:
        """What the network configuration has to say, for the start of an agent; nothing in
        podwire's layout. While etcd is away it is what it was in this node's earlier life.

        Raises CniError 7 as `network` does, and SourceError when nothing is known.
        """
        try:
            return self.network().conf_keys()
        except SourceError:
            remembered = self._lease.remembered
            if self._options.form != PODWIRE and not remembered.conf:
                raise
            return remembered.conf

    # --- following ------------------------------------------------------------------------------

    def follow(self, tell: Tell) -> None:
        renewing = Thread(target=self._look_after, name="etcd-lease", daemon=True)
        renewing.start()
        try:
            with ownends.heeded(self._gateway.lose, self._log):
                self._follow(tell)
        finally:
            self.stop()
            renewing.join()

    def _follow(self, tell: Tell) -> None:
        while not self._ended.is_set():
            begun = time.monotonic()
            try:
                self._follow_once(tell)
            except EtcdError as e:
                if not self._ended.is_set():
                    self._failed(str(e), tell)
            else:
                if time.monotonic() - begun < _SHORT:  # somebody may take it away again and again
                    self._ended.wait(_SHORT)

    def _failed(self, reason: str, tell: Tell) -> None:
        """Tell it the first time, and now and then when it is another one; and wait."""
        now = time.monotonic()
        is_news = reason != self._reason and now - self._told_at > _NEWS
        if not self._failures or is_news:
            tell(Away(f"etcd: {reason}"))
            self._reason, self._told_at = reason, now
        pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        self._ended.wait(pause * random.uniform(0.5, 1))  # noqa: S311 (it spreads the load)

    def _follow_once(self, tell: Tell) -> None:
        """List, and watch until all has to be looked at anew."""
        self._attended.begin()
        try:
            network = agreed(self._gateway, self._layout, self._options.pools)
        except CniError as e:  # nothing is to be heard either before people have mended it
            raise EtcdError(f"{e.msg} ({e.details})" if e.details else e.msg) from e
        lacking: tuple[Member, ...] = ()
        try:
            snapshot = self._lease.settle(network)
        except NoSubnetError as e:
            self._log.warning("this node has no subnet: %s", e)
            lacking = (Member(*self._lease.own, problem=str(e)),)
            snapshot = self._gateway.range(self._layout.subnets)
        members = Members(lambda kv: self._read(kv, network), snapshot.kvs)
        others = members.all()
        if lacking:  # a namesake has the name
            others = tuple(member for member in others if member.name != self._lease.own.name)
        self._failures = 0
        tell(Listed((*lacking, *others)))
        awaited = members.keys(self._lease.own.name) if lacking else None
        self._watch_from(snapshot, members, awaited, tell)

    def _read(self, kv: KeyValue, network: Network) -> Member:
        member = self._layout.member(kv, network)
        claim = self._lease.claim
        if claim is not None and kv.key in claim.keys:  # where the layout has no names
            return member._replace(name=self._lease.own.name)
        return member

    def _watch_from(
        self, snapshot: Snapshot, members: Members, awaited: frozenset[str] | None, tell: Tell
    ) -> None:
        """Returns when all has to be looked at anew; raises EtcdError. `awaited` are the keys of a
        namesake of this node, which has no subnet; None when it has."""
        revision = snapshot.revision
        while not self._ended.is_set():
            opened = inf
            try:
                with self._gateway.watch(self._layout.subnets, revision) as watch:
                    opened = time.monotonic()
                    if not self._attended.take(watch):
                        return
                    # It may be another etcd than before, of the same name and a later revision.
                    if awaited is None and not self._lease.is_there():
                        self._log.warning("etcd does not have this node's subnet any more")
                        return
                    for seen, events in watch.batches(revision, snapshot.cluster):
                        revision = seen
                        if self._has_to_settle(events, awaited):
                            return
                        for change in members.apply(events):
                            tell(change)
            except CompactedError as e:
                self._log.info("all nodes are listed again: %s", e)
                return
            except UnreachableError as e:
                if self._ended.is_set() or self._attended.has_to_look():
                    return
                if time.monotonic() - opened < _SHORT:
                    raise
                if awaited is not None:
                    return
                # It may be the end of one of several endpoints: then nobody need hear of it.
                self._log.info("the watch goes on elsewhere: %s", e)
            finally:
                self._attended.take(None)

    def _has_to_settle(self, events: Sequence[WatchEvent], awaited: frozenset[str] | None) -> bool:
        """Whether this node's subnet was taken away by one of them, or it may get one now."""
        if any(self._lease.is_lost(event) for event in events):
            self._log.warning("this node's subnet was taken from it in etcd")
            return True
        if awaited is None:
            return False
        return any(event.deleted or event.kv.key in awaited for event in events)

    # --- the lease, and the watch ---------------------------------------------------------------

    def _look_after(self) -> None:
        now = time.monotonic()
        renewal, pulse, glance = now + self._lease.renewal, now + _PULSE, now
        while not self._ended.wait(max(0.0, min(renewal, pulse, glance) - time.monotonic())):
            if time.monotonic() >= renewal:
                pause = self._renew()
                renewal = time.monotonic() + pause
            if time.monotonic() >= pulse:
                self._attended.feel_pulse()
                pulse = time.monotonic() + _PULSE
            if time.monotonic() >= glance:
                self._glance()
                glance = time.monotonic() + _GLANCE

    def _renew(self) -> float:
        """The seconds to the next time."""
        pause = self._lease.renewal
        try:
            if self._lease.renew():
                return pause
            self._log.warning("the lease of this node's subnet is gone")
        except EtcdError as e:
            if self._ended.is_set():
                return pause
            self._log.warning("the lease of this node's subnet was not renewed: %s", e)
            pause = min(pause, _RENEWAL_PAUSE)
        self._attended.break_off()
        return pause

    def _glance(self) -> None:
        """Where the node has got another address, its keys have to say so."""
        own = self._lease.own
        addresses = kept(own.addresses, self._choose, self._lease.networks)
        if addresses != own.addresses:
            words = ", ".join(map(str, addresses))
            self._log.warning("this node's addresses have changed: now %s", words)
            self._lease.readdress(own._replace(addresses=addresses))
            self._attended.break_off()

    def stop(self) -> None:
        self._ended.set()
        self._gateway.close()

    # --- telling --------------------------------------------------------------------------------

    def announce(self, own: Announcement) -> None:
        self._lease.announce(own)

    def say_ready(self, state: Readiness) -> None:
        """At the node's status key, which flannel's layout has not; the agent's log has it too."""
        self._lease.say(state)

    def report(self, name: str, reason: str, message: str) -> None:
        """Nowhere but in the agent's log, where it is already: every node finds the same, and etcd
        is no place that people look into for it."""
