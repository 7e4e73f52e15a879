"""This node as a part of a cluster: what the cluster's members mean for it, brought about.

The order is that of what depends on what: the inventory, the bridge's addresses, rules and paths to
the peers, and at last the network configuration, whose presence tells the runtime that pods can
come. Every step may be done again at any time, and does nothing then.

The inventory outlives the agent and the API: pods go on coming up from what was known last.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from json import dumps, loads
from logging import Logger
from os import environ
from typing import Any, NamedTuple

from cni_plugin import cluster as clusters
from cni_plugin import conflists, netconf, resubnet, skel, upkeep
from cni_plugin.cluster import Cluster
from cni_plugin.fabric import Fabric, Memory, cluster_of, exact_stamp, way_of
from cni_plugin.inspection import status
from cni_plugin.kernel import observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.membership import Membership
from cni_plugin.netconf import NetConf
from cni_plugin.node import Node as Caller
from cni_plugin.node import record_of
from cni_plugin.paths import Survey
from cni_plugin.records import NetworkRecord
from cni_plugin.sources import Announcement, Readiness
from cni_plugin.spec import CniError, Code, IPNetwork, Request
from ipam import config
from ipam import inventory as inventories
from ipam import peers as node_peers

READY = "PodwireReady"
NO_NODE, NO_SUBNET, NOT_READY = "NodeNotFound", "NoPodCIDR", "NetworkNotReady"


class Place(NamedTuple):
    """Where a node keeps what it is told: its name in the cluster, the inventory's path, the folder
    of the runtime's network configurations, and the configuration that all nodes share."""

    name: str
    inventory: str
    conf_dir: str
    template: Mapping[str, Any]


class Outcome(NamedTuple):
    """Whether pods can come, and what peers need to know; None when that can't be told now."""

    readiness: Readiness
    announcement: Announcement | None = None


