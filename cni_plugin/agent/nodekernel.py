"""What the members of a cluster mean for this node's kernel: rules, paths, the bridge's addresses.

Every step may be done again at any time, and does nothing then.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from logging import Logger
from typing import NamedTuple

from cni_plugin import cluster as clusters
from cni_plugin import netconf, resubnet, upkeep
from cni_plugin.agent import bridgecare, mtus
from cni_plugin.cluster import Cluster
from cni_plugin.datapath import ROUTE_PROTOCOL
from cni_plugin.drift import MAIN_TABLE
from cni_plugin.fabric import Fabric, Memory, cluster_of, way_of
from cni_plugin.fields import invalid
from cni_plugin.kernel import messages, observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.netconf import NetConf
from cni_plugin.node import record_of
from cni_plugin.paths import Survey
from cni_plugin.records import NetworkRecord
from cni_plugin.sources import Announcement
from cni_plugin.spec import CniError, Code, IPInterface, IPNetwork, Request
from ipam import config, routes
from ipam import peers as node_peers
from ipam.inventory import Node

_OVERLAY_BYTES = 70  # VXLAN over IPv6, the most that it takes


class Kept(NamedTuple):
    """What peers need to know, and the MTU of new pods in bytes (0: as without peers)."""

    announcement: Announcement
    mtu: int


class NodeKernel:
    """One thread uses it, in the node's network namespace. `inventory` is the path of the file."""

    def __init__(self, inventory: str, memory: Memory, logger: Logger) -> None:
        self._inventory = inventory
        self._memory = memory
        self._logger = logger
        self.former: tuple[IPNetwork, ...] = ()  # subnets of before that pods still have
        self.unregained = ""  # why the bridge is not as it is to be
        self.unreached = ""  # peers that there is no way to now, in words

    def keep(self, request: Request, subnets: tuple[IPNetwork, ...], link: str) -> Kept:
        """Make it what the inventory says, for pods of these subnets; `request` is the network's
        STATUS, and `link` has the node's address ("" when none has). Raises CniError."""
        conf = netconf.parse(request)
        record = record_of(conf, subnets)
        with RouteSocket() as route_socket, closing(Fabric(route_socket, self._memory)) as fabric:
            for former in _others(fabric, record):
                _refuse_with_pods(route_socket, record, former)
                if former.network != record.network:
                    fabric.records.forget(former.network)
            changed = resubnet.resubnet(fabric, config.locate(request), subnets)
            self.former = changed.former
            self._tell(list(changed.done))
            gateways = config.parse(request, subnets).gateways
            gateways += tuple(map(resubnet.gateway_of, self.former))
            self._regain(route_socket, conf, gateways)
            self._tell(upkeep.keep(fabric, record))
            cluster = cluster_of(fabric, record)
            mtu = self._mtu(fabric, record, cluster, link)
            found = self._survey(cluster, record, route_socket)
            return Kept(_announcement(cluster, conf, found), mtu)

    def keep_known(self) -> None:
        """The same for the networks that this node has had pods of, as they were. Raises CniError.

        For pods that run on while none can come: the cluster or the configuration says nothing of
        use of this node, and the peers come and go all the same.
        """
        with RouteSocket() as route_socket, closing(Fabric(route_socket, self._memory)) as fabric:
            for record in fabric.records.all():
                if record.nodes == self._inventory:
                    self._tell(upkeep.keep(fabric, record))

    def backends(self) -> tuple[str, ...]:
        """How the networks that it has had pods of reach the peers."""
        with RouteSocket() as route_socket, closing(Fabric(route_socket, self._memory)) as fabric:
            records = [each for each in fabric.records.all() if each.nodes == self._inventory]
            return tuple(record.cross_node.backend for record in records)

    def refuse_another(self, record: NetworkRecord) -> None:
        """Raises CniError 7 for a network of another name or bridge than that of pods which still
        run: the new one would give their addresses away, or cut them off."""
        with RouteSocket() as route_socket, closing(Fabric(route_socket, self._memory)) as fabric:
            for former in _others(fabric, record):
                _refuse_with_pods(route_socket, record, former)

    def obstructed(self, own: Node, nodes: Sequence[Node]) -> dict[str, str]:
        """Which nodes can't be peers of this one, `own`, since somebody else has routes to their
        pods here, and why, by their names: one look for all of them. Raises CniError."""
        versions = routes.families(own)
        wanted = {
            cidr: node.name
            for node in nodes
            if node.name != own.name
            for cidr in node.pod_cidrs
            if cidr.version in versions
        }
        with RouteSocket() as route_socket:
            taken = _foreign_routes(route_socket, {cidr.version for cidr in wanted})
        return {
            name: f"this node already has another route to {cidr} (see `ip route show {cidr}`):"
            f" remove that route, or give node {name} another podCIDR"
            for cidr, name in wanted.items()
            if cidr in taken
        }

    def _regain(
        self, route_socket: RouteSocket, conf: NetConf, gateways: tuple[IPInterface, ...]
    ) -> None:
        """The bridge; what fails costs neither the peers nor new pods anything, whose ADD looks."""
        try:
            self._tell(bridgecare.regain(route_socket, conf, gateways))
            self.unregained = ""
        except (CniError, OSError) as e:
            self.unregained = f"bridge {conf.bridge} is not as it was: {e}"

    def _tell(self, done: list[str]) -> None:
        for what in done:
            self._logger.info("set up", extra={"fields": {"what": what}})

    def _mtu(self, fabric: Fabric, record: NetworkRecord, cluster: Cluster, link: str) -> int:
        """The MTU of new pods. A peer that there is no way to has no say: it must not cost all
        others their pods. Where no peer is left, what the overlay would leave of the node's link.
        """
        try:
            mtu = upkeep.pod_mtu(fabric, record)
        except CniError as e:
            self.unreached = clusters.waiting(cluster, fabric.route_socket)
            if not self.unreached or e.code != Code.KERNEL_REFUSED:
                raise
        else:
            self.unreached = ""
            return mtu
        mtu = clusters.mtus(cluster, fabric.route_socket).pods
        own = observe.link(fabric.route_socket, link) if link and not mtu else None
        return own.mtu - _OVERLAY_BYTES if own is not None else mtu

    def _survey(
        self, cluster: Cluster, record: NetworkRecord, route_socket: RouteSocket
    ) -> Survey | None:
        """What is known of the network, as far as the overlay needs it; None without one."""
        if cluster.cross.backend == "host-gw":
            return None
        known = self._memory.survey(way_of(record)) if self._memory.survey is not None else None
        return known or clusters.survey(cluster, route_socket)


