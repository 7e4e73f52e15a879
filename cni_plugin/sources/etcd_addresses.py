"""The addresses where other nodes reach this one: chosen, and kept up with."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address

from cni_plugin.spec import IPAddress, IPNetwork

Choose = Callable[[], Sequence[IPAddress]]
_FAR = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def of_default_routes() -> tuple[IPAddress, ...]:
    """The addresses that this machine goes out with, one of each family that has a way out with an
    address that others reach. Nothing is sent."""
    found = []
    for family, far in _FAR:
        with suppress(OSError, ValueError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            found.append(ip_address(probe.getsockname()[0].partition("%")[0]))
    return tuple(
        each
        for each in found
        if not (each.is_loopback or (each.version == 6 and each.is_link_local))
    )


def kept(
    addresses: Sequence[IPAddress], choose: Choose, pods: Sequence[IPNetwork] = ()
) -> tuple[IPAddress, ...]:
    """These, with another in the place of each that the machine has no more. One without a
    successor stays: the link may be down for a moment. An address of the networks `pods` is none:
    while a node's new one is tentative, the kernel goes out with any other, be it the bridge's."""
    if all(map(_is_here, addresses)):
        return tuple(addresses)
    chosen = {
        address.version: address
        for address in choose()
        if not any(address in network for network in pods)
    }
    return tuple(
        address if _is_here(address) else chosen.get(address.version, address)
        for address in addresses
    )


def _is_here(address: IPAddress) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((str(address), 0))
        return True
    return False