class ClusterNode:
    """One thread uses it, in the node's network namespace."""

    def __init__(self, place: Place, memory: Memory, logger: Logger) -> None:
        self._place = place
        self._memory = memory
        self._logger = logger
        self._former: tuple[IPNetwork, ...] = ()
        self._lines: inventories.Lines = {}

    @property
    def is_settled(self) -> bool:
        """Whether all is as it is to be; False while pods still run with former subnets."""
        return not self._former

    def resume(self) -> None:
        """Bring about what the inventory of the last time says; nothing when there is none.

        The network configuration is not written: whether it still holds only the cluster can tell.
        Raises CniError.
        """
        try:
            known = inventories.load(self._place.inventory)
        except CniError as e:
            if isinstance(e.__cause__, FileNotFoundError):
                return
            raise
        for node in known.nodes:
            if node.name == self._place.name and node.pod_cidrs:
                self._keep(node.pod_cidrs)

    def bring_about(self, members: Membership) -> Outcome:
        """Make this node what the members say it is to be. Raises nothing that is not a mistake of
        ours: what fails is said in the outcome, and what was done by then stays."""
        try:
            return self._bring_about(members)
        except (CniError, OSError) as e:
            message = str(e)
            if isinstance(e, CniError):
                message = f"{e.msg}: {e.details}" if e.details else e.msg
            return Outcome(Readiness(False, NOT_READY, message))

    def _bring_about(self, members: Membership) -> Outcome:
        name, member = self._place.name, members.own()
        if member is None:
            return Outcome(Readiness(False, NO_NODE, f"the cluster has no node {name}"))
        with RouteSocket() as route_socket:
            local = observe.local_addresses(route_socket)
        members.keep_out(clusters.node_networks(member.addresses, local))
        nodes = members.nodes()
        if nodes:
            self._write(nodes)
        own = next((node for node in nodes if node.name == name), None)
        if own is None or not own.pod_cidrs:
            return Outcome(_unusable(members, name))
        announcement, mtu = self._keep(own.pod_cidrs)
        self._configure(own.pod_cidrs, mtu)
        subnets = ", ".join(map(str, own.pod_cidrs))
        return Outcome(Readiness(True, READY, f"pods get addresses of {subnets}"), announcement)

    def _write(self, nodes: tuple[inventories.Node, ...]) -> None:
        path = self._place.inventory
        inventories.write(path, nodes, self._lines)
        self._memory.written = {path: (exact_stamp(path), inventories.Inventory(path, nodes))}

    # --- the kernel -----------------------------------------------------------------------------

    def _keep(self, subnets: tuple[IPNetwork, ...]) -> tuple[Announcement, int]:
        """Rules, paths, the bridge's addresses; what to announce, and the MTU of new pods (0: as
        without peers)."""
        request = _request(self._render(subnets, 0))
        conf = netconf.parse(request)
        record = record_of(conf, subnets)
        with RouteSocket() as route_socket, closing(Fabric(route_socket, self._memory)) as fabric:
            changed = resubnet.resubnet(fabric, config.locate(request), subnets)
            self._former = changed.former
            for what in [*changed.done, *upkeep.keep(fabric, record)]:
                self._logger.info("set up", extra={"fields": {"what": what}})
            mtu = upkeep.pod_mtu(fabric, record)
            cluster = cluster_of(fabric, record)
            return _announcement(cluster, conf, self._survey(cluster, record, route_socket)), mtu

    def _survey(
        self, cluster: Cluster, record: NetworkRecord, route_socket: RouteSocket
    ) -> Survey | None:
        """What is known of the network, as far as the overlay needs it; None without one."""
        if cluster.cross.backend == "host-gw":
            return None
        known = self._memory.survey(way_of(record)) if self._memory.survey is not None else None
        return known or clusters.survey(cluster, route_socket)

    # --- the network configuration --------------------------------------------------------------

    def _render(self, subnets: tuple[IPNetwork, ...], mtu: int) -> str:
        place = self._place
        return conflists.render(dict(place.template), subnets, place.inventory, place.name, mtu)

    def _configure(self, subnets: tuple[IPNetwork, ...], mtu: int) -> None:
        """Write the configuration when a pod could be served by it. Raises CniError."""
        text = self._render(subnets, mtu)
        caller = Caller(dict(environ), memory=self._memory)
        try:
            status(_request(text), caller)
        finally:
            caller.close()
        if conflists.place(self._place.conf_dir, text):
            fields = {"folder": self._place.conf_dir, "mtu": mtu}
            fields["subnets"] = " ".join(map(str, subnets))
            self._logger.info("network configuration written", extra={"fields": fields})


def _unusable(members: Membership, name: str) -> Readiness:
    """Why the node has no subnet for its pods."""
    for refusal in members.refusals():
        if refusal.name == name:
            return Readiness(False, refusal.reason, refusal.message)
    message = (
        f"node {name} has no podCIDR: run the controller manager with --allocate-node-cidrs and"
        " --cluster-cidr, or set spec.podCIDRs"
    )
    return Readiness(False, NO_SUBNET, message)


def _request(text: str) -> Request:
    """What a runtime would ask podwire's plugin of the list `text` for STATUS.

    Raises CniError 7 for a list without podwire.
    """
    document = loads(text)
    for plugin in document["plugins"]:
        if plugin.get("type") == conflists.TYPE:
            conf = {**plugin, "name": document["name"], "cniVersion": "1.1.0"}
            return skel.parse_request({"CNI_COMMAND": "STATUS"}, dumps(conf).encode())
    raise CniError(
        Code.INVALID_CONFIG,
        f"plugins: none of type {conflists.TYPE}",
        "name podwire in the network configuration that the agent was given",
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
        address = node_peers.underlay_address(cluster.own, version, cross)
    backend = f"{cross.backend} vni={cross.vni} port={cross.port}"
    return Announcement(mac, address, backend)
