"""Duplicate address detection of IPv6 addresses (RFC 4862, 5.4): waiting for its verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cni_plugin import waiting
from cni_plugin.kernel import observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.spec import CniError, Code, IPInterface

_TIMEOUT_S = 10.0  # as the reference waits for addresses to settle
_PAUSE_S = 0.02


def settle(route_socket: RouteSocket, index: int, wanted: Sequence[IPInterface]) -> None:
    """Return when these addresses of the link may be used. Raises CniError 101 when another host
    has one of them, or the kernel has no verdict in time."""
    deadline = time.monotonic() + _TIMEOUT_S
    while busy := _busy(route_socket, index, wanted):
        if time.monotonic() > deadline:
            raise CniError(
                Code.ADDRESS_UNAVAILABLE,
                f"duplicate address detection of {busy[0]} was not over in {_TIMEOUT_S:g} s",
            )
        waiting.begins()
        time.sleep(_PAUSE_S)


def _busy(
    route_socket: RouteSocket, index: int, wanted: Sequence[IPInterface]
) -> list[IPInterface]:
    unsettled = observe.unsettled(route_socket, index)
    for address in wanted:
        if unsettled.get(address):
            raise CniError(
                Code.ADDRESS_UNAVAILABLE,
                f"duplicate address detection: {address} is in use on this link",
                "another host answers for this address: check the ranges in ipam",
            )
    return [address for address in wanted if address in unsettled]
