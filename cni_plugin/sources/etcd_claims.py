"""Which subnets a node should have, by what etcd holds. Pure; chance is an argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cni_plugin.sources import Member
from cni_plugin.sources.etcd_layout import Layout, Network, Own
from cni_plugin.sources.etcd_messages import KeyValue
from cni_plugin.sources.etcd_pools import Chance, Pool
from cni_plugin.spec import IPNetwork


class NoSubnetError(Exception):
    """This node can't have a subnet now: why, in words."""


class NamesakeError(NoSubnetError):
    """Another node has its name."""


class Claim(NamedTuple):
    """What this node holds, and who it was when it took it: its addresses may be others by now.
    `lease` 0: it has only reservations, and no lease could be had."""

    network: Network
    cidrs: tuple[IPNetwork, ...]
    keys: tuple[str, ...]
    lease: int
    own: Own

    def covers(self, kv: KeyValue, layout: Layout, own: Own) -> bool:
        """Whether it is one of these keys and still this node's, who is `own` now. A key that
        people have made a reservation of, with no lease, is."""
        if kv.key not in self.keys or kv.lease not in (0, self.lease):
            return False
        member = layout.member(kv, self.network)
        return _is_own(layout, member, kv.key, own, self) and not _is_foreign(
            member, kv.key, own, self
        )


class Plan(NamedTuple):
    """The subnets to have, one of each pool, and the keys that are this node's now. `foreign`: in
    one of them there are addresses that this node has not."""

    cidrs: tuple[IPNetwork, ...]
    keys: tuple[str, ...]
    mine: Mapping[str, KeyValue]
    foreign: bool = False

    @property
    def obsolete(self) -> tuple[str, ...]:
        """Of ours, those that are not to stay."""
        return tuple(key for key in self.mine if key not in self.keys)

    @property
    def lease(self) -> int:
        """The lease of an earlier life, 0 when there is none, or it may be another node's."""
        if self.foreign:
            return 0
        return next((kv.lease for kv in self.mine.values() if kv.lease), 0)


def plan(
    layout: Layout,
    own: Own,
    network: Network,
    kvs: Iterable[KeyValue],
    remembered: tuple[IPNetwork, ...],
    chance: Chance,
    claim: Claim | None = None,
    may_overwrite: bool = True,
) -> Plan:
    """Those that are ours already, then those `remembered` if they are free, then any by chance.

    `claim` is what was held last. `may_overwrite`: a key of a remembered subnet is ours even if it
    has another node's addresses. Raises NoSubnetError.
    """
    mine: dict[str, KeyValue] = {}
    held: list[IPNetwork] = []
    taken: list[IPNetwork] = []
    foreign = False
    for kv in kvs:
        subnet = layout.subnet(kv.key)
        if subnet is None:
            continue
        member = layout.member(kv, network)
        if not _is_own(layout, member, kv.key, own, claim):
            taken.append(subnet)
            continue
        if _is_foreign(member, kv.key, own, claim):
            foreign = True
            if not may_overwrite or subnet not in remembered:
                raise _anothers(own, member, kv.key)
        mine[kv.key] = kv
        held.append(subnet)
    cidrs = tuple(_choose(pool, held, remembered, taken, chance) for pool in network.pools)
    return Plan(cidrs, layout.subnet_keys(cidrs), mine, foreign)


def _is_own(layout: Layout, member: Member, key: str, own: Own, claim: Claim | None) -> bool:
    """By what is in it; where nodes have no names but their addresses, also by the former one."""
    if layout.is_own(member, own):
        return True
    return claim is not None and key in claim.keys and layout.is_own(member, claim.own)


def _is_foreign(member: Member, key: str, own: Own, claim: Claim | None) -> bool:
    """Whether it has addresses, and none that this node has, or had when it took the key."""
    known = set(own.addresses)
    if claim is not None and key in claim.keys:
        known.update(claim.own.addresses)
    return bool(member.addresses) and known.isdisjoint(member.addresses)


def _anothers(own: Own, member: Member, key: str) -> NamesakeError:
    addresses = ", ".join(str(address) for address in member.addresses)
    return NamesakeError(
        f"the name {own.name} is that of another node, with {addresses}, by etcd's {key}:"
        " give this one another name, or delete the key when it was this node's"
    )


def _choose(
    pool: Pool,
    held: list[IPNetwork],
    remembered: tuple[IPNetwork, ...],
    taken: list[IPNetwork],
    chance: Chance,
) -> IPNetwork:
    for cidr in held:
        if pool.offers(cidr):
            return cidr
    others = [cidr for cidr in taken if cidr.version == pool.version]
    for cidr in remembered:
        if pool.offers(cidr) and not any(cidr.overlaps(other) for other in others):
            return cidr
    found = pool.pick(taken, chance)
    if found is None:
        raise NoSubnetError(f"other nodes have all of {pool}")
    return found
