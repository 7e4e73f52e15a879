"""The routes between nodes: each peer's pod subnets by way of that peer.

Desired against actual, without I/O: `desired` is a function of the inventory, `difference` of two
sets of routes, and `sync` puts the outcome into a `RouteTable`. The kernel's table is in
cni_plugin.kernel, which this package doesn't know.

Ours are the routes of the main table that carry protocol `ROUTE_PROTOCOL` and have a gateway.
Nothing else is ever read as ours, changed or removed; a route of somebody else to the same
destination is the table's to refuse.

`desired` makes the plain routes of host-gw; `ipam.peers` chooses between these and the overlay.
Not done here: IPv4 by way of an IPv6 gateway (RFC 5549).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cni_plugin.spec import CniError, Code, IPAddress, IPNetwork
from cni_plugin.typed import NamedTuple, Protocol
from ipam.inventory import Inventory, Node


class NodeRoute(NamedTuple):
    """A route to `dst`, pods of another node, by way of `via`: an address of that node, on a link
    of this one or, with `overlay`, at the other end of the overlay.

    `node` is the node's name for messages, "" when unknown. The kernel does not keep it, so two
    routes are equal when the rest is.
    """

    dst: IPNetwork
    via: IPAddress
    node: str = ""
    overlay: bool = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NodeRoute):
            return NotImplemented
        return self.dst == other.dst and self.via == other.via and self.overlay == other.overlay

    def __ne__(self, other: object) -> bool:  # tuple has one of its own that compares `node`
        return not self == other

    def __hash__(self) -> int:
        return hash((self.dst, self.via, self.overlay))


class OwnedRoute(Protocol):
    """What a table tells of a route; a `NodeRoute` is one."""

    @property
    def dst(self) -> IPNetwork: ...
    @property
    def via(self) -> IPAddress: ...
    @property
    def overlay(self) -> bool: ...


class Changes(NamedTuple):
    """What to do to a table, false when that is nothing.

    A table removes first, then replaces, then adds: where several routes have one destination,
    the surplus is gone before the one that stays gets its new gateway.
    """

    add: tuple[NodeRoute, ...] = ()
    replace: tuple[NodeRoute, ...] = ()  # as they are to become; the destination is there already
    remove: tuple[NodeRoute, ...] = ()  # exactly these: destination and gateway

    def __bool__(self) -> bool:
        return bool(self.add or self.replace or self.remove)


class RouteTable(Protocol):
    """The routes of a node that are podwire's."""

    def owned(self) -> Sequence[OwnedRoute]:
        """The routes with protocol `ROUTE_PROTOCOL` and a gateway; CniError when unreadable."""
        ...

    def apply(self, changes: Changes) -> None:
        """Make all of the changes, or none of them and raise CniError."""
        ...


def desired(inventory: Inventory, own: Node) -> tuple[NodeRoute, ...]:
    """One route for each pod subnet of each other node, by the peer's first address of its family.

    A family of which this node has neither a pod subnet nor an address is left out: it could
    reach no such gateway, and its pods send no such packets.

    Raises CniError 7 when this node or the peer lacks an address in a family that needs a route.
    """
    present = {address.version for address in own.addresses}
    needed = families(own)
    routes: list[NodeRoute] = []
    for peer in inventory.nodes:
        if peer.name == own.name:
            continue
        gateways: dict[int, IPAddress] = {}
        for address in peer.addresses:
            gateways.setdefault(address.version, address)
        for cidr in peer.pod_cidrs:
            version = cidr.version
            if version not in needed:
                continue
            if version not in gateways:
                raise no_address(inventory, peer, cidr)
            if version not in present:
                ours = next(mine for mine in own.pod_cidrs if mine.version == version)
                raise no_address(inventory, own, ours)
            routes.append(NodeRoute(cidr, gateways[version], peer.name))
    return tuple(routes)


def families(own: Node) -> frozenset[int]:
    """The IP versions that this node has pods or addresses of."""
    versions = [address.version for address in own.addresses]
    return frozenset(versions + [cidr.version for cidr in own.pod_cidrs])


def no_address(inventory: Inventory, node: Node, cidr: IPNetwork) -> CniError:
    """A node whose pods of one family have no gateway of that family."""
    family = f"IPv{cidr.version}"
    return CniError(
        Code.INVALID_CONFIG,
        f"{inventory.source}: node {node.name} has pod subnet {cidr} and no {family} address, so"
        " there is no route to it",
        f"add an {family} address to the addresses of {node.name}, or remove {cidr} from its"
        " podCIDRs",
    )


def difference(desired: Iterable[NodeRoute], actual: Iterable[OwnedRoute]) -> Changes:
    """The changes that turn `actual` into `desired`; of two desired to one destination the first.

    `actual` may hold several routes to one destination: one is kept or replaced, the rest removed.
    """
    wanted: dict[IPNetwork, NodeRoute] = {}
    for route in desired:
        wanted.setdefault(route.dst, route)
    existing: dict[IPNetwork, list[tuple[IPAddress, bool]]] = {}
    for present in actual:
        existing.setdefault(present.dst, []).append((present.via, present.overlay))
    add: list[NodeRoute] = []
    replace: list[NodeRoute] = []
    for dst, route in wanted.items():
        gateways = existing.get(dst)
        if gateways is None:
            add.append(route)
        elif (route.via, route.overlay) in gateways:
            gateways.remove((route.via, route.overlay))
        else:
            gateways.pop(0)
            replace.append(route)
    remove = [
        NodeRoute(dst, via, overlay=overlay)
        for dst, gateways in existing.items()
        for via, overlay in gateways
    ]
    return Changes(tuple(add), tuple(replace), tuple(remove))


def sync(table: RouteTable, wanted: Iterable[NodeRoute]) -> Changes:
    """Make the table hold `wanted` and no other route of ours; returns what had to be changed.

    Idempotent: a second call changes nothing. Raises what the table raises, nothing changed then.
    """
    changes = difference(wanted, table.owned())
    if changes:
        table.apply(changes)
    return changes
