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
from collections.abc import Callable, Mapping
from logging import Logger, getLogger
from math import inf
from threading import Event, Lock, Thread
from typing import Any

from cni_plugin.fields import invalid
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
from cni_plugin.sources.etcd_claims import NoSubnetError
from cni_plugin.sources.etcd_gateway import Gateway
from cni_plugin.sources.etcd_layout import Network
from cni_plugin.sources.etcd_lease import SubnetLease
from cni_plugin.sources.etcd_members import Members
from cni_plugin.sources.etcd_messages import (
    CompactedError,
    EtcdError,
    KeyValue,
    UnreachableError,
    Write,
)
from cni_plugin.sources.etcd_options import PODWIRE, EtcdOptions
from cni_plugin.sources.etcd_watch import Watch
from cni_plugin.spec import CniError, Code

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds, from one attempt to the next
_START_SECONDS = 2.0  # for each endpoint: an agent that starts does not wait long
_SHORT = 1.0  # seconds: a watch that breaks sooner is not tried again at once
_PULSE = 20.0  # seconds, from one look at the watch's member to the next
_RENEWAL_PAUSE = 5.0  # seconds, at most, after a renewal that failed

Tell = Callable[[Change], None]


class EtcdSource:
    """A cluster of nodes that meet in etcd; see `sources.Source`."""

    def __init__(self, options: EtcdOptions, logger: Logger | None = None) -> None:
        """Raises CniError 7 for options that can't be."""
        self._options = options
        self._log = logger or getLogger(__name__)
        self._layout = options.layout()
        self._own = options.own
        self._ended = Event()
        self._gateway = Gateway(options.endpoints, options.tls(), options.login())
        self._lease = SubnetLease(
            self._gateway,
            self._layout,
            options.own,
            options.ttl,
            options.state_file,
            self._ended,
            self._log,
        )
        self._lock = Lock()
        self._watch: Watch | None = None
        self._look_again = False
        self._failures = 0  # since the last list; of `follow`'s thread

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
        gateway = Gateway(options.endpoints, options.tls(), options.login(), _START_SECONDS)
        try:
            return self._agreed(gateway)
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

    def _agreed(self, gateway: Gateway) -> Network:
        key = self._layout.config_key
        found = gateway.get(key).get(key)
        if found is None:
            config = self._layout.config(self._options.pools) if self._options.pools else None
            if config is None:
                raise CniError(
                    Code.INVALID_CONFIG,
                    f"etcd has no {key}",
                    "give the first node --etcd-pool; a flannel network's is made by people",
                )
            gateway.swap({key: 0}, [Write(key, config)])
            found = gateway.get(key).get(key, KeyValue(key))
        network = self._layout.network(found.value)
        if self._options.pools and self._options.pools != network.pools:
            ours, theirs = (
                " and ".join(str(pool) for pool in pools)
                for pools in (self._options.pools, network.pools)
            )
            raise invalid(
                "--etcd-pool",
                ours,
                f"expected {theirs}, as etcd's {key} has it for all nodes",
                "give this node the same, or none; to change it for all, end all agents, delete"
                " everything under the prefix, and start them anew",
            )
        return network

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
            try:
                self._follow_once(tell)
            except EtcdError as e:
                if not self._ended.is_set():
                    self._failed(str(e), tell)

    def _failed(self, reason: str, tell: Tell) -> None:
        """Tell it the first time, and wait."""
        if not self._failures:
            tell(Away(f"etcd: {reason}"))
        pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        self._ended.wait(pause * random.uniform(0.5, 1))  # noqa: S311 (it spreads the load)

    def _follow_once(self, tell: Tell) -> None:
        """List, and watch until all has to be looked at anew."""
        with self._lock:
            self._look_again = False
        try:
            network = self._agreed(self._gateway)
        except CniError as e:  # nothing is to be heard either before people have mended it
            raise EtcdError(f"{e.msg} ({e.details})" if e.details else e.msg) from e
        lacking: tuple[Member, ...] = ()
        try:
            snapshot = self._lease.settle(network)
        except NoSubnetError as e:
            self._log.warning("this node has no subnet: %s", e)
            lacking = (Member(self._own.name, self._own.addresses, problem=str(e)),)
            snapshot = self._gateway.range(self._layout.subnets)
        members = Members(lambda kv: self._read(kv, network), snapshot.kvs)
        others = members.all()
        if lacking:  # a namesake has the name
            others = tuple(member for member in others if member.name != self._own.name)
        self._failures = 0
        tell(Listed((*lacking, *others)))
        self._watch_from(snapshot.revision, members, bool(lacking), tell)

    def _read(self, kv: KeyValue, network: Network) -> Member:
        member = self._layout.member(kv, network)
        claim = self._lease.claim
        if claim is not None and kv.key in claim.keys:  # where the layout has no names
            return member._replace(name=self._own.name)
        return member

    def _watch_from(self, revision: int, members: Members, lacking: bool, tell: Tell) -> None:
        """Returns when all has to be looked at anew; raises EtcdError."""
        while not self._ended.is_set():
            opened = inf
            try:
                with self._gateway.watch(self._layout.subnets, revision) as watch:
                    opened = time.monotonic()
                    if not self._attend(watch):
                        return
                    for seen, events in watch.batches(revision):
                        revision = seen
                        if any(self._lease.is_lost(event) for event in events):
                            self._log.warning("this node's subnet was taken from it in etcd")
                            return
                        if lacking and any(event.deleted for event in events):
                            return
                        for change in members.apply(events):
                            tell(change)
            except CompactedError as e:
                self._log.info("all nodes are listed again: %s", e)
                return
            except UnreachableError as e:
                if self._ended.is_set() or self._has_to_look():
                    return
                if time.monotonic() - opened < _SHORT:
                    raise
                # It may be the end of one of several endpoints: then nobody need hear of it.
                self._log.info("the watch goes on elsewhere: %s", e)
            finally:
                self._attend(None)

    def _attend(self, watch: Watch | None) -> bool:
        """Let other threads break this watch off; False when they already would have."""
        with self._lock:
            self._watch = watch
            return not self._look_again and not self._ended.is_set()

    def _has_to_look(self) -> bool:
        with self._lock:
            return self._look_again

    def _break_off(self) -> None:
        with self._lock:
            self._look_again = True
            if self._watch is not None:
                self._watch.break_off()

    # --- the lease, and the watch ---------------------------------------------------------------

    def _look_after(self) -> None:
        now = time.monotonic()
        renewal, pulse = now + self._lease.renewal, now + _PULSE
        while not self._ended.wait(max(0.0, min(renewal, pulse) - time.monotonic())):
            if time.monotonic() >= renewal:
                pause = self._renew()
                renewal = time.monotonic() + pause
            if time.monotonic() >= pulse:
                self._feel_pulse()
                pulse = time.monotonic() + _PULSE

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
        self._break_off()
        return pause

    def _feel_pulse(self) -> None:
        """Where the watch's member does not answer, another has to be found."""
        with self._lock:
            watch = self._watch
        if watch is not None and not watch.lives():
            watch.break_off()

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
