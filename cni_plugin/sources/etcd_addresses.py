"""The addresses where other nodes reach this one: chosen, and kept up with."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address

from cni_plugin.spec import IPAddress

Choose = Callable[[], Sequence[IPAddress]]
_FAR = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def of_default_routes() -> tuple[IPAddress, ...]:
    """The addresses that this machine goes out with, one of each family that has a way out.
    Nothing is sent."""
    found = []
    for family, far in _FAR:
        with suppress(OSError, ValueError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            found.append(ip_address(probe.getsockname()[0]))
    return tuple(found)


def kept(addresses: Sequence[IPAddress], choose: Choose) -> tuple[IPAddress, ...]:
    """These, with another in the place of each that the machine has no more. One without a
    successor stays: the link may be down for a moment."""
    if all(map(_is_here, addresses)):
        return tuple(addresses)
    chosen = {address.version: address for address in choose()}
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
