"""How this node reaches the pods of each peer: by a plain route, or through the VXLAN overlay.

Pure: the inventory, this node, the configuration, and what the kernel says of the way to the
peers' addresses go in; routes, neighbours and forwarding entries come out.

In the overlay each node has one virtual end point (VTEP). Its link-layer address is a hash of the
network identifier and the node's name, so every node works out all of them from the inventory
alone, and one is the same after a reboot. The inventory may name another, and where the overlay is
sent to. Per peer there is one permanent neighbour for each family and one permanent forwarding
entry: nothing is learned, asked for or sent to many.

- A node's end carries the network address of its first pod subnet as its own (10.244.1.0/32):
  no pod ever has it, peers have a route to it, and replies to it come back through the overlay, as
  a strict reverse path filter wants. It is the gateway of the peers' routes as well.
- Where a node's subnets are of one or two addresses (/31, /32), their network address is a pod's.
  Its gateway is then the node's own address; nothing is carried.
- One end serves both families of pods. The packets that carry them are IPv4 where all nodes have
  an IPv4 address, else IPv6: the two ends have to agree, and know the inventory only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import ip_interface

from cni_plugin import names
from cni_plugin.crossnode import CrossNode
from cni_plugin.fields import invalid
from cni_plugin.spec import CniError, Code, IPAddress, IPInterface, IPNetwork
from cni_plugin.typed import NamedTuple
from ipam.inventory import Inventory, Node
from ipam.routes import NodeRoute, OwnedRoute, families, no_address
from ipam.routes import desired as plain_routes
from ipam.steps import step

DIRECT, ROUTED, UNREACHABLE = "direct", "behind a router", "unreachable"

Reach = Callable[[IPAddress], str]
"""How this node reaches an address of a peer: one of the three words above."""


class Peers(NamedTuple):
    """What this node needs for its peers. `neighbours` maps the gateways of the overlay's routes to
    link-layer addresses; `tunnels` maps these to the addresses of the peers on the underlay.

    `plain` are the gateways of the plain routes.
    """

    routes: tuple[NodeRoute, ...] = ()
    neighbours: Mapping[IPAddress, str] = {}
    tunnels: Mapping[str, IPAddress] = {}

    @property
    def plain(self) -> frozenset[IPAddress]:
        return frozenset(route.via for route in self.routes if not route.overlay)


def vtep_mac(vni: int, name: str) -> str:
    """The link-layer address of a node's end of the overlay."""
    return names.derived_mac("vtep", str(vni), name)


def vtep(vni: int, node: Node) -> str:
    """As `vtep_mac`, unless the inventory says otherwise."""
    return node.vtep_mac or vtep_mac(vni, node.name)


def others(inventory: Inventory, own: Node) -> Iterator[Node]:
    """The peers of `own`, in the order of the inventory."""
    return (node for node in inventory.nodes if node.name != own.name)


def carried(node: Node) -> tuple[IPInterface, ...]:
    """The addresses that a node's end of the overlay carries, each a network of its own."""
    found = [_carried(node, version) for version in (4, 6)]
    return tuple(ip_interface(address) for address in found if address is not None)


def _carried(node: Node, version: int) -> IPAddress | None:
    """The network address of the first pod subnet where that is no pod's."""
    for cidr in node.pod_cidrs:
        if cidr.version == version and cidr.max_prefixlen - cidr.prefixlen >= 2:
            return cidr.network_address
    return None


# --- the underlay -----------------------------------------------------------------------------


_Lacking = dict[int, tuple[tuple[Node, ...], frozenset[str]]]  # of which nodes, by version, who

_last: tuple[CrossNode | None, _Lacking] = (None, {})


def underlay_version(inventory: Inventory, cross: CrossNode) -> int:
    """The IP version that carries the overlay. Raises CniError 7 when the nodes share none.

    Who lacks an address of a version is kept, and follows by the nodes that differ: so one that
    comes, goes or changes moves the overlay to the other version at once, and back.
    """
    global _last
    former, kept = _last
    lacking: _Lacking = dict(kept) if former == cross else {}
    found = 0
    for version in _versions(cross):
        nodes, names = lacking.get(version, ((), frozenset()))
        change = step(nodes, inventory.nodes)
        without = [n.name for n in change.new if not underlay_addresses(n, version, cross)]
        names = names.difference(node.name for node in change.gone).union(without)
        lacking[version] = inventory.nodes, names
        if not names:
            found = version
            break
    _last = cross, lacking
    return found or _underlay_version(inventory, cross)


def _versions(cross: CrossNode) -> tuple[int, ...]:
    """Those that may carry the overlay, the first one first."""
    return (cross.cidr.version,) if cross.cidr is not None else (4, 6)


