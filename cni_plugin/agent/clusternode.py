"""This node as a part of a cluster: what the cluster's members mean for it, brought about.

The order is that of what depends on what: the inventory, the bridge's addresses, rules and paths to
the peers, and at last the network configuration, whose presence tells the runtime that pods can
come. Every step may be done again at any time, and does nothing then.

The inventory outlives the agent and the API: pods go on coming up from what was known last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from json import dumps, loads
from logging import Logger
from typing import Any, NamedTuple

from cni_plugin import cluster as clusters
from cni_plugin import conflists, netconf, resubnet, skel, upkeep
from cni_plugin.agent import fitting, mtus
from cni_plugin.cluster import Cluster
from cni_plugin.fabric import Fabric, Memory, cluster_of, exact_stamp, way_of
from cni_plugin.fields import invalid
from cni_plugin.inspection import status
from cni_plugin.kernel import observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.membership import Membership, Refusal
from cni_plugin.netconf import NetConf
from cni_plugin.node import Node as Caller
from cni_plugin.node import record_of
from cni_plugin.paths import Survey
from cni_plugin.records import NetworkRecord
from cni_plugin.sources import Announcement, Member, Readiness
from cni_plugin.spec import SUPPORTED_VERSIONS, CniError, Code, IPNetwork, Request
from ipam import config
from ipam import inventory as inventories
from ipam import peers as node_peers

READY = "PodwireReady"
_OVERLAY_BYTES = 70  # VXLAN over IPv6, the most that it takes
NO_NODE, NO_SUBNET, NOT_READY = "NodeNotFound", "NoPodCIDR", "NetworkNotReady"


class Place(NamedTuple):
    """Where a node keeps what it is told: its name in the cluster, the inventory's path, the folder
    of the runtime's network configurations, the configuration that all nodes share, and what tells
    of the cluster, by a name and as a network of one address: no pod may have that."""

    name: str
    inventory: str
    conf_dir: str
    template: Mapping[str, Any]
    servers: tuple[tuple[str, IPNetwork], ...] = ()


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
        self._quarantine = fitting.Quarantine()
        self._kept: tuple[Announcement, int] = (Announcement(), 0)
        self.refusals: tuple[Refusal, ...] = ()
        self._unreached = ""
        self._doubted: frozenset[str] = frozenset()

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
        self._quarantine.trust(known.nodes)
        for node in known.nodes:
            if node.name == self._place.name and node.pod_cidrs:
                self._keep(node.pod_cidrs, "")

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
        networks = clusters.node_networks(members.told_addresses(), local)
        taken = [(f"link {link} of node {name}", network) for link, network in networks]
        members.keep_out([*taken, *self._place.servers])
        # What this node announced of itself is its own doing, whoever wrote it there since.
        told = [
            node._replace(overlay_address=None, vtep_mac="") if node.name == name else node
            for node in members.nodes()
        ]
        nodes, unfit = fitting.fitting(told, self._backend())
        own = next((node for node in nodes if node.name == name), None)
        if own is None or not own.pod_cidrs:
            if nodes:
                self._write(nodes)
            self.refusals = (*members.refusals(), *unfit)
            return Outcome(_unusable(self.refusals, name))
        subnets, link = own.pod_cidrs, self._link_of(member, local)
        self._quarantine.bring(name, nodes, lambda some: self._try(some, subnets, link))
        self.refusals = (*members.refusals(), *unfit, *self._quarantine.refusals)
        announcement, mtu = self._kept
        self._configure(own.pod_cidrs, mtu)
        said = ["pods get addresses of " + ", ".join(map(str, own.pod_cidrs))]
        said += [each.message for each in self.refusals if each.name == name]
        said += self._doubts()
        return Outcome(Readiness(True, READY, "; ".join(said)), announcement)

    def _doubts(self) -> list[str]:
        """What is wrong without keeping pods from coming."""
        doubts = [self._unreached] if self._unreached else []
        used = conflists.in_use(self._place.conf_dir)
        if used is not None and used.path != os.path.join(self._place.conf_dir, conflists.NAME):
            why = f"the runtime uses {used.path}, which sorts before {conflists.NAME}"
            doubts.append(f"{why}; remove that file")
        for doubt in doubts:
            if doubt not in self._doubted:
                self._logger.warning("doubt", extra={"fields": {"what": doubt}})
        self._doubted = frozenset(doubts)
        return doubts

    @staticmethod
    def _link_of(member: Member, local: clusters.LocalAddresses) -> str:
        """The link that has the node's address, "" when none has."""
        return next((link for link, own in local if own.ip in member.addresses), "")

    def _backend(self) -> str:
        return netconf.parse(_request(self._render((), 0))).cross_node.backend

    def _try(
        self, nodes: Sequence[inventories.Node], subnets: tuple[IPNetwork, ...], link: str
    ) -> None:
        self._write(nodes)
        self._kept = self._keep(subnets, link)

    def _write(self, some: Sequence[inventories.Node]) -> None:
        path, nodes = self._place.inventory, tuple(some)
        inventories.write(path, nodes, self._lines)
        self._memory.written = {path: (exact_stamp(path), inventories.Inventory(path, nodes))}

    # --- the kernel -----------------------------------------------------------------------------

    def _keep(self, subnets: tuple[IPNetwork, ...], link: str) -> tuple[Announcement, int]:
        """Rules, paths, the bridge's addresses; what to announce, and the MTU of new pods (0: as
        without peers). `link` has the node's address."""
        request = _request(self._render(subnets, 0))
        conf = netconf.parse(request)
        record = record_of(conf, subnets)
        with RouteSocket() as route_socket, closing(Fabric(route_socket, self._memory)) as fabric:
            _refuse_another(fabric, record)
            changed = resubnet.resubnet(fabric, config.locate(request), subnets)
            self._former = changed.former
            for what in [*changed.done, *upkeep.keep(fabric, record)]:
                self._logger.info("set up", extra={"fields": {"what": what}})
            cluster = cluster_of(fabric, record)
            mtu = self._mtu(fabric, record, cluster, link)
            return _announcement(cluster, conf, self._survey(cluster, record, route_socket)), mtu

    def _mtu(self, fabric: Fabric, record: NetworkRecord, cluster: Cluster, link: str) -> int:
        """The MTU of new pods. A peer that there is no way to has no say: it must not cost all
        others their pods. Where no peer is left, what the overlay would leave of the node's link.
        """
        try:
            mtu = upkeep.pod_mtu(fabric, record)
        except CniError as e:
            self._unreached = clusters.waiting(cluster, fabric.route_socket)
            if not self._unreached or e.code != Code.KERNEL_REFUSED:
                raise
        else:
            self._unreached = ""
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

    # --- the network configuration --------------------------------------------------------------

    def _render(self, subnets: tuple[IPNetwork, ...], mtu: int) -> str:
        place = self._place
        return conflists.render(dict(place.template), subnets, place.inventory, place.name, mtu)

    def _configure(self, subnets: tuple[IPNetwork, ...], mtu: int) -> None:
        """Write the configuration when a pod could be served by it. Raises CniError."""
        text = self._render(subnets, mtu)
        caller = Caller(dict(os.environ), memory=self._memory)
        try:
            status(_request(text), caller)
        finally:
            caller.close()
        if conflists.place(self._place.conf_dir, text):
            fields = {"folder": self._place.conf_dir, "mtu": mtu}
            fields["subnets"] = " ".join(map(str, subnets))
            self._logger.info("network configuration written", extra={"fields": fields})


