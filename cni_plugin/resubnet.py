"""A node whose own pod subnets are others now, as when it was deleted and registered anew.

What podwire made of the former ones has to go, or the next ADD meets it: the bridge carries their
gateways, the record names them, addresses are reserved for pods that are long gone.

Rules:
- A former subnet lasts as long as a pod has an address of it: the bridge carries its gateway and
  the rules know it, so that such a pod goes on reaching this node and the world. It lasts no longer
  once another node has it: packets to it go there.
- The new gateways come before the former ones go, so that an ADD meets no bridge without.
- Only what podwire has set is taken off: gateways of subnets that the record names, of a bridge
  that podwire has made. One that was there before keeps what it carries.
- Who can't be told to be gone is there: pods of another plugin, an ADD that has just begun.
- Every step may be done again. Nothing is to be done, and that is found out at once, where the
  record names no other subnets than the node has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from errno import EADDRNOTAVAIL, EEXIST
from ipaddress import ip_interface
from time import time
from typing import NamedTuple

from cni_plugin import names, upkeep
from cni_plugin.drift import LinkState
from cni_plugin.fabric import Fabric, cluster_of
from cni_plugin.kernel import bridge, device, messages, observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.nodelock import node_lock
from cni_plugin.kernel.sysctl import enable_ipv6
from cni_plugin.records import NetworkRecord
from cni_plugin.spec import IPAddress, IPInterface, IPNetwork
from ipam import host_local, ranges, store
from ipam.config import Place
from ipam.index import Reservation

_UNDERWAY_S = 60  # an ADD reserves first, and has made the pod's link seconds later


class Outcome(NamedTuple):
    """What was done, in words; `former` are the subnets that last for now: call again later."""

    done: tuple[str, ...] = ()
    former: tuple[IPNetwork, ...] = ()


def resubnet(fabric: Fabric, place: Place, subnets: Collection[IPNetwork]) -> Outcome:
    """Make way for `subnets`, this node's own now, on the network whose reservations are at
    `place`, before its configuration names them. Call in the node's network namespace.

    Raises CniError: as for the inventory that the network's record names, 5, 11 and 110 for locks
    and reservations, 104 when the kernel refuses.
    """
    record = fabric.records.of(place.network)
    former = [] if record is None else [s for s in record.subnets if s not in subnets]
    if record is None or not former:
        return Outcome()
    pods = _Pods(fabric.route_socket, record, host_local.reservations(place))
    lasting = [subnet for subnet in former if pods.any_in(subnet, subnets)]
    elsewhere = _elsewhere(fabric, record, lasting)
    done = [f"{subnet} is another node's: its pods here have lost it" for subnet in elsewhere]
    lasting = [subnet for subnet in lasting if subnet not in elsewhere]
    gone = [r for r in pods.gone if any(_counts(r.address, s, subnets) for s in former)]
    done += _free(place, gone)
    if record.bridge:
        over = [subnet for subnet in former if subnet not in lasting]
        with node_lock(exclusive=True):
            done += _readdress(fabric.route_socket, record.bridge, subnets, former, over)
    kept = tuple(s for s in record.subnets if s not in former or s in lasting)
    if kept != record.subnets:
        fabric.records.restore(record._replace(subnets=kept))
        done += upkeep.keep_rules(fabric)
    return Outcome(tuple(done), tuple(lasting))


# --- who is still there -----------------------------------------------------------------------


class _Pods:
    """The pods of a network here, by their reservations; `gone` are reservations without a pod."""

    def __init__(
        self, route_socket: RouteSocket, record: NetworkRecord, reservations: Sequence[Reservation]
    ) -> None:
        self._route_socket = route_socket
        self._network = record.network
        link = observe.link(route_socket, record.bridge) if record.bridge else None
        ports = observe.ports(route_socket, link.ifindex) if link else []
        self._routed = not record.bridge
        self._others = any(_is_others(port) for port in ports)
        self._begun = time() - _UNDERWAY_S
        self.gone = [each for each in reservations if not self._is_there(each)]
        self._here = [each for each in reservations if each not in self.gone]
        self._nameless = self._has_nameless(ports, reservations)

    def any_in(self, subnet: IPNetwork, own: Collection[IPNetwork]) -> bool:
        """Whether a pod has an address of a former subnet, as far as can be told."""
        return self._nameless or any(_counts(each.address, subnet, own) for each in self._here)

    def _is_there(self, held: Reservation) -> bool:
        name = names.host_veth_name(self._network, held.attachment)
        if device.exists(self._route_socket, name) or self._others or held.since > self._begun:
            return True
        return self._routed and self._is_routed(held.address)

    def _is_routed(self, address: IPAddress) -> bool:
        """Whether the node's route to an address leads to a veth: another plugin's, of mode ptp."""
        way = observe.way_to(self._route_socket, address)
        link = observe.link(self._route_socket, way) if way else None
        return link is not None and link.kind == "veth"

    def _has_nameless(self, ports: list[LinkState], reservations: Sequence[Reservation]) -> bool:
        """Whether a pod of the network has no reservation that tells its address."""
        known = {names.host_veth_name(self._network, each.attachment) for each in reservations}
        prefix = names.alias_prefix(self._network)
        return any(port.alias.startswith(prefix) and port.name not in known for port in ports)


def _is_others(port: LinkState) -> bool:
    return port.kind == "veth" and not port.alias.startswith("podwire ")


def _counts(address: IPAddress, subnet: IPNetwork, own: Collection[IPNetwork]) -> bool:
    """Whether an address is of the former subnet, and not of an own one inside that."""
    return address in subnet and not any(address in new and _within(new, subnet) for new in own)


def _within(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.network_address in outer and inner.prefixlen >= outer.prefixlen


def _elsewhere(
    fabric: Fabric, record: NetworkRecord, subnets: Collection[IPNetwork]
) -> list[IPNetwork]:
    """Those of the subnets that overlap another node's."""
    if not subnets or not record.nodes:
        return []
    cluster = cluster_of(fabric, record)
    theirs = [c for n in cluster.inventory.nodes if n.name != cluster.own.name for c in n.pod_cidrs]
    return [s for s in subnets if any(_within(s, c) or _within(c, s) for c in theirs)]


