"""The network that the nodes share: how peers' addresses are reached, by which link, how wide.

Nothing is changed here. The kernel's answers, not the link's prefix, decide whether a peer is on
a link of this node: there may be a route to it alone, or a link without a network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from errno import EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH

from cni_plugin.crossnode import CrossNode
from cni_plugin.fields import invalid
from cni_plugin.kernel import observe, overlaymessages
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.spec import CniError, Code, IPAddress, IPInterface, IPNetwork
from cni_plugin.typed import Any, NamedTuple

NO_WAY = (ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL)  # none, unreachable, prohibit, blackhole
_RTN_LOCAL = 2
_LISTED = 8


class Way(NamedTuple):
    """How the node sends to an address: through the link with this interface index, by a gateway
    or without. `mtu` is what the route says of the path, 0 for nothing."""

    link: int
    routed: bool
    mtu: int
    local: bool


class Underlay(NamedTuple):
    """What carries the overlay: from `local`, by the link with this index and name.

    `link` is 0 when the peers are behind several links; `name` is then the one of most of them.
    `near` is the network of the local address where a link was chosen. `mtu` is the least of the
    paths to the peers, in bytes. `here` is whether `local` is an address of this machine,
    `cut_off` whether the kernel has no way to any peer now.
    """

    local: IPAddress
    link: int
    name: str
    near: IPNetwork | None
    mtu: int
    here: bool = True
    cut_off: bool = False


class Ways:
    """The ways to addresses, each asked for once."""

    def __init__(self, route_socket: RouteSocket) -> None:
        self._socket = route_socket
        self._known: dict[IPAddress, Way | None] = {}

    def ask(self, addresses: Iterable[IPAddress]) -> None:
        """Ask for many at once; `of` then knows them."""
        asked = [a for a in dict.fromkeys(addresses) if a not in self._known]
        answers = self._socket.batch([overlaymessages.get_way(a) for a in asked], ignore=NO_WAY)
        for address, entry in zip(asked, answers, strict=True):
            self._known[address] = None if entry is None else _way(self._socket, address, entry)

    def forget(self, addresses: Iterable[IPAddress]) -> None:
        """Ask anew for these when they are wanted."""
        for address in addresses:
            self._known.pop(address, None)

    def of(self, address: IPAddress) -> Way | None:
        """The way to an address; None when it is not reachable."""
        if address not in self._known:
            self.ask([address])
        return self._known[address]

    def lost(self) -> frozenset[IPAddress]:
        """Those that were asked for and are not reachable."""
        return frozenset(address for address, way in self._known.items() if way is None)

    def each(self, addresses: Iterable[IPAddress]) -> list[Way]:
        """The ways to those that are reachable."""
        asked = list(addresses)
        self.ask(asked)
        return [way for way in map(self._known.__getitem__, asked) if way is not None]


def networks_down(route_socket: RouteSocket, own: Collection[IPAddress]) -> list[IPNetwork]:
    """The networks of those of a node's addresses whose links are set down: IPv4 keeps them."""
    found = []
    for name, address in observe.local_addresses(route_socket):
        if address.ip in own:
            link = observe.link(route_socket, name)
            if link is not None and not link.up:
                found.append(address.network)
    return found


def _way(route_socket: RouteSocket, address: IPAddress, entry: Any) -> Way:
    mtu = _metric(entry)
    if mtu:  # perhaps learned from a router, and soon forgotten: what the route says counts
        [configured] = route_socket.batch([overlaymessages.get_way(address, configured=True)])
        mtu = 0 if configured is None else _metric(configured)
    routed = entry.get_attr("RTA_GATEWAY") is not None or entry.get_attr("RTA_VIA") is not None
    return Way(entry.get_attr("RTA_OIF") or 0, routed, mtu, entry["type"] == _RTN_LOCAL)


def _metric(entry: Any) -> int:
    metrics = entry.get_attr("RTA_METRICS")
    return 0 if metrics is None else int(metrics.get_attr("RTAX_MTU") or 0)


def path_mtu(route_socket: RouteSocket, ways: Iterable[Way]) -> int:
    """The least MTU of these ways, in bytes; 0 when there is none to tell."""
    paths = {(way.link, way.mtu) for way in ways if not way.local}
    mtus: dict[int, int] = {}
    for index in {index for index, _ in paths if index}:
        entry = route_socket.get(overlaymessages.get_link_at(index))
        if entry is not None:
            mtus[index] = observe.state(entry).mtu
    return min(
        (min(mtu or mtus[index], mtus[index]) for index, mtu in paths if index in mtus), default=0
    )