def _underlay_version(inventory: Inventory, cross: CrossNode) -> int:
    """The same of all nodes, whatever they were before."""
    lacking: dict[int, str] = {}
    for version in _versions(cross):
        without = [
            node.name for node in inventory.nodes if not underlay_addresses(node, version, cross)
        ]
        if not without:
            return version
        lacking[version] = without[0]
    if cross.cidr is not None:
        raise invalid(
            "underlay.cidr",
            str(cross.cidr),
            f"expected a network that each node has an address in; {lacking[cross.cidr.version]} in"
            f" {inventory.source} has none",
        )
    raise CniError(
        Code.INVALID_CONFIG,
        f"{inventory.source}: node {lacking[4]} has no IPv4 address and node {lacking[6]} no IPv6"
        " address, so no family can carry the overlay",
        "give all nodes addresses of one family",
    )


def underlay_address(
    node: Node, version: int, cross: CrossNode, near: IPNetwork | None = None
) -> IPAddress:
    """Where peers send a node's part of the overlay: where the inventory says, else the node's
    first address, inside `near` if it has one there. The node has an address of this version."""
    said = node.overlay_address
    if said is not None and said.version == version:
        return said
    addresses = underlay_addresses(node, version, cross)
    if near is not None:
        for address in addresses:
            if address in near:
                return address
    return addresses[0]


def underlay_addresses(node: Node, version: int, cross: CrossNode) -> list[IPAddress]:
    """The node's addresses of this version that may carry the overlay."""
    cidr = cross.cidr
    return [
        address
        for address in node.addresses
        if address.version == version and (cidr is None or address in cidr)
    ]


# --- the peers --------------------------------------------------------------------------------


def candidates(inventory: Inventory, own: Node, cross: CrossNode) -> list[IPAddress]:
    """The addresses whose reach counts: of each peer the first of each family in use, unless all of
    them are in the overlay anyway."""
    if cross.backend == "vxlan":
        return []
    needed = families(own)
    found: list[IPAddress] = []
    for peer in others(inventory, own):
        for version in sorted(needed.intersection(cidr.version for cidr in peer.pod_cidrs)):
            gateway = _first(peer, version)
            if gateway is not None:
                found.append(gateway)
    return found


def _first(node: Node, version: int) -> IPAddress | None:
    for address in node.addresses:
        if address.version == version:
            return address
    return None


def kept(
    inventory: Inventory,
    own: Node,
    lost: Collection[IPAddress],
    ours: Iterable[OwnedRoute],
) -> dict[IPAddress, str]:
    """What counts as the reach of addresses that the kernel has no way to, as while a link is down.

    No way says nothing of routers, so such a peer keeps what was decided: the overlay where one of
    `ours` leads there through it. Any other waits for a plain route: nothing speaks for a router,
    and pods that were made meanwhile would have the overlay's smaller MTU for life.
    """
    if not lost:
        return {}
    overlaid = {route.dst for route in ours if route.overlay}
    found: dict[IPAddress, str] = {}
    for peer in others(inventory, own):
        for version in (4, 6):
            first = _first(peer, version)
            if first is not None and first in lost:
                cidrs = (cidr for cidr in peer.pod_cidrs if cidr.version == version)
                found[first] = DIRECT if overlaid.isdisjoint(cidrs) else ROUTED
    return found


def desired(
    inventory: Inventory,
    own: Node,
    cross: CrossNode,
    reach: Reach,
    near: IPNetwork | None = None,
    version: int = 0,
) -> Peers:
    """What this node needs for all its peers; `near` as in `underlay_address`.

    `version` is the IP version that carries the overlay, 0 when it is still to be found.

    A family of which this node has neither a pod subnet nor an address is left out.

    Raises CniError 7 for what the inventory lacks.
    """
    if cross.backend == "host-gw":
        return Peers(plain_routes(inventory, own))
    needed = families(own)
    routes: list[NodeRoute] = []
    neighbours: dict[IPAddress, str] = {}
    tunnels: dict[str, IPAddress] = {}
    for peer in others(inventory, own):
        ends = _ends(peer, own, cross, reach)
        mac = ""
        for cidr in peer.pod_cidrs:
            if cidr.version not in needed:
                continue
            end, overlay = ends[cidr.version]
            if end is None:
                raise no_address(inventory, peer, cidr)
            routes.append(NodeRoute(cidr, end, peer.name, overlay))
            if overlay:
                mac = mac or vtep(cross.vni, peer)
                neighbours[end] = mac
        if mac:
            version = version or underlay_version(inventory, cross)
            tunnels[mac] = underlay_address(peer, version, cross, near)
    return Peers(tuple(routes), neighbours, tunnels)


def _ends(
    peer: Node, own: Node, cross: CrossNode, reach: Reach
) -> dict[int, tuple[IPAddress | None, bool]]:
    """For each IP version the gateway to the peer's pods, and whether it is the overlay's."""
    ends: dict[int, tuple[IPAddress | None, bool]] = {}
    for version in (4, 6):
        first = _first(peer, version)
        if (
            cross.backend == "auto"
            and first is not None
            and _first(own, version) is not None
            and reach(first) == DIRECT
        ):
            ends[version] = first, False
        else:
            carried = _carried(peer, version)
            ends[version] = first if carried is None else carried, True
    return ends
