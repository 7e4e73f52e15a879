"""The network of several nodes: the inventory, this node's place in it, the paths to the others.

Orders what `ipam.inventory`, `ipam.overlaps` and `paths` decide and do. Absent an inventory there
is no cluster, and nothing here is called.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from cni_plugin import convergence, paths
from cni_plugin.crossnode import CrossNode
from cni_plugin.kernel import observe, overlay, overlayentries, overlayport
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.nodelock import node_lock
from cni_plugin.kernel.routetable import KernelRouteTable
from cni_plugin.paths import Changes, State, Survey
from cni_plugin.spec import CniError, Code, IPAddress, IPInterface, IPNetwork
from cni_plugin.typed import NamedTuple
from ipam import inventory as inventories
from ipam import overlaps, routes
from ipam import peers as node_peers
from ipam.inventory import Inventory, Node

LocalAddresses = tuple[tuple[str, IPInterface], ...]  # with the links' names


class Cluster(NamedTuple):
    """All nodes, which of them this one is, and how the others' pods are to be reached.

    `surveys` holds what `pod_mtu` found out of the network, for the `sync` of the same call.
    """

    inventory: Inventory
    own: Node
    cross: CrossNode
    surveys: list[Survey]


class Mtus(NamedTuple):
    """Sizes in bytes, 0 for what is not there: `underlay` is the least MTU of the paths to the
    peers, by `link` as far as it is one; `overlay` what its device should have and `device` what
    it has; `pods` what a new pod gets."""

    link: str
    underlay: int
    overlay: int
    device: int
    pods: int


# --- which nodes there are ----------------------------------------------------------------------


def join(
    path: str,
    node_name: str,
    cross: CrossNode,
    route_socket: RouteSocket,
    known: Inventory | None = None,
) -> Cluster:
    """Read the inventory at `path`, find this node in it, refuse subnets that overlap.

    `known` is what the file holds, if the caller knows it. Raises CniError: 5 and 7 for the file,
    106 for an overlap.
    """
    known = known or inventories.load(path)
    local: LocalAddresses = ()
    named = [node for node in known.nodes if node.name == node_name]
    if not (named and named[0].networks):  # then the inventory says all; a dump can be long
        local = observe.local_addresses(route_socket)
    found = identify(known, node_name, local, cross)
    refuse_overlaps(found, local)
    return found


def local_networks(own: Node, route_socket: RouteSocket) -> list[tuple[str, IPNetwork]]:
    """The networks of the links that have a node's addresses, as `join` looks at them."""
    if own.networks:
        return []
    return node_networks(own.addresses, observe.local_addresses(route_socket))


def identify(
    known: Inventory, node_name: str, local: LocalAddresses, cross: CrossNode | None = None
) -> Cluster:
    """Find this node, which has the addresses `local`; subnets may overlap, to be looked at.

    Raises CniError 104 where it would be known by its addresses and its links are missing.
    """
    try:
        own = inventories.find_self(
            known, node_name, os.uname().nodename, lambda: [address.ip for _, address in local]
        )
    except CniError as e:
        if node_name or _is_connected(known, local):
            raise
        raise CniError(
            Code.KERNEL_REFUSED,
            f"no link of this machine has an address now, so which node of {known.source} it is"
            " can't be told",
            'bring the link up; with "nodeName" in the network configuration this needs no address',
        ) from e
    return Cluster(known, own, cross or CrossNode(), [])


def _is_connected(known: Inventory, local: LocalAddresses) -> bool:
    """Whether the machine has an address that others might know it by: none of its pods' networks,
    of which bridges and the overlay carry some."""
    cidrs = [cidr for node in known.nodes for cidr in node.pod_cidrs]
    return any(
        not any(address.ip in cidr for cidr in cidrs)
        for _, address in local
        if not address.ip.is_loopback and not address.ip.is_link_local
    )


def refuse_overlaps(cluster: Cluster, local: LocalAddresses) -> None:
    """Raises CniError 106 when a pod subnet overlaps another one, or the node's own network."""
    networks = node_networks(cluster.own.addresses, local)
    overlaps.refuse_overlaps(cluster.inventory, cluster.own, networks)


def refuse_foreign(cluster: Cluster, subnet: IPNetwork) -> None:
    """Raises CniError 106 for a range that is another node's, 7 for one that is nobody's."""
    overlaps.refuse_foreign_subnet(cluster.inventory, cluster.own, subnet)


def node_networks(own: Collection[IPAddress], local: LocalAddresses) -> list[tuple[str, IPNetwork]]:
    """The networks that a node's own addresses lie in, as its links say, with the links' names: the
    node network.

    Other links don't count: the pods' bridge carries the pod subnet by right.
    """
    return [(link, address.network) for link, address in local if address.ip in own]


# --- the paths to their pods --------------------------------------------------------------------


def survey(cluster: Cluster, route_socket: RouteSocket) -> Survey:
    """The path to each peer as it should be, as the network is now; raises CniError 7."""
    return paths.survey(cluster.inventory, cluster.own, cluster.cross, route_socket)


