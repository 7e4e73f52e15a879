"""Which subnet a node takes of the cluster's network. Pure; chance is an argument.

A pool is cut into subnets of one length, numbered from 0. Nodes that start at once must not all
try the first that is free, so each takes one by chance, every free one as likely as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from cni_plugin.fields import invalid
from cni_plugin.spec import IPAddress, IPNetwork
from ipam import ranges

DEFAULT_LENGTHS = {4: 24, 6: 64}
_LONGEST = {4: 30, 6: 126}  # a gateway and one pod

Chance = Callable[[int], int]
"""A number from 0 to one less than the given."""


class Pool(NamedTuple):
    """The part of a cluster's network of one family that subnets are taken of: those numbered from
    `first` to `last`, both included, each with a prefix of `length` bits."""

    network: IPNetwork
    length: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.network} in subnets of /{self.length}"

    @property
    def version(self) -> int:
        return self.network.version

    def subnet(self, number: int) -> IPNetwork:
        bits = int(self.network.network_address) + (number << self._shift)
        if self.version == 4:
            return IPv4Network((IPv4Address(bits), self.length))
        return IPv6Network((IPv6Address(bits), self.length))

    def number(self, address: IPAddress) -> int:
        """The number of the subnet that an address of this family lies in, or would."""
        return (int(address) - int(self.network.network_address)) >> self._shift

    def offers(self, subnet: IPNetwork) -> bool:
        """Whether it is one that a node may take."""
        return (
            subnet.version == self.version
            and subnet.prefixlen == self.length
            and self.first <= self.number(subnet.network_address) <= self.last
        )

    def pick(self, taken: Iterable[IPNetwork], chance: Chance) -> IPNetwork | None:
        """One that overlaps none of `taken`, by chance; None when there is none."""
        covered = self._covered(taken)
        free = self.last - self.first + 1 - sum(high - low for low, high in covered)
        if free <= 0:
            return None
        found = self.first + chance(free)
        for low, high in covered:
            if low > found:
                break
            found += high - low
        return self.subnet(found)

    def _covered(self, taken: Iterable[IPNetwork]) -> list[tuple[int, int]]:
        """The numbers that the networks cover, wholly or in part, as ranges apart from each other
        in their order; the end of each is excluded."""
        ranges_of = sorted(
            (
                max(self.first, self.number(network.network_address)),
                min(self.last, self.number(network.broadcast_address)) + 1,
            )
            for network in taken
            if network.version == self.version
        )
        found: list[tuple[int, int]] = []
        for low, high in ranges_of:
            start = max(low, found[-1][1]) if found else low
            if start < high:
                found.append((start, high))
        return found

    @property
    def _shift(self) -> int:
        return self.network.max_prefixlen - self.length


def whole_pool(network: IPNetwork, length: int | None, path: str, length_path: str) -> Pool:
    """All of a network. Raises CniError 7 that names `path` or `length_path`."""
    if special := ranges.reserved(network):
        raise invalid(path, str(network), f"expected a network outside of {special}")
    bits = DEFAULT_LENGTHS[network.version] if length is None else length
    longest = _LONGEST[network.version]
    if not network.prefixlen <= bits <= longest:
        wanted = (
            f"expected a number from {network.prefixlen}, the length of {network}, to {longest}"
        )
        raise invalid(length_path, bits, wanted)
    return Pool(network, bits, 0, (1 << (bits - network.prefixlen)) - 1)
