"""This node as a part of a cluster: what the cluster's members mean for it, brought about.

The order is that of what depends on what: the inventory, the bridge's addresses, rules and paths to
the peers, and at last the network configuration, whose presence tells the runtime that pods can
come. Every step may be done again at any time, and does nothing then.

Rules:
- The inventory outlives the agent and the API: pods go on coming up from what was known last.
- Pods that run on keep their peers, whatever keeps new ones from coming.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from logging import Logger
from typing import NamedTuple

from cni_plugin import cluster as clusters
from cni_plugin import datapath, netconf
from cni_plugin.agent import fitting
from cni_plugin.agent.inventoryfile import InventoryFile
from cni_plugin.agent.nodeconf import NodeConf
from cni_plugin.agent.nodeconf import Place as Place
from cni_plugin.agent.nodekernel import Kept, NodeKernel
from cni_plugin.agent.quarantine import Quarantine
from cni_plugin.agent.templates import Shared, Templates
from cni_plugin.fabric import Memory
from cni_plugin.kernel import observe
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.membership import Membership, Refusal
from cni_plugin.node import record_of
from cni_plugin.sources import Announcement, Readiness
from cni_plugin.spec import CniError, IPNetwork
from ipam import config
from ipam.inventory import Node

READY = "PodwireReady"
NO_NODE, NO_SUBNET, NOT_READY = "NodeNotFound", "NoPodCIDR", "NetworkNotReady"


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
        self._inventory = InventoryFile(place.inventory, memory)
        self._kernel = NodeKernel(place.inventory, memory, logger)
        self._conf = NodeConf(place, memory, logger)
        self._templates = Templates(place.template, self._conf.path)
        self._fitting = fitting.Fitting()
        self._quarantine = Quarantine(place.name, memory, self._kernel.obstructed)
        self._isolated = ""  # why pods would reach no other node
        self._kept = Kept(Announcement(), 0)
        self._own: Node | None = None  # as it was known last
        self.refusals: tuple[Refusal, ...] = ()
        self._doubted: frozenset[str] = frozenset()

    @property
    def is_settled(self) -> bool:
        """Whether all is as it is to be; False while pods still run with former subnets, and while
        something could not be written, or not all peers have been tried."""
        problem = self._inventory.problem or self._conf.unplaced
        return not (self._kernel.former or problem) and self._quarantine.is_done

    @property
    def is_waiting(self) -> bool:
        """Whether a change of this node's links and routes is to be heeded at once."""
        return self._quarantine.is_waiting

    def files(self) -> object:
        """What changes when somebody else changes a file that this depends on."""
        return self._templates.stamp(), self._inventory.stamp(), self._conf.stamps()

    def forget(self) -> None:
        """Work out from nothing, the next time, what else follows from change to change."""
        self._fitting = fitting.Fitting()
        self._memory.joined.clear()
        self._memory.wanted = self._memory.verified = None
        self._memory.happened()

    def resume(self) -> None:
        """Bring about what the inventory of the last time says; nothing when there is none.

        The network configuration is not written: whether it still holds only the cluster can tell.
        Raises CniError.
        """
        nodes = tuple(sorted(self._inventory.read(), key=_name))
        self._quarantine.trust(nodes)
        self._own = self._in(nodes)
        if self._own is None or not self._own.pod_cidrs:
            self._kernel.keep_known()
            return
        subnets = self._own.pod_cidrs
        try:
            self._templates.use(
                partial(self._check, subnets),
                lambda shared, trial: self._kernel.keep(
                    self._conf.request(shared, subnets), subnets, ""
                ),
            )
        except CniError:
            self._kernel.keep_known()
            raise

    def bring_about(self, members: Membership) -> Outcome:
        """Make this node what the members say it is to be. Raises nothing that is not a mistake of
        ours: what fails is said in the outcome, and what was done by then stays."""
        try:
            return self._bring_about(members)
        except (CniError, OSError) as e:
            return Outcome(Readiness(False, NOT_READY, _in_words(e)))

    def _bring_about(self, members: Membership) -> Outcome:
        name = self._place.name
        with RouteSocket() as route_socket:
            local = observe.local_addresses(route_socket)
        addresses = members.told_addresses() or (self._own.addresses if self._own else ())
        networks = clusters.node_networks(addresses, local)
        taken = [(f"link {link} of node {name}", network) for link, network in networks]
        members.keep_out([*taken, *self._place.servers])
        told = members.nodes()
        self.refusals = members.refusals()
        own = self._in(told)
        if own is None or not own.pod_cidrs:
            self._without_pods(told)
            unknown = Readiness(False, NO_NODE, f"the cluster has no node {name}")
            return Outcome(unknown if members.own() is None else _unusable(self.refusals, name))
        self._own = own
        link = next((link for link, each in local if each.ip in own.addresses), "")
        try:
            served = self._templates.use(
                partial(self._check, own.pod_cidrs),
                lambda shared, trial: self._serve(shared, members, link, trial),
            )
        except (CniError, OSError) as e:
            self._go_on(self._quarantine.admitted(told), _in_words(e))
            raise
        return self._outcome(*served)

    def _in(self, nodes: Sequence[Node]) -> Node | None:
        """This node, of nodes sorted by their names."""
        return fitting.of_name(nodes, self._place.name)

    # --- while pods can come ---------------------------------------------------------------------

    def _check(self, subnets: tuple[IPNetwork, ...], shared: Shared) -> None:
        """What of a configuration is wrong by itself, or for the pods that run. Raises CniError."""
        request = self._conf.request(shared, subnets)
        conf = netconf.parse(request)
        config.parse(request, subnets)
        datapath.refuse_small_mtu(conf, {subnet.version for subnet in subnets})
        self._kernel.refuse_another(record_of(conf, subnets))

    def _serve(
        self, shared: Shared, members: Membership, link: str, trial: bool
    ) -> tuple[Shared, tuple[IPNetwork, ...]]:
        """All of it, with one configuration; that and what pods have addresses of. In a `trial` no
        peer is at fault for what fails. Raises CniError."""
        name = self._place.name
        self._isolated = ""
        cross = netconf.parse(self._conf.request(shared, ())).cross_node
        members.overlay_of(cross.vni)
        told, known = members.nodes(), members.refusals()
        nodes, unfit = self._fitting.fit(told, cross.backend)
        own = self._in(nodes)
        if own is None or not own.pod_cidrs:
            self.refusals = (*known, *unfit)
            self._without_pods(told)
            return shared, ()
        subnets = own.pod_cidrs
        request = self._conf.request(shared, subnets)

        def attempt(some: Sequence[Node]) -> None:
            self._inventory.write(some if cross.cidr else fitting.deciding(some, nodes))
            self._kept = self._kernel.keep(request, subnets, link)

        self._quarantine.bring(nodes, attempt, search=not trial)
        self.refusals = (*known, *unfit, *self._quarantine.refusals)
        self._isolated = self._quarantine.isolated(nodes)
        self._inventory.refuse_stale(name, subnets)
        if not self._isolated or self._conf.is_placed:
            self._conf.write(shared, subnets, self._kept.mtu)
        return shared, subnets

    def _outcome(self, shared: Shared, subnets: tuple[IPNetwork, ...]) -> Outcome:
        if not subnets:
            return Outcome(_unusable(self.refusals, self._place.name))
        said = ["pods get addresses of " + ", ".join(map(str, subnets))]
        said += [each.message for each in self.refusals if each.name == self._place.name]
        said += self._left_out()
        self._doubt(doubts := list(self._doubts(shared)))
        if self._isolated:
            message = "; ".join([self._isolated, *doubts])
            return Outcome(Readiness(False, NOT_READY, message), self._kept.announcement)
        return Outcome(Readiness(True, READY, "; ".join(said + doubts)), self._kept.announcement)

    def _left_out(self) -> Iterator[str]:
        """Which peers there is no way to from here; of many how many, and the first."""
        out = self._quarantine.refusals
        if out:
            more = f" ({len(out)} nodes are left out here, that one first)" if len(out) > 1 else ""
            yield f"{out[0].message}{more}"

    def _doubts(self, shared: Shared) -> Iterator[str]:
        """What is wrong without keeping pods from coming."""
        yield from filter(None, (self._kernel.unreached, self._kernel.unregained))
        if self._templates.problem:
            yield self._templates.problem
        for problem in filter(None, (self._inventory.problem, self._conf.unplaced)):
            yield f"what is there from before stays in force: {problem}"
        yield from self._conf.doubts(shared)

    def _doubt(self, doubts: Sequence[str]) -> None:
        """Log what is new of these."""
        for doubt in doubts:
            if doubt not in self._doubted:
                self._logger.warning("doubt", extra={"fields": {"what": doubt}})
        self._doubted = frozenset(doubts)

    # --- while none can come ---------------------------------------------------------------------

    def _without_pods(self, told: tuple[Node, ...]) -> None:
        """The cluster does not know this node, or which pods it has: as far as the pods that run on
        go, it is what it was."""
        others = [node for node in told if node.name != self._place.name]
        own = self._in(told) or self._stand_in(others)
        nodes = tuple(sorted([*others, own], key=_name) if own is not None else others)
        for backend in self._kernel.backends()[:1]:
            nodes, _ = fitting.fitting(nodes, backend)
        if not nodes:
            return
        try:
            if self._in(nodes) is None:
                self._inventory.write(nodes)  # no path can be worked out without an own end
            else:
                self._quarantine.bring(nodes, self._follow)
                self.refusals = (*self.refusals, *self._quarantine.refusals)
        except (CniError, OSError) as e:
            self._doubt([_in_words(e)])

    def _stand_in(self, others: Sequence[Node]) -> Node | None:
        """This node as it was known last, less what is another's now."""
        if self._own is None:
            return None
        taken = {address for node in others for address in node.addresses}
        addresses = tuple(each for each in self._own.addresses if each not in taken)
        theirs = [cidr for node in others for cidr in node.pod_cidrs]
        subnets = tuple(
            subnet
            for subnet in self._own.pod_cidrs
            if not any(subnet.version == cidr.version and subnet.overlaps(cidr) for cidr in theirs)
        )
        return self._own._replace(addresses=addresses, pod_cidrs=subnets) if addresses else None

    def _go_on(self, nodes: Sequence[Node], failure: str) -> None:
        """Have the peers of pods that run on; `failure` is told already."""
        try:
            self._follow(nodes)
        except (CniError, OSError) as e:
            if _in_words(e) != failure:
                self._doubt([_in_words(e)])

    def _follow(self, nodes: Sequence[Node]) -> None:
        self._inventory.write(nodes)
        self._kernel.keep_known()


def _name(node: Node) -> str:
    return node.name


def _in_words(e: Exception) -> str:
    return f"{e.msg}: {e.details}" if isinstance(e, CniError) and e.details else str(e)


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
