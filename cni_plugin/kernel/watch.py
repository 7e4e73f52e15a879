"""What the kernel tells of changes that podwire has to look after; the rest is passed over.

Two sockets of multicast groups: rtnetlink's for links, addresses, routes and neighbours, and
nftables'. A node with a hundred pods hears much that means nothing here: pods' links that come and
go, neighbours of the bridge, rules of others. That is told apart by a few bytes of each message,
without decoding it; most of it the kernel keeps back already (`watchfilter`).

Rules:
- Passing over something that mattered is repaired late (the upkeep looks at all of it every half
  minute); not passing over something that did not costs one look.
- A socket that overflowed says so as a change.
- What the agent changes by itself it need not be told. Routes and neighbours come with the number
  of the socket that made them; forwarding entries and neighbours that go don't, and neither does an
  overflow, so these are passed over when they are read while such a change is made, and a moment
  longer. Who has made it reads them: a thread that gets no turn in that moment would be late.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from errno import ENOBUFS
from math import inf
from socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_RAW, SOL_SOCKET, socket
from threading import Lock
from time import monotonic

from cni_plugin.datapath import ROUTE_PROTOCOL
from cni_plugin.drift import MAIN_TABLE
from cni_plugin.kernel import watchfilter
from cni_plugin.kernel.messages import (
    DUMP,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTN_UNICAST,
)
from cni_plugin.kernel.netlink import HEADER, NetlinkSocket

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_ROUTE_GROUPS = (1, 3, 5, 7, 9, 11)  # link, neighbour, IPv4 address and route, IPv6 the same
_NFTABLES_GROUP = 7  # NFNLGRP_NFTABLES
_SO_RCVBUFFORCE = 33
_ROOM = 4 * 1024 * 1024  # bytes; a burst of thousands of changes
_RECEIVE = 1 << 17
_DEAF_S = 0.2
_AF_UNSPEC, _AF_BRIDGE, _AF_INET6 = 0, 7, 10
_RTM_NEWNEIGH = 28
_IFLA_IFNAME, _IFLA_MTU = 3, 4
_RTA_DST, _RTA_GATEWAY, _RTA_MULTIPATH = 1, 5, 9
_RTPROT_KERNEL, _SCOPE_LINK = 2, 253
_UP_AND_RUNNING = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ROUTE = struct.Struct("=8BI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ADDRESS = struct.Struct("=4Bi")  # family, prefixlen, flags, scope, index
_NEIGHBOUR = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")
# Ends of pods' links, ours and other plugins', and the devices that shape pods' traffic.
_OF_A_POD = re.compile(rb"veth[0-9a-f]{7,11}|pwi[0-9a-f]{12}")
_OVERLAY = b"pwvx"
_OURS = b"podwire"
_ENTRIES = "the overlay's entries changed"
# Tables and chains that come and go: flush ruleset, a policy that drops. NFT_MSG_*.
_NFT_SHAPE = frozenset((0, 2, 3, 5))

Link = tuple[bytes, int, int]
"""Name, up and running, MTU."""


class _Watch:
    """A socket of multicast groups of the namespace that was current at construction."""

    _own_port = 0
    _deaf_until = 0.0  # by time.monotonic
    _reading: Lock
    _read: set[str]  # by who made a change, for `changes`

    def __init__(self, protocol: int, groups: tuple[int, ...]) -> None:
        self._reading, self._read = Lock(), set()
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol)
        try:
            self._socket.bind((0, 0))
            with suppress(PermissionError):  # in a namespace of another user the usual has to do
                self._socket.setsockopt(SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    @property
    def has_read(self) -> bool:
        """Whether `changes` has something to tell that the descriptor says nothing of."""
        return bool(self._read)

    def changes(self) -> set[str]:
        """What has changed since the last call, in words; empty when it is nothing to us."""
        with self._reading:
            self._read_all()
            found, self._read = self._read, set()
            return found

    def _read_all(self) -> None:
        while True:
            try:
                data = self._socket.recv(_RECEIVE)
            except BlockingIOError:
                self._caught_up()
                return
            except OSError as e:
                if e.errno != ENOBUFS:
                    raise
                if not self.is_deaf():
                    self._read.add("too many changes to hear each")
                continue
            for kind, body, port in _messages(data):
                own = port != 0 and port == self._own_port
                if not own and (word := self.word(kind, body)):
                    self._read.add(word)

    def _caught_up(self) -> None:
        """Everything that there was has been read."""

    def pass_over(self, source: NetlinkSocket) -> None:
        """From now on this socket's changes are our own: see the rules above."""
        self._own_port = source.port()
        self._deaf_until = inf

    def listen(self) -> None:
        """The change has been made."""
        if self._deaf_until == inf:
            with self._reading, suppress(OSError):  # the thread that listens meets it as well
                self._read_all()
            self._deaf_until = monotonic() + _DEAF_S

    def is_deaf(self) -> bool:
        return monotonic() < self._deaf_until

    def word(self, kind: int, body: bytes) -> str:
        """What a message says that matters; "" for one that does not."""
        raise NotImplementedError


