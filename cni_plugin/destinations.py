"""What the rules take of each node of an inventory, worked out once for each.

A change concerns one node among thousands: what was made of a node is kept as long as the inventory
holds the same object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from json import dumps

from cni_plugin.spec import IPAddress, IPNetwork
from cni_plugin.typed import NamedTuple
from ipam.inventory import Node


class Destinations(NamedTuple):
    """A node's pod subnets and addresses, as networks; its addresses; and the two as JSON has them
    inside of an array."""

    node: Node
    networks: tuple[IPNetwork, ...]
    addresses: tuple[IPAddress, ...]
    networks_text: str
    addresses_text: str


def of_nodes(nodes: Iterable[Node], known: Mapping[str, Destinations]) -> dict[str, Destinations]:
    """By the nodes' names, in their order; `known` is what the last call returned."""
    found: dict[str, Destinations] = {}
    for node in nodes:
        entry = known.get(node.name)
        found[node.name] = entry if entry is not None and entry.node is node else _made(node)
    return found


def reached_at(node: Node) -> tuple[IPAddress, ...]:
    """All addresses that others reach the node at, by plain packets or the overlay's."""
    overlay = node.overlay_address
    if overlay is None or overlay in node.addresses:
        return node.addresses
    return (*node.addresses, overlay)


def networks_of(node: Node) -> tuple[IPNetwork, ...]:
    """A node's pod subnets, and what it is reached at, as networks."""
    # By the number: reading it from text takes twice as long.
    hosts = (ip_network((a.packed, a.max_prefixlen)) for a in reached_at(node))
    return (*node.pod_cidrs, *hosts)


def _made(node: Node) -> Destinations:
    addresses, networks = reached_at(node), networks_of(node)
    return Destinations(node, networks, addresses, _text(networks), _text(addresses))


def _text(values: Iterable[object]) -> str:
    return dumps([str(value) for value in values])[1:-1]
