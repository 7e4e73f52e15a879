"""What the overlay's device knows of the peers: neighbours and forwarding entries.

They are permanent, one of each for each peer; see `overlay` for the device.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Mapping

from cni_plugin.kernel import overlaymessages
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.overlaymessages import NUD_PERMANENT
from cni_plugin.typed import Any, NamedTuple


class Entries(NamedTuple):
    """Addresses and link-layer addresses as the wire has them. `neighbours` maps gateways to
    link-layer addresses, `tunnels` holds pairs of these and nodes' addresses."""

    neighbours: Mapping[bytes, bytes]
    tunnels: frozenset[tuple[bytes, bytes]]


NOTHING = Entries({}, frozenset())


def present_on(route_socket: RouteSocket, index: int) -> Entries:
    """The permanent neighbours and forwarding entries of the device."""
    neighbours: dict[bytes, bytes] = {}
    for version in (4, 6):
        for entry in route_socket.dump(overlaymessages.dump_neighbours(index, version)):
            if entry["ifindex"] == index and entry["state"] & NUD_PERMANENT:
                neighbours[_packed(entry, "NDA_DST")] = _packed(entry, "NDA_LLADDR")
    tunnels = frozenset(
        (_packed(entry, "NDA_LLADDR"), _packed(entry, "NDA_DST"))
        for entry in route_socket.dump(overlaymessages.dump_tunnels(index))
        if entry["ifindex"] == index
    )
    return Entries(neighbours, tunnels)


def _packed(entry: Any, name: str) -> bytes:
    return entry.get_attr(name) or b""


def add(route_socket: RouteSocket, index: int, wanted: Entries, present: Entries) -> int:
    """Make what is wanted and not there; how many."""
    batch = [
        overlaymessages.add_tunnel(index, mac, dst) for mac, dst in wanted.tunnels - present.tunnels
    ]
    batch += [
        overlaymessages.add_neighbour(index, dst, mac)
        for dst, mac in wanted.neighbours.items()
        if present.neighbours.get(dst) != mac
    ]
    route_socket.batch(batch)
    return len(batch)


def lacking(wanted: Entries, present: Entries) -> int:
    """How many entries are wanted and not there."""
    neighbours = wanted.neighbours.items() - present.neighbours.items()
    return len(neighbours) + len(wanted.tunnels - present.tunnels)


def remove(route_socket: RouteSocket, index: int, wanted: Entries, present: Entries) -> int:
    """Remove what is there and not wanted, what `add` replaced left out; how many."""
    batch = [
        overlaymessages.delete_tunnel(index, mac, dst)
        for mac, dst in present.tunnels - wanted.tunnels
    ]
    batch += [
        overlaymessages.delete_neighbour(index, dst, mac)
        for dst, mac in present.neighbours.items()
        if dst not in wanted.neighbours
    ]
    route_socket.batch(batch, ignore=(errnos.ENOENT, errnos.ESRCH))
    return len(batch)
