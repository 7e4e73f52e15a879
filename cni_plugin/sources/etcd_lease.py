"""This node's subnets in etcd: claimed by compare-and-swap, held by a lease, claimed again.

- A claim is one transaction, which is served only if none of its keys has changed since they were
  read. Who loses reads again.
- What an earlier life of this agent left is taken over, with its lease when that has the right
  length: then nothing is written, and no peer hears of a restart.
- A key without a lease is a reservation, which people make: it stays without one.
- Where a key of ours gets another node's addresses (a machine was cloned with its name), it is
  overwritten once in the life of an agent, and no more: who was there first keeps it, since the
  other one has used up its write when it took the key.
"""

from __future__ import annotations

import random
import time
from logging import Logger
from threading import Event, RLock

from cni_plugin.sources import Announcement, Readiness, SourceError
from cni_plugin.sources import etcd_messages as messages
from cni_plugin.sources import etcd_state as state
from cni_plugin.sources.etcd_claims import Claim, NamesakeError, NoSubnetError, Plan, plan
from cni_plugin.sources.etcd_gateway import Gateway
from cni_plugin.sources.etcd_layout import Layout, Network, Own, Said, status
from cni_plugin.sources.etcd_messages import EtcdError, KeyValue, Snapshot, UnreachableError, Write
from cni_plugin.spec import IPNetwork

_chance = random.SystemRandom()  # not seeded alike on machines that were cloned
_TRIES = 5  # to write into our own key, which people may write into as well
_LONGEST_PAUSE = 0.1  # seconds, after a lost race


