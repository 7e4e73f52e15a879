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


class Plan(NamedTuple):
    """The subnets to have, one of each pool, and the keys that are this node's now."""

    cidrs: tuple[IPNetwork, ...]
    keys: tuple[str, ...]
    mine: Mapping[str, KeyValue]

    @property
    def obsolete(self) -> tuple[str, ...]:
        """Of ours, those that are not to stay."""
        return tuple(key for key in self.mine if key not in self.keys)

    @property
    def lease(self) -> int:
        """The lease of an earlier life, 0 when there is none."""
        return next((kv.lease for kv in self.mine.values() if kv.lease), 0)


def plan(
    layout: Layout,
    own: Own,
    network: Network,
    kvs: Iterable[KeyValue],
    remembered: tuple[IPNetwork, ...],
    chance: Chance,
) -> Plan:
    """Those that are ours already, then those `remembered` if they are free, then any by chance.

    Raises NoSubnetError.
    """
    mine: dict[str, KeyValue] = {}
    held: list[IPNetwork] = []
    taken: list[IPNetwork] = []
    for kv in kvs:
        subnet = layout.subnet(kv.key)
        if subnet is None:
            continue
        member = layout.member(kv, network)
        if layout.is_own(member, own):
            _refuse_anothers(own, member, kv.key, subnet, remembered)
            mine[kv.key] = kv
            held.append(subnet)
        else:
            taken.append(subnet)
    cidrs = tuple(_choose(pool, held, remembered, taken, chance) for pool in network.pools)
    return Plan(cidrs, layout.subnet_keys(cidrs), mine)


def _refuse_anothers(
    own: Own, member: Member, key: str, subnet: IPNetwork, remembered: tuple[IPNetwork, ...]
) -> None:
    """The name is ours, but neither an address nor the file says that the key is."""
    if not member.addresses or not set(member.addresses).isdisjoint(own.addresses):
        return
    if subnet not in remembered:
        addresses = ", ".join(str(address) for address in member.addresses)
        raise NoSubnetError(
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
