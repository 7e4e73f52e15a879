"""Addresses and pod subnets that members of a cluster claim, by where they lie.

Pure. Networks either contain each other or share nothing: what meets a claim is around it or within
it, and both are found by searching.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from cni_plugin.sources import Member
from cni_plugin.spec import IPAddress, IPNetwork
from ipam import nodes, ranges

_LINE = {4: 1 << 128, 6: 1 << 129}  # where a family begins on the number line of all addresses

Place = tuple[int, int]
"""Where a network lies: its first address on the number line of all, and its host bits."""
Local = tuple[tuple[str, IPNetwork], ...]
"""Networks of this node, with the names of their links or of what else they are."""


class Claim(NamedTuple):
    """A network of a member's, in the order in which claims are heard; one of `pods` is a pod
    subnet, else an address. `start` and `size` are its `Place`."""

    since: str
    name: str
    pods: bool
    position: int
    start: int
    size: int
    held: IPAddress | IPNetwork

    @property
    def order(self) -> tuple[str, str, bool, int]:
        return self[:4]

    @property
    def place(self) -> Place:
        return self.start, self.size


def claims_of(member: Member, local: Local) -> Iterator[Claim]:
    """What a member claims, in order, as far as it can be anybody's."""
    for position, address in enumerate(dict.fromkeys(member.addresses)):
        if not nodes.is_unreachable(address):
            yield claim_of_address(member, address, position)
    for position, subnet in enumerate(dict.fromkeys(member.pod_cidrs)):
        if not unusable(subnet, local):
            yield Claim(member.since, member.name, True, position, *place_of(subnet), subnet)


def claim_of_address(member: Member, address: IPAddress, position: int = 0) -> Claim:
    return Claim(member.since, member.name, False, position, *place_of(address), address)


def place_of(held: IPAddress | IPNetwork) -> Place:
    """Where an address or a network lies."""
    if isinstance(held, IPv4Address | IPv6Address):
        return int(held) + _LINE[held.version], 0
    start = int(held.network_address) + _LINE[held.version]
    return start, held.max_prefixlen - held.prefixlen


def unusable(subnet: IPNetwork, local: Local) -> str:
    """Why pods here or elsewhere can't have addresses of the subnet; "" when they can."""
    if not nodes.is_plain_cidr(subnet) and (special := ranges.reserved(subnet)):
        return f"overlaps {special}, which no host has addresses of"
    if ranges.is_mapped(subnet):
        return "is IPv4 mapped into IPv6"
    if ranges.too_small(subnet):
        return "has no room for pods"
    for what, network in local:
        if network.version == subnet.version and network.overlaps(subnet):
            return f"overlaps {network} of {what}"
    return ""


class Claims:
    """Claims by where they lie."""

    def __init__(self) -> None:
        self._at: dict[Place, list[Claim]] = {}
        self._sizes: dict[int, int] = {}  # how many places there are of each size
        self._places: list[Place] = []  # sorted; with -size, so that the wider one comes first

    def add(self, claim: Claim) -> None:
        held = self._at.get(claim.place)
        if held is not None:
            held.append(claim)
            return
        self._at[claim.place] = [claim]
        self._sizes[claim.size] = self._sizes.get(claim.size, 0) + 1
        insort(self._places, (claim.start, -claim.size))

    def remove(self, claim: Claim) -> None:
        held = self._at[claim.place]
        held.remove(claim)
        if held:
            return
        del self._at[claim.place]
        del self._places[bisect_left(self._places, (claim.start, -claim.size))]
        self._sizes[claim.size] -= 1
        if not self._sizes[claim.size]:
            del self._sizes[claim.size]

    def at(self, place: Place) -> list[Claim]:
        """The claims to this very network."""
        return self._at.get(place, [])

    def around(self, start: int, size: int) -> Iterator[Claim]:
        """The claims that contain the network, those to the very same one included."""
        for wider in self._sizes:
            if wider >= size:
                yield from self._at.get((start >> wider << wider, wider), ())

    def widest(self, start: int, size: int) -> Place:
        """The widest network around this one that somebody claims; itself where there is none."""
        for wider in sorted(self._sizes, reverse=True):
            place = start >> wider << wider, wider
            if wider > size and place in self._at:
                return place
        return start, size

    def within(self, start: int, size: int) -> Iterator[Claim]:
        """The claims that the network contains, those to the very same one included."""
        end = start + (1 << size)
        for index in range(bisect_left(self._places, (start, -size)), len(self._places)):
            first, minus_size = self._places[index]
            if first >= end:
                return
            yield from self._at[first, -minus_size]

    def meeting(self, claim: Claim) -> Claim | None:
        """The first in order of those that share an address with this one; None if none does."""
        found = [*self.around(claim.start, claim.size), *self.within(claim.start, claim.size)]
        return min(found, key=_order, default=None)


def _order(claim: Claim) -> tuple[str, str, bool, int]:
    return claim.order