def _foreign_routes(route_socket: RouteSocket, versions: set[int]) -> set[IPNetwork]:
    """Where others' routes of the main table lead to, without ones of ours beside them."""
    found: set[IPNetwork | None] = set()
    ours: set[IPNetwork | None] = {None}
    for version in versions:
        for entry in route_socket.dump(messages.dump_routes(version, table=MAIN_TABLE)):
            which = ours if entry["proto"] == ROUTE_PROTOCOL else found
            which.add(observe.network_of(entry))
    return {network for network in found - ours if network is not None}


def _others(fabric: Fabric, record: NetworkRecord) -> list[NetworkRecord]:
    """The records that this one is to take the place of, with another name or bridge."""
    was = record.network, record.bridge
    found = [former for former in fabric.records.all() if former.nodes == record.nodes]
    return [former for former in found if (former.network, former.bridge) != was]


def _refuse_with_pods(
    route_socket: RouteSocket, record: NetworkRecord, former: NetworkRecord
) -> None:
    pods = sum(mtus.of_pods(route_socket, former.network).values())
    if not pods:
        return
    field, value, was = "bridge", record.bridge, former.bridge
    if former.network != record.network:
        field, value, was = "name", record.network, former.network
    raise invalid(
        field,
        value,
        f'expected "{was}" while this node has pods of that',
        f"drain the node first: {pods} pods of network {former.network} run here",
    )


def _announcement(cluster: Cluster, conf: NetConf, found: Survey | None) -> Announcement:
    cross = conf.cross_node
    if found is None:
        return Announcement(backend=cross.backend)
    mac = node_peers.vtep_mac(cross.vni, cluster.own.name)
    if found.device is not None:
        address = found.device.vxlan.local
    else:
        version = node_peers.underlay_version(cluster.inventory, cross)
        address = node_peers.underlay_address(
            cluster.own._replace(overlay_address=None), version, cross
        )
    backend = f"{cross.backend} vni={cross.vni} port={cross.port}"
    return Announcement(mac, address, backend)