def _unusable(refusals: Sequence[Refusal], name: str) -> Readiness:
    """Why the node has no subnet for its pods."""
    for refusal in refusals:
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
    offered = [document["cniVersion"], *document.get("cniVersions", ())]
    for version in offered:
        if version not in SUPPORTED_VERSIONS:
            raise invalid("cniVersion", version, f"expected of {', '.join(SUPPORTED_VERSIONS)}")
    for plugin in document["plugins"]:
        if plugin.get("type") == conflists.TYPE:
            conf = {**plugin, "name": document["name"], "cniVersion": "1.1.0"}
            return skel.parse_request({"CNI_COMMAND": "STATUS"}, dumps(conf).encode())
    raise CniError(
        Code.INVALID_CONFIG,
        f"plugins: none of type {conflists.TYPE}",
        "name podwire in the network configuration that the agent was given",
    )


def _refuse_another(fabric: Fabric, record: NetworkRecord) -> None:
    """Raises CniError 7 for a network of another name or bridge than that of pods which still run:
    the new one would give their addresses away, or cut them off. One without pods is forgotten."""
    for former in fabric.records.all():
        renamed = former.network != record.network
        if former.nodes != record.nodes or not (renamed or former.bridge != record.bridge):
            continue
        pods = sum(mtus.of_pods(fabric.route_socket, former.network).values())
        if pods:
            field, value = ("name", record.network) if renamed else ("bridge", record.bridge)
            was = former.network if renamed else former.bridge
            raise invalid(
                field,
                value,
                f'expected "{was}" while this node has pods of that',
                f"drain the node first: {pods} pods of network {former.network} run here",
            )
        if renamed:
            fabric.records.forget(former.network)


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