def observed(cluster: Cluster, found: Survey, route_socket: RouteSocket) -> State:
    """The paths as the kernel has them; raises CniError 103."""
    mac = node_peers.vtep(cluster.cross.vni, cluster.own)
    return paths.observe(found, cluster.cross, mac, route_socket)


def sync(cluster: Cluster, route_socket: RouteSocket, patient: bool = False) -> Changes:
    """Bring the routes to the other nodes and the overlay in line with the inventory, all of it or
    nothing; what was changed.

    The common case, nothing to do, takes no lock. Raises CniError 104 when all is done that can be
    while this node has no way to some peer, unless it is `patient`.
    """
    found = cluster.surveys.pop() if cluster.surveys else survey(cluster, route_socket)
    changes = Changes()
    if not paths.in_line(found, observed(cluster, found, route_socket)):
        with node_lock(exclusive=True):
            state = observed(cluster, found, route_socket)
            changes = convergence.converge(found, state, route_socket)
    if not patient:
        paths.refuse_waiting(found)
    return changes


def pod_mtu(cluster: Cluster, route_socket: RouteSocket) -> int:
    """The MTU of new pods by the paths to the peers, in bytes; 0 when there are none.

    Raises CniError as `paths.refuse_unfit` does, and as `refuse_waiting`: the size of a path that
    is not there now can't be told, and the pod would keep a wrong one.
    """
    found = survey(cluster, route_socket)
    paths.refuse_unfit(found, route_socket)
    paths.refuse_waiting(found)
    cluster.surveys[:] = [found]
    return _pod_mtu(found, route_socket)


def _pod_mtu(found: Survey, route_socket: RouteSocket) -> int:
    sizes = [paths.plain_mtu(found, route_socket)]
    if found.device is not None:
        sizes.append(found.device.vxlan.mtu)
    return min((size for size in sizes if size), default=0)


def mtus(cluster: Cluster, route_socket: RouteSocket, whole: bool = False) -> Mtus:
    """The sizes to look at; changes nothing.

    With `whole` those of a network that is: raises CniError as `pod_mtu` does.
    """
    found = survey(cluster, route_socket)
    if whole:
        paths.refuse_unfit(found, route_socket)
        paths.refuse_waiting(found)
    pods = _pod_mtu(found, route_socket)
    if found.device is None or found.carrier is None:
        return Mtus("", paths.plain_mtu(found, route_socket), 0, 0, pods)
    device = observed(cluster, found, route_socket).device
    return Mtus(
        found.carrier.name,
        found.carrier.mtu,
        found.device.vxlan.mtu,
        device.vxlan.mtu if device else 0,
        pods,
    )


def waiting(cluster: Cluster, route_socket: RouteSocket) -> str:
    """Which peers have to wait for a way to them, in words; "" when none has."""
    try:
        paths.refuse_waiting(survey(cluster, route_socket))
    except CniError as e:
        return e.msg
    return ""


def refuse_obstructed(cluster: Cluster, route_socket: RouteSocket, patient: bool = False) -> None:
    """For STATUS: what would keep `sync` from making what is missing. A `patient` one lets peers
    wait that there is no way to now.

    Raises CniError 103 for another program's route, link or socket in the way, 104 for a node whose
    address is not on a link of this node, 7 for an underlay that is not there.
    """
    found = survey(cluster, route_socket)
    state = observed(cluster, found, route_socket)
    paths.refuse_unfit(found, route_socket)
    if not patient:
        paths.refuse_waiting(found)
    wanted = found.possible if patient else found.peers.routes
    changes = routes.difference(wanted, state.routes)
    table = KernelRouteTable(route_socket)
    table.refuse_obstructed([*changes.add, *changes.replace])
    if found.device is not None and state.device is None:
        overlayport.refuse_taken(route_socket, found.device.vxlan, overlay.ALIAS)
    table.refuse_distant([*changes.add, *changes.replace])


def missing(cluster: Cluster, route_socket: RouteSocket) -> list[str]:
    """For CHECK: what is missing on the way to other nodes, in words."""
    found = survey(cluster, route_socket)
    state = observed(cluster, found, route_socket)
    changes = routes.difference(found.peers.routes, state.routes)
    words = [
        f"the node's route to {route.dst} via {route.via} (node {route.node}) is missing"
        for route in changes.add + changes.replace
    ]
    if found.device is None:
        return words
    name = found.device.vxlan.name
    if state.device is None:
        return [f"the overlay's device {name} does not exist", *words]
    if not overlay.same(found.device, state.device):
        words.append(f"the overlay's device {name} is not as it should be")
    lost = overlayentries.lacking(found.entries, state.entries)
    if lost:
        words.append(f"{name} lacks {lost} neighbours and forwarding entries")
    return words


def remove_overlay(route_socket: RouteSocket) -> list[str]:
    """For `podwire uninstall`: remove our overlay devices and our routes to other nodes; what was
    removed, in words."""
    with node_lock(exclusive=True):
        devices = overlay.strays(route_socket)
        for name in devices:
            overlay.remove(route_socket, name)
        table = KernelRouteTable(route_socket)
        left = table.owned()
        table.work(routes.difference((), left), left)
    return [f"link {name}" for name in devices] + [
        f"route to {route.dst} via {route.via}" for route in left
    ]