# --- the choice of a link -----------------------------------------------------------------------


def choose(
    route_socket: RouteSocket,
    cross: CrossNode,
    own: tuple[IPAddress, ...],
    to_peers: Callable[[IPNetwork | None], Iterable[IPAddress]],
    ways: Ways,
) -> Underlay:
    """What carries the overlay from this node, which has the addresses `own` in the inventory (of
    the family that is used, and inside `underlay.cidr` when that is set). `to_peers` gives the
    peers' addresses, those near this node's where they have several.

    Raises CniError 7 that names the field when no link fits.
    """
    if not (cross.interface or cross.interface_regex or cross.cidr is not None):
        return _by_route(route_socket, own[0], ways, ways.each(to_peers(None)))
    name, address = _configured(route_socket, cross, own)
    link = observe.link(route_socket, name)
    if link is None:
        raise invalid(_field(cross), name, "expected a link that stays")
    peers = ways.each(to_peers(address.network))
    mtu = path_mtu(route_socket, [way for way in peers if way.link == link.ifindex]) or link.mtu
    return Underlay(address.ip, link.ifindex, name, address.network, mtu, cut_off=not peers)


def _by_route(route_socket: RouteSocket, own: IPAddress, ways: Ways, peers: list[Way]) -> Underlay:
    """The link that leads to most peers, the first of them where it is a tie."""
    links: dict[int, int] = {}  # and how many peers each leads to
    for way in peers:
        if not way.local:
            links[way.link] = links.get(way.link, 0) + 1
    cut_off = not links
    if cut_off:
        links[_link_of(route_socket, own)] = 0
    index = max(links, key=links.__getitem__)
    entry = route_socket.get(overlaymessages.get_link_at(index)) if index else None
    link = None if entry is None else observe.state(entry)
    mtu = path_mtu(route_socket, peers) or (link.mtu if link else 0)
    only = index if link is not None and len(links) == 1 else 0
    mine = ways.of(own)
    here = mine is not None and mine.local
    return Underlay(own, only, link.name if link else "", None, mtu, here, cut_off)


def refuse_elsewhere(route_socket: RouteSocket, carrier: Underlay) -> None:
    """Raises CniError when the address that peers send to is not this machine's: 104 while it can't
    reach a single one of them either, which a missing link explains, else 7."""
    if carrier.here:
        return
    if carrier.cut_off:
        raise CniError(
            Code.KERNEL_REFUSED,
            f"this node's address {carrier.local} is on no link now, and no peer can be reached: a"
            " link is down or missing",
            "bring the link up; what the overlay needs then follows",
        )
    raise CniError(
        Code.INVALID_CONFIG,
        f"this node's address {carrier.local} is not on a link of this machine, and the peers"
        " send the overlay's packets there",
        "bring up the link that has it, or correct the node's first address in the inventory; this"
        f" machine has {_listed(observe.local_addresses(route_socket))}",
    )


def _link_of(route_socket: RouteSocket, own: IPAddress) -> int:
    for name, address in observe.local_addresses(route_socket):
        if address.ip == own:
            link = observe.link(route_socket, name)
            return link.ifindex if link else 0
    return 0


def _field(cross: CrossNode) -> str:
    if cross.interface:
        return "underlay.interface"
    return "underlay.interfaceRegex" if cross.interface_regex else "underlay.cidr"


def _configured(
    route_socket: RouteSocket, cross: CrossNode, own: tuple[IPAddress, ...]
) -> tuple[str, IPInterface]:
    """The link that the configuration asks for, and this node's address there."""
    local = observe.local_addresses(route_socket)
    links = {name for name, _ in local}
    if cross.interface:
        links = {cross.interface}
    elif cross.interface_regex:
        links = {name for name in links if re.search(cross.interface_regex, name)}
    for ip in own:  # in the order of the inventory
        for name, address in local:
            if name in links and address.ip == ip:
                return name, address
    value = cross.interface or cross.interface_regex or str(cross.cidr)
    raise invalid(
        _field(cross),
        value,
        f"expected a link with an address that this node has in the inventory"
        f" ({', '.join(map(str, own))})",
        f"this machine has {_listed(local)}",
    )


def _listed(local: tuple[tuple[str, IPInterface], ...]) -> str:
    shown = [f"{address} on {name}" for name, address in local if not address.ip.is_link_local]
    more = f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    return ", ".join(shown[:_LISTED]) + more
