"""What the kernel tells of addresses that are removed from the links of a network namespace.

A connection that comes from such an address is dead: nothing reaches it any more, and what it
sends is not routed. TCP finds out only when it has waited for an answer long enough.

Pods' own addresses are in their namespaces, and podwire's ends of their links have none: there is
little to hear on a node.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from errno import ENOBUFS
from socket import AF_INET, AF_INET6, AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, inet_ntop, socket
from struct import Struct

from cni_plugin.kernel.messages import RTM_DELADDR
from cni_plugin.kernel.netlink import HEADER

ANY = ""
"""In the place of an address: some were missed."""

_NETLINK_ROUTE = 0
_GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_RECEIVE = 1 << 16  # bytes; a notification is a datagram of some hundred
_ADDRESS = Struct("=4Bi")  # struct ifaddrmsg: family, prefixlen, flags, scope, index
_ATTRIBUTE = Struct("=HH")  # struct nlattr: length, type
_IFA_ADDRESS, _IFA_LOCAL = 1, 2  # of a point-to-point link the first is the other end's
_SIZES: dict[int, int] = {AF_INET: 4, AF_INET6: 16}  # bytes


class LostAddresses:
    """Of the namespace that is current at construction; one thread iterates. Raises OSError."""

    def __init__(self) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_ROUTE)
        try:
            self._socket.bind((0, _GROUPS))
            self._bell, self._ring = os.pipe2(os.O_CLOEXEC)
        except OSError:
            self._socket.close()
            raise

    def __iter__(self) -> Iterator[str]:
        """Each address when it has been removed, as inet_ntop(3) writes it, until `stop`."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.register(self._socket, select.POLLIN)
        while self._bell not in (fd for fd, _ in poll.poll()):
            try:
                data = self._socket.recv(_RECEIVE)
            except OSError as e:
                if e.errno != ENOBUFS:
                    raise
                yield ANY
            else:
                yield from removed(data)

    def stop(self) -> None:
        """End the iteration; any thread may call it."""
        os.write(self._ring, b"\0")

    def close(self) -> None:
        """After the iteration."""
        self._socket.close()
        os.close(self._bell)
        os.close(self._ring)


def removed(data: bytes) -> Iterator[str]:
    """The addresses that a datagram of the kernel's says are gone."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        if kind == RTM_DELADDR and (
            address := _address(data[offset + HEADER.size : offset + length])
        ):
            yield address
        offset += (length + 3) & ~3


def _address(body: bytes) -> str:
    family = body[0] if body else 0
    offset, found = _ADDRESS.size, {}
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    value = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    return inet_ntop(family, value) if _SIZES.get(family) == len(value) else ""
