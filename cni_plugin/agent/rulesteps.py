"""The node's rules after a change of an inventory, at the cost of what changed.

Of all that `noderules` works out, nodes other than this one move two sets of each family: the
destinations that are never masqueraded, and the nodes' addresses. These are kept here, and the rest
is what it was. Whatever else changed is worked out anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from cni_plugin import destinations, noderules
from cni_plugin.agent.coverage import Coverage, Numbers
from cni_plugin.agent.joining import held
from cni_plugin.cluster import Cluster
from cni_plugin.fabric import Fabric, cluster_of, way_of
from cni_plugin.records import NetworkRecord
from cni_plugin.ruleset import NetworkRules, NodeRules, direct_networks, node_rules
from cni_plugin.spec import CniError
from ipam.nodes import Node
from ipam.steps import step


class RuleSteps:
    """For the threads of one agent, as `fabric.Memory.work_out`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._state: _State | None = None

    def work_out(self, fabric: Fabric, records: Sequence[NetworkRecord]) -> NodeRules | None:
        """The rules that these records want; None where this is none of ours: without an inventory,
        with several, or with one that can't be read."""
        concerned = [record for record in records if noderules.needs_nodes(record)]
        if len({way_of(record) for record in concerned}) != 1:
            return None
        with held(self._lock):
            state, self._state = self._state, None
            try:
                cluster = cluster_of(fabric, concerned[0])
            except CniError:
                if state is not None:  # what is written down is what counts from now on
                    _remember(fabric, state)
                return None
            mark = noderules.mark(fabric, records)
            if state is None or not state.take(records, mark, cluster):
                networks, complete = _networks(fabric, records, concerned[0], cluster)
                if not complete:
                    return None
                state = _State(records, networks, node_rules(networks, mark), cluster)
            self._state = state
            return state.rules

    def look_again(self, fabric: Fabric) -> list[str]:
        """After changes: work all of it out, and write it down for the day when the inventory can't
        be read. What was wrong, in words: then nothing is trusted any more.

        Tens of milliseconds at thousands of nodes, so now and then. Raises CniError.
        """
        with held(self._lock):
            state = self._state
            if state is None or state.saved:
                return []
            state.saved = True
            rules, cluster = state.rules, state.cluster
        _remember(fabric, state)
        concerned = next(filter(noderules.needs_nodes, state.records))
        networks, complete = _networks(fabric, state.records, concerned, cluster)
        anew = node_rules(networks, rules.mark)
        with held(self._lock):
            if self._state is not state or state.cluster is not cluster or not complete:
                return []  # it has moved on, and is looked at the next time
            if anew == rules:
                return []
            self._state, fabric.memory.wanted = None, None
            return ["what was known of the rules was not what the inventory says"]


def _networks(
    fabric: Fabric, records: Sequence[NetworkRecord], concerned: NetworkRecord, cluster: Cluster
) -> tuple[list[NetworkRules], bool]:
    """As `noderules.networks_of`, of this reading of their inventory: the file may be another one
    by now."""
    way = way_of(concerned)
    fabric.given[way] = cluster
    try:
        return noderules.networks_of(fabric, records)
    finally:
        del fabric.given[way]


def _remember(fabric: Fabric, state: _State) -> None:
    for record in filter(noderules.needs_nodes, state.records):
        noderules.remember(fabric, record, state.cluster.inventory.nodes)


class _State:
    """Rules, what they were made of, and their sets as they grow and shrink. `saved` is whether
    the nodes are written down, as they are by `noderules.networks_of`."""

    def __init__(
        self,
        records: Sequence[NetworkRecord],
        networks: Sequence[NetworkRules],
        rules: NodeRules,
        cluster: Cluster,
    ) -> None:
        """`networks` are those of the records, in their order."""
        self.records = tuple(records)
        self.rules = rules
        self.cluster = cluster
        self.saved = True
        self._direct: dict[int, Coverage] = {}
        self._times: dict[int, int] = {}  # how many networks take an inventory's destinations
        self._nodes: dict[int, Numbers] = {}
        overlays = [each for each in networks if each.overlay_port]
        self._overlays = len(overlays)
        for version in (4, 6):
            self._direct[version] = Coverage(direct_networks(version, networks))
            self._times[version] = sum(
                record.masquerade and any(s.version == version for s in record.subnets)
                for record in filter(noderules.needs_nodes, records)
            )
            addresses = (a for each in overlays for a in each.nodes)
            self._nodes[version] = Numbers(int(a) for a in addresses if a.version == version)

    def take(self, records: Sequence[NetworkRecord], mark: int, cluster: Cluster) -> bool:
        """Take in what the inventory says now; False when more than its sets are others, and
        nothing of this holds any more."""
        if self.records != tuple(records) or self.rules.mark != mark:
            return False
        former, own = self.cluster, cluster.own
        change = step(former.inventory.nodes, cluster.inventory.nodes)
        if former.own != own or change.concerns(own.name):
            return False
        if not (change.gone or change.new):
            return True
        self.cluster, self.saved = cluster, False
        for node in change.gone:
            self._leave(node)
        for node in change.new:
            self._come(node)
        return self._renew()

    def _come(self, node: Node) -> None:
        for network in destinations.networks_of(node):
            for _ in range(self._times[network.version]):
                self._direct[network.version].add(network)
        for address in destinations.reached_at(node):
            for _ in range(self._overlays):
                self._nodes[address.version].add(int(address))

    def _leave(self, node: Node) -> None:
        for network in destinations.networks_of(node):
            for _ in range(self._times[network.version]):
                self._direct[network.version].remove(network)
        for address in destinations.reached_at(node):
            for _ in range(self._overlays):
                self._nodes[address.version].remove(int(address))

    def _renew(self) -> bool:
        """Put the sets into the rules; False where a family comes or goes with them."""
        nodes = {version: numbers.all() for version, numbers in self._nodes.items()}
        before = {family.version: bool(family.nodes) for family in self.rules.families}
        if any(before.get(version, False) != bool(found) for version, found in nodes.items()):
            return False
        families = tuple(
            family._replace(
                direct=self._direct[family.version].ranges(), nodes=nodes[family.version]
            )
            for family in self.rules.families
        )
        self.rules = self.rules._replace(families=families)
        return True