class RouteWatch(_Watch):
    """Links, addresses, routes, and the overlay's entries."""

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self._heard: frozenset[int] = frozenset()  # overlays whose neighbours the kernel tells of
        super().__init__(_NETLINK_ROUTE, _ROUTE_GROUPS)
        self._hear(self._heard)
        body = _IFINFO.pack(_AF_UNSPEC, 0, 0, 0, 0)
        self._socket.send(HEADER.pack(HEADER.size + len(body), RTM_GETLINK, DUMP, 1, 0) + body)

    def _caught_up(self) -> None:
        """Hear the entries of another overlay as well; who made some before that was not heard."""
        overlays = frozenset(i for i, link in self.links.items() if link[0].startswith(_OVERLAY))
        if overlays == self._heard:
            return
        if overlays - self._heard and not self.is_deaf():
            self._read.add(_ENTRIES)
        self._hear(overlays)

    def _hear(self, overlays: frozenset[int]) -> None:
        self._heard = overlays
        with suppress(OSError):  # then the rest is passed over here
            watchfilter.attach(self._socket, overlays)

    def word(self, kind: int, body: bytes) -> str:
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            return self._link(kind, body)
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            return _route(body)
        if kind in (RTM_NEWADDR, RTM_DELADDR):
            return self._address(body)
        if kind in (_RTM_NEWNEIGH, RTM_DELNEIGH):
            return self._neighbour(kind, body)
        return ""

    def _link(self, kind: int, body: bytes) -> str:
        family, _, index, flags, _ = _IFINFO.unpack_from(body)
        if family == _AF_BRIDGE:  # of a port of a bridge
            return ""
        attributes = dict(_attributes(body, _IFINFO.size))
        name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0")
        if _OF_A_POD.fullmatch(name):
            return ""
        if kind == RTM_DELLINK:
            return f"link {_text(name)} is gone" if self.links.pop(index, None) else ""
        mtu = attributes.get(_IFLA_MTU, b"")
        before = self.links.get(index)
        now = name, flags & _UP_AND_RUNNING, _NUMBER.unpack(mtu)[0] if len(mtu) == 4 else 0
        self.links[index] = now
        if before is None:  # one that is new matters by its addresses and routes
            return ""
        return f"link {_text(name)} changed" if before != now else ""

    def _address(self, body: bytes) -> str:
        _, _, _, scope, index = _ADDRESS.unpack_from(body)
        if scope == _SCOPE_LINK or index not in self.links:
            return ""
        return f"an address of {_text(self.links[index][0])} changed"

    def _neighbour(self, kind: int, body: bytes) -> str:
        family, index, *_ = _NEIGHBOUR.unpack_from(body)
        if (family == _AF_BRIDGE or kind == RTM_DELNEIGH) and self.is_deaf():
            return ""
        overlay = index in self.links and self.links[index][0].startswith(_OVERLAY)
        return _ENTRIES if overlay else ""


class RulesetWatch(_Watch):
    """nftables: what names podwire, and tables and chains that come and go."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_NETFILTER, (_NFTABLES_GROUP,))

    def word(self, kind: int, body: bytes) -> str:
        return "nftables changed" if kind & 0xFF in _NFT_SHAPE or _OURS in body else ""


def _route(body: bytes) -> str:
    """Ours that lead to peers, and others' in the main table that may stand in their way."""
    _, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    if table != MAIN_TABLE or kind != RTN_UNICAST:
        return ""
    attributes = dict(_attributes(body, _ROUTE.size))
    if protocol == ROUTE_PROTOCOL:
        led = _RTA_GATEWAY in attributes or _RTA_MULTIPATH in attributes
        return "podwire's routes changed" if led else ""  # else one of a pod
    link_local = length == 64 and attributes.get(_RTA_DST, b"")[:2] == b"\xfe\x80"
    return "" if protocol == _RTPROT_KERNEL and link_local else "routes changed"


def _messages(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """The messages of a datagram as (type, body, port of the socket that caused it or 0)."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, _, port = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind, data[offset + HEADER.size : offset + length], port
        offset += (length + 3) & ~3


def _attributes(body: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