class SubnetLease:
    """One node's. `settle` and `renew` are for the source's threads, the others for any."""

    def __init__(
        self,
        gateway: Gateway,
        layout: Layout,
        own: Own,
        ttl: int,
        state_file: str,
        ended: Event,
        log: Logger,
    ) -> None:
        """`ttl` in seconds; `ended` is set when nothing is to be begun any more."""
        self._gateway = gateway
        self._layout = layout
        self._own = own
        self._ttl = ttl
        self._file = state_file
        self._ended = ended
        self._log = log
        self._lock = RLock()
        self._remembered = state.load(state_file, layout.subnets, log)
        self._may_overwrite = not self._remembered.contested
        self._announced: Announcement | None = None
        self._written: tuple[Announcement, Claim] | None = None  # None: it has to be looked at
        self._status: bytes | None = None
        self._said_ready: tuple[Readiness, Claim] | None = None
        self._lease = 0
        self._until = 0.0
        self._claim: Claim | None = None

    @property
    def until(self) -> float:
        """When the lease ends unless it is renewed, in seconds since 1970; 0 without one."""
        claim = self._claim
        return self._until if claim is not None and claim.lease else 0.0

    @property
    def claim(self) -> Claim | None:
        return self._claim

    @property
    def networks(self) -> list[IPNetwork]:
        """Those that pods have addresses of, as far as a claim has told."""
        return [pool.network for pool in self._claim.network.pools] if self._claim else []

    @property
    def own(self) -> Own:
        return self._own

    def readdress(self, own: Own) -> None:
        """This node has other addresses: `settle` brings them into its keys. Any thread's."""
        self._own = own

    @property
    def remembered(self) -> state.Remembered:
        """Of this life, or else of an earlier one."""
        return self._remembered

    # --- claiming -----------------------------------------------------------------------------

    def settle(self, network: Network) -> Snapshot:
        """Have subnets: all keys as they are then. Raises EtcdError, NoSubnetError."""
        while not self._ended.is_set():
            with self._lock:
                try:
                    found = self._attempt(network)
                except NoSubnetError as e:
                    self._claim = None
                    if isinstance(e, NamesakeError) and self._remembered.cidrs:
                        self._remember(self._remembered._replace(contested=True))
                    raise
            if found is not None:
                return found
            self._ended.wait(_chance.uniform(0, _LONGEST_PAUSE))
        raise UnreachableError("this source was stopped")

    def _attempt(self, network: Network) -> Snapshot | None:
        """None after a change, or after another one's: look again."""
        # Read before the subnets: a namesake that comes in between makes the transaction fail.
        name_key = self._layout.name_key(self._own.name)
        named = self._gateway.get(name_key) if name_key else {}
        snapshot = self._gateway.range(self._layout.subnets)
        own = self._own
        wanted = plan(
            self._layout,
            own,
            network,
            snapshot.kvs,
            self._remembered.cidrs,
            _chance.randrange,
            self._claim,
            self._may_overwrite,
        )
        old = wanted.lease
        lease = self._live_lease(old)
        said = self._said(wanted)
        known = {**wanted.mine, **named}
        value = self._layout.value(own, wanted.cidrs, said, network)
        writes = self._writes(wanted, value, lease, name_key, known)
        if not writes:
            self._hold(Claim(network, wanted.cidrs, wanted.keys, lease, own), said)
            return snapshot
        concerned = (*wanted.keys, *wanted.obsolete, *([name_key] if name_key else []))
        expected = {key: known[key].mod_revision if key in known else 0 for key in concerned}
        if self._gateway.swap(expected, writes):
            self._may_overwrite &= not wanted.foreign
            if old not in (0, lease):
                self._gateway.revoke(old)
        return None

    def _live_lease(self, old: int) -> int:
        """A lease of our length: the one we hold, the one of an earlier life, or a new one."""
        for lease in dict.fromkeys((self._lease, old)):
            if lease and self._keep(lease) == self._ttl:
                self._lease = lease
                return lease
        asked = time.time()
        self._lease, granted = self._gateway.grant(self._ttl)
        self._until = asked + granted
        if granted != self._ttl:
            self._log.warning("etcd gave a lease of %s s instead of %s s", granted, self._ttl)
            self._ttl = granted
        return self._lease

    def _said(self, wanted: Plan) -> Said:
        """What is announced now, or else what was in an earlier life."""
        before = next((self._layout.said(kv) for kv in wanted.mine.values()), Said())
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        since = before.since or self._remembered.since or moment
        return Said(before.announcement if self._announced is None else self._announced, since)

    def _writes(
        self,
        wanted: Plan,
        value: bytes,
        lease: int,
        name_key: str | None,
        known: dict[str, KeyValue],
    ) -> list[Write]:
        """What is to be changed; nothing when all is as it should be."""
        writes = []
        for key in wanted.keys:
            reserved = key in wanted.mine and not wanted.mine[key].lease
            writes.append(Write(key, value, 0 if reserved else lease))
        if name_key:
            cidrs = " ".join(str(cidr) for cidr in wanted.cidrs)
            writes.append(Write(name_key, cidrs.encode(), lease))
        writes += [Write(key, None) for key in wanted.obsolete]
        if all(messages.is_as_wanted(write, known.get(write.key)) for write in writes):
            return []
        status_key = self._layout.status_key(self._own.name)
        if status_key and self._status is not None:
            writes.append(Write(status_key, self._status, lease))
        return writes

    def _hold(self, claim: Claim, said: Said) -> None:
        conf = claim.network.conf_keys()
        if self._claim is None or self._claim.cidrs != claim.cidrs:
            self._log.info(
                "this node's subnets are %s", ", ".join(str(cidr) for cidr in claim.cidrs)
            )
        self._remember(state.Remembered(claim.cidrs, said.since, conf, False, state.machine()))
        self._claim = claim

    def _remember(self, remembered: state.Remembered) -> None:
        if remembered != self._remembered:
            state.save(self._file, self._layout.subnets, remembered, self._log)
        self._remembered = remembered

    # --- holding ------------------------------------------------------------------------------

    @property
    def renewal(self) -> float:
        """Seconds from one renewal to the next: two may fail."""
        return self._ttl / 3

    def renew(self) -> bool:
        """Whether the lease is still there, or nothing is held that could be lost."""
        claim = self._claim
        return claim is None or self._keep(claim.lease) > 0

    def _keep(self, lease: int) -> int:
        """Renew it: how many seconds it has from now on, 0 for one that is no more."""
        asked = time.time()
        ttl = self._gateway.keep(lease)
        if ttl:
            self._until = asked + ttl
        return ttl

    def is_lost(self, event: messages.Event) -> bool:
        """Whether another than this node made it, and it takes a subnet of this node's away."""
        claim = self._claim
        if claim is None or event.kv.key not in claim.keys:
            return False
        self._written = None
        return event.deleted or not claim.covers(event.kv, self._layout, self._own)

    def is_there(self) -> bool:
        """Whether etcd has what is held: another etcd may be in its place, and not know of it.
        False without a claim. Raises EtcdError."""
        claim = self._claim
        if claim is None:
            return False
        known = self._gateway.get(*claim.keys)
        return all(
            key in known and claim.covers(known[key], self._layout, self._own) for key in claim.keys
        )

    # --- telling ------------------------------------------------------------------------------

    def announce(self, announcement: Announcement) -> None:
        """Put it into our keys, and into those that are claimed later. What was put there already
        costs nothing. Raises SourceError."""
        with self._lock:
            self._announced = announcement
            claim = self._held()
            if self._written == (announcement, claim):
                return
            said = Said(announcement, self._remembered.since)
            value = self._layout.value(self._own, claim.cidrs, said, claim.network)
            self._written = announcement, claim  # unless somebody else writes meanwhile
            try:
                self._put(claim, value)
            except EtcdError as e:
                self._written = None
                raise SourceError(f"etcd: {e}") from e
            except SourceError:
                self._written = None
                raise

    def _put(self, claim: Claim, value: bytes) -> None:
        for _ in range(_TRIES):
            known = self._gateway.get(*claim.keys)
            if set(known) != set(claim.keys):
                break
            if not all(claim.covers(kv, self._layout, self._own) for kv in known.values()):
                break
            if all(kv.value == value for kv in known.values()):
                return
            expected = {key: kv.mod_revision for key, kv in known.items()}
            if self._gateway.swap(expected, [Write(k, value, kv.lease) for k, kv in known.items()]):
                return
        raise SourceError("etcd: this node's subnet was lost, and is being claimed again")

    def say(self, readiness: Readiness) -> None:
        """Put it at the node's status key, if there is one and it is new. Raises SourceError."""
        key = self._layout.status_key(self._own.name)
        if key is None:
            return
        with self._lock:
            claim = self._held()
            if self._said_ready == (readiness, claim):
                return
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._status = status(readiness, moment)
            try:
                self._gateway.swap({}, [Write(key, self._status, claim.lease)])
            except EtcdError as e:
                raise SourceError(f"etcd: {e}") from e
            self._said_ready = readiness, claim

    def _held(self) -> Claim:
        if self._claim is None:
            raise SourceError("etcd: this node has no subnet yet")
        return self._claim
