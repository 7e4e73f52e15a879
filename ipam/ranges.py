"""Ranges of addresses: what may be handed out, and what may not. Pure, without I/O.

A *range set* is a tuple of ranges of one family; a pod gets one address from each set. Names and
defaults are those of the reference plugin host-local: a range starts at the subnet's first host
address and ends at its last, and the gateway is the first one.

What is never handed out, even where a range covers it: the gateways of the set, the subnet's own
address (for IPv6 that is the subnet-router anycast address, RFC 4291, section 2.6.1) and the IPv4
broadcast address.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from itertools import combinations

from cni_plugin.spec import IPAddress, IPNetwork
from cni_plugin.typed import NamedTuple

_MAPPED = IPv6Network("::ffff:0:0/96")  # IPv4 in IPv6 clothes: its text is not unique


class Range(NamedTuple):
    """The addresses from `start` to `end`, both included, inside `subnet`.

    `gateway` is what the pod is told; it may lie outside the subnet.
    """

    subnet: IPNetwork
    start: IPAddress
    end: IPAddress
    gateway: IPAddress

    def contains(self, address: IPAddress) -> bool:
        return address.version == self.subnet.version and (
            int(self.start) <= int(address) <= int(self.end)
        )

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


RangeSet = tuple[Range, ...]


def canonical(address: IPAddress) -> IPAddress:
    """The address as reservations name it: an IPv4-mapped IPv6 address is its IPv4 address."""
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def is_mapped(subnet: IPNetwork) -> bool:
    """Whether the subnet holds IPv4-mapped addresses, which can't be told from IPv4."""
    return isinstance(subnet, IPv6Network) and subnet.overlaps(_MAPPED)


def too_small(subnet: IPNetwork) -> bool:
    """Whether nothing is left to hand out: /31, /32, /127 and /128."""
    return subnet.prefixlen > subnet.max_prefixlen - 2


_NO_PODS_V4 = tuple(IPv4Network(net) for net in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3"))
_NO_PODS_V6 = tuple(IPv6Network(net) for net in ("::/127", "fe80::/10", "ff00::/8"))


def reserved(network: IPNetwork) -> IPNetwork | None:
    """The special-purpose network (RFC 6890) without hosts that overlaps this one; else None."""
    special = _NO_PODS_V4 if network.version == 4 else _NO_PODS_V6
    return next((net for net in special if net.overlaps(network)), None)


def not_hosts(subnet: IPNetwork) -> tuple[IPAddress, ...]:
    """The network's own address, and the broadcast address where there is one."""
    if subnet.version == 4:
        return subnet.network_address, subnet.broadcast_address
    return (subnet.network_address,)


def first(subnet: IPNetwork) -> IPAddress:
    """The first host address: the default gateway, and the default start of a range."""
    return subnet.network_address + 1


def last(subnet: IPNetwork) -> IPAddress:
    """The last host address: one less than the broadcast address where there is one."""
    top = subnet.broadcast_address
    return top - 1 if isinstance(subnet, IPv4Network) else top


def find(range_set: RangeSet, address: IPAddress) -> Range | None:
    """The range of the set that holds the address."""
    for entry in range_set:
        if entry.contains(address):
            return entry
    return None


def withheld(range_set: RangeSet) -> frozenset[int]:
    """The addresses of the set, as integers, that are never handed out."""
    found = set()
    for entry in range_set:
        found.add(int(entry.gateway))
        found.add(int(entry.subnet.network_address))
        if isinstance(entry.subnet, IPv4Network):
            found.add(int(entry.subnet.broadcast_address))
    return frozenset(found)


def overlaps(range_sets: tuple[RangeSet, ...]) -> Iterator[tuple[int, int, int, int]]:
    """Each pair of ranges that share an address, as (set, range, other set, other range)."""
    flat = [
        (i, j, entry) for i, range_set in enumerate(range_sets) for j, entry in enumerate(range_set)
    ]
    for (i, j, a), (k, m, b) in combinations(flat, 2):
        if a.subnet.version != b.subnet.version:
            continue
        if int(a.start) <= int(b.end) and int(b.start) <= int(a.end):
            yield i, j, k, m


def describe(range_set: RangeSet) -> str:
    """The set as messages name it: "10.244.0.1-10.244.0.254, 10.244.2.1-10.244.2.254"."""
    return ", ".join(str(entry) for entry in range_set)


def parse_address(text: str) -> IPAddress | None:
    """The address whose canonical text this is; None for any other text."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address if str(address) == text else None