# --- what changes -----------------------------------------------------------------------------


def _free(place: Place, gone: Collection[Reservation]) -> list[str]:
    if not gone:
        return []
    with store.existing(place.data_dir, place.network) as directory:
        if directory is None:
            return []
        freed = [each for each in gone if directory.release(each.address, each.attachment)]
    return [f"freed {len(freed)} addresses of pods that are gone"] if freed else []


def _readdress(
    route_socket: RouteSocket,
    name: str,
    subnets: Collection[IPNetwork],
    former: Collection[IPNetwork],
    over: Collection[IPNetwork],
) -> list[str]:
    """The gateways of `subnets` onto a bridge that carries one of a former subnet, and those of
    `over` off it. Call with the node's lock held exclusively."""
    link = observe.link(route_socket, name)
    if link is None or link.alias not in (bridge.ALIAS_MADE, bridge.ALIAS_ADOPTED):
        return []
    present = observe.addresses(route_socket, link.ifindex)
    if not any(gateway_of(subnet) in present for subnet in former):
        return []
    done = []
    for gateway in map(gateway_of, subnets):
        if gateway not in present:
            if gateway.version == 6:
                enable_ipv6(link.name)
            add = messages.add_address(gateway, link.ifindex, link.name, dad=False)
            route_socket.batch([add], ignore=(EEXIST,))
            done.append(f"gave {name} the address {gateway}")
    for gateway in map(gateway_of, over):
        if gateway in present and link.alias == bridge.ALIAS_MADE:
            delete = messages.delete_address(gateway, link.ifindex, link.name)
            route_socket.batch([delete], ignore=(EADDRNOTAVAIL,))
            done.append(f"took the address {gateway} off {name}")
    return done


def gateway_of(subnet: IPNetwork) -> IPInterface:
    """What an ADD puts on the bridge for a subnet without a gateway of its own."""
    return ip_interface(f"{ranges.first(subnet)}/{subnet.prefixlen}")
