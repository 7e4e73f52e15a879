"""The network of several nodes: the inventory, this node's place in it, the routes to the others.

Orders what `ipam.inventory` and `ipam.routes` decide and what `kernel` knows and does. Absent an
inventory there is no cluster, and nothing here is called.
"""

from __future__ import annotations

import os

from cni_plugin.kernel import observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.nodelock import node_lock
from cni_plugin.kernel.routetable import KernelRouteTable
from cni_plugin.spec import IPInterface, IPNetwork
from cni_plugin.typed import NamedTuple
from ipam import inventory as inventories
from ipam import overlaps, routes
from ipam.inventory import Inventory, Node

LocalAddresses = tuple[tuple[str, IPInterface], ...]  # with the links' names


class Cluster(NamedTuple):
    """All nodes, and which of them this one is."""

    inventory: Inventory
    own: Node


def join(path: str, node_name: str, route_socket: RouteSocket) -> Cluster:
    """Read the inventory at `path`, find this node in it, refuse subnets that overlap.

    Raises CniError: 5 and 7 for the file, 106 for an overlap.
    """
    known = inventories.load(path)
    local: LocalAddresses = ()
    named = [node for node in known.nodes if node.name == node_name]
    if not (named and named[0].networks):  # then the inventory says all; a dump can be long
        local = observe.local_addresses(route_socket)
    found = identify(known, node_name, local)
    refuse_overlaps(found, local)
    return found


def identify(known: Inventory, node_name: str, local: LocalAddresses) -> Cluster:
    """Find this node, which has the addresses `local`; subnets may overlap, to be looked at."""
    own = inventories.find_self(
        known, node_name, os.uname().nodename, lambda: [address.ip for _, address in local]
    )
    return Cluster(known, own)


def refuse_overlaps(cluster: Cluster, local: LocalAddresses) -> None:
    """Raises CniError 106 when a pod subnet overlaps another one, or the node's own network."""
    networks = _node_networks(cluster.own, local)
    overlaps.refuse_overlaps(cluster.inventory, cluster.own, networks)


def refuse_foreign(cluster: Cluster, subnet: IPNetwork) -> None:
    """Raises CniError 106 for a range that is another node's, 7 for one that is nobody's."""
    overlaps.refuse_foreign_subnet(cluster.inventory, cluster.own, subnet)


def _node_networks(own: Node, local: LocalAddresses) -> list[tuple[str, IPNetwork]]:
    """The networks that the node's own addresses lie in, as its links say: the node network.

    Other links don't count: the pods' bridge carries the pod subnet by right.
    """
    return [(link, address.network) for link, address in local if address.ip in own.addresses]


def sync(cluster: Cluster, route_socket: RouteSocket) -> routes.Changes:
    """Bring the routes to the other nodes in line with the inventory; what was changed.

    The common case, nothing to do, takes no lock.
    """
    table = KernelRouteTable(route_socket)
    wanted = routes.desired(cluster.inventory, cluster.own)
    if not routes.difference(wanted, table.owned()):
        return routes.Changes()
    with node_lock(exclusive=True):
        return routes.sync(table, wanted)


def refuse_obstructed(cluster: Cluster, route_socket: RouteSocket) -> None:
    """For STATUS: what would keep `sync` from making the routes that are missing.

    Raises CniError 103 for another program's route in the way of one, 104 for a node whose
    address is not on a link of this node.
    """
    table = KernelRouteTable(route_socket)
    wanted = routes.desired(cluster.inventory, cluster.own)
    changes = routes.difference(wanted, table.owned())
    table.refuse_obstructed([*changes.add, *changes.replace])
    table.refuse_distant([*changes.add, *changes.replace])


def missing(cluster: Cluster, route_socket: RouteSocket) -> list[str]:
    """For CHECK: each route to another node that is not there, in words."""
    wanted = routes.desired(cluster.inventory, cluster.own)
    changes = routes.difference(wanted, KernelRouteTable(route_socket).owned())
    return [
        f"the node's route to {route.dst} via {route.via} (node {route.node}) is missing"
        for route in changes.add + changes.replace
    ]
