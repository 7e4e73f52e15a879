"""The paths to the peers, kept right by a process that stays: it remembers what it last made.

One more peer, a changed one or one less then takes messages about that peer alone, and no dump.
`resync` compares with the kernel in full, for what others did meanwhile, for a changed network and
after a failure. Whatever the memory can't tell for sure is a resync as well: another underlay or
another family that carries the overlay, a first peer behind a router, this node's own entry.
"""

from __future__ import annotations

import errno as errnos
from functools import partial

from cni_plugin import cluster as clusters
from cni_plugin import convergence, destinations, paths
from cni_plugin.cluster import Cluster
from cni_plugin.kernel import overlay, overlayentries, underlay
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.nodelock import node_lock
from cni_plugin.kernel.routetable import KernelRouteTable
from cni_plugin.kernel.underlay import Way
from cni_plugin.paths import Changes, Survey
from cni_plugin.spec import CniError
from cni_plugin.typed import NamedTuple
from ipam import peers as node_peers
from ipam import routes
from ipam.inventory import Inventory, Node
from ipam.peers import Peers
from ipam.steps import step

_FEW = 256  # peers; with more of them changed at once a comparison in full is faster
_GONE = (errnos.ESRCH, errnos.ENOENT)


class _Made(NamedTuple):
    """What was last made: for which cluster, as it was decided, and the interface index of the
    overlay's device, 0 for none."""

    cluster: Cluster
    survey: Survey
    device: int


class Peering:
    """One node's paths to its peers. One thread at a time uses it, in the node's namespace."""

    def __init__(self, route_socket: RouteSocket) -> None:
        self._socket = route_socket
        self._made: _Made | None = None
        self._nodes: dict[str, Node] = {}
        self._peers: dict[str, Peers] = {}
        self._ways: dict[str, tuple[Way, ...]] = {}  # of the plain routes
        self._plain: dict[Way, int] = {}  # how many peers' plain routes lead by each
        self._known: tuple[Node, ...] | None = None  # the inventory that was taken in last
        self._fit = False

    @property
    def survey(self) -> Survey | None:
        """What was last decided for all peers together: the device, the underlay, the offload."""
        return self._made.survey if self._made else None

    def resync(self, cluster: Cluster) -> Changes:
        """Compare with the kernel in full and make everything right; what was changed.

        Raises CniError, and everything is as it was.
        """
        self._forget()
        found = clusters.survey(cluster, self._socket)
        state = clusters.observed(cluster, found, self._socket)
        changes = Changes()
        if not paths.in_line(found, state):
            with node_lock(exclusive=True):
                state = clusters.observed(cluster, found, self._socket)
                changes = convergence.converge(found, state, self._socket)
        index = 0
        if found.device is not None:
            name, mac = found.device.vxlan.name, found.device.vxlan.mac
            device = overlay.look(self._socket, name, mac)
            index = device.ifindex if device else 0
        self._remember(_Made(cluster, found, index))
        self._fit = _is_fit(found, self._socket)
        return changes

    def pod_mtu(self) -> int | None:
        """The MTU of new pods by the paths to the peers, in bytes, 0 without peers; None while a
        path is missing, or the overlay could not work: `cluster.pod_mtu` says why."""
        if self._made is None or not self._fit:
            return None
        device = self._made.survey.device
        sizes = [underlay.path_mtu(self._socket, self._plain)]
        if device is not None:
            sizes.append(device.vxlan.mtu)
        return min((size for size in sizes if size), default=0)

    def update(self, cluster: Cluster) -> Changes:
        """Make the paths right for the peers that differ from the last time.

        Raises CniError; what was begun is then taken back, and the next call is a resync.
        """
        made = self._made
        if made is None or (made.cluster.own, made.cluster.cross) != (cluster.own, cluster.cross):
            return self.resync(cluster)
        gone, changed = self._differing(cluster)
        if len(gone) + len(changed) > _FEW or _moves_the_overlay(made, cluster.inventory):
            return self.resync(cluster)
        self._made = made._replace(cluster=cluster)
        changes = self._change(gone, changed)
        self._known = cluster.inventory.nodes
        return changes

    def _differing(self, cluster: Cluster) -> tuple[list[str], list[Node]]:
        """The names of peers that are gone, and the peers that are new or have changed."""
        if self._known is None:  # single ones came and went since
            nodes = {node.name: node for node in node_peers.others(cluster.inventory, cluster.own)}
            gone = [name for name in self._nodes if name not in nodes]
            return gone, [node for name, node in nodes.items() if self._nodes.get(name) != node]
        found = step(self._known, cluster.inventory.nodes)
        there = {node.name for node in found.new}
        return [node.name for node in found.gone if node.name not in there], list(found.new)

    def put(self, node: Node) -> Changes:
        """A peer that is new or has changed. There has to have been an `update` before.

        The whole inventory is not looked at: that no two nodes overlap is the caller's matter.
        """
        return self._single([], [] if self._nodes.get(node.name) == node else [node])

    def drop(self, name: str) -> Changes:
        """A peer that is no more."""
        return self._single([name] if name in self._nodes else [], [])

    def _single(self, gone: list[str], changed: list[Node]) -> Changes:
        self._known, made = None, self._made
        if made is not None and _moves_the_overlay(made, self._after(made, gone, changed)):
            return self._start_again(made, gone, changed)
        return self._change(gone, changed)

    # --- the memory -----------------------------------------------------------------------------

    def _forget(self) -> None:
        self._made = None
        self._nodes.clear()
        self._peers.clear()
        self._ways.clear()
        self._plain.clear()
        self._known = None
        self._fit = False

    def _remember(self, made: _Made) -> None:
        self._made = made
        by_route: dict[str, list[routes.NodeRoute]] = {}
        for route in made.survey.peers.routes:
            by_route.setdefault(route.node, []).append(route)
        whole = made.survey.peers
        for node in node_peers.others(made.cluster.inventory, made.cluster.own):
            own = tuple(by_route.get(node.name, ()))
            through = {route.via for route in own if route.overlay}
            neighbours = {via: whole.neighbours[via] for via in through}
            tunnels = {mac: whole.tunnels[mac] for mac in neighbours.values()}
            self._nodes[node.name] = node
            self._note(made, node.name, Peers(own, neighbours, tunnels))
        self._known = made.cluster.inventory.nodes

    # --- one peer -------------------------------------------------------------------------------

    def _change(self, gone: list[str], changed: list[Node]) -> Changes:
        made = self._made
        if made is None:
            raise RuntimeError("a Peering that has made nothing yet")
        if not gone and not changed:
            return Changes()
        wanted: dict[str, Peers] = {}
        for node in changed:
            decided = self._decide(made, node)
            if decided is None:  # it changes more than itself
                return self._start_again(made, gone, changed)
            wanted[node.name] = decided
        remaining = len(self._peers) - len(gone)
        if made.device and not remaining:
            return self._start_again(made, gone, changed)
        before = {name: self._peers.get(name, Peers()) for name in (*gone, *wanted)}
        after = {**dict.fromkeys(gone, Peers()), **wanted}
        try:
            with node_lock(exclusive=True):
                changes = self._apply(made, before, after)
        except CniError:
            self._forget()
            raise
        for name in gone:
            made.survey.ways.forget(destinations.reached_at(self._nodes[name]))
            self._note(made, name, Peers())
            del self._nodes[name], self._peers[name], self._ways[name]
        self._nodes.update((node.name, node) for node in changed)
        for name, peer in wanted.items():
            self._note(made, name, peer)
        return changes

    def _note(self, made: _Made, name: str, peer: Peers) -> None:
        """What was made for a peer, and by which ways its plain routes lead."""
        self._peers[name] = peer
        for way in self._ways.get(name, ()):
            self._plain[way] -= 1
            if not self._plain[way]:
                del self._plain[way]
        self._ways[name] = tuple(made.survey.ways.each(peer.plain)) if peer.plain else ()
        for way in self._ways[name]:
            self._plain[way] = self._plain.get(way, 0) + 1

    def _start_again(self, made: _Made, gone: list[str], changed: list[Node]) -> Changes:
        """A resync with these changes to the peers that are remembered."""
        return self.resync(made.cluster._replace(inventory=self._after(made, gone, changed)))

    def _after(self, made: _Made, gone: list[str], changed: list[Node]) -> Inventory:
        nodes = {name: node for name, node in self._nodes.items() if name not in gone}
        nodes.update((node.name, node) for node in changed)
        return Inventory(made.cluster.inventory.source, (made.cluster.own, *nodes.values()))

    def _decide(self, made: _Made, node: Node) -> Peers | None:
        """What this node needs for one peer; None when the rest has to be looked at, too."""
        cluster, survey = made.cluster, made.survey
        pair = Inventory(cluster.inventory.source, (cluster.own, node))
        near = survey.carrier.near if survey.carrier else None
        reach = partial(paths.reach, survey.ways)
        survey.ways.forget(destinations.reached_at(node))
        survey.ways.ask(node_peers.candidates(pair, cluster.own, cluster.cross))
        decided = node_peers.desired(pair, cluster.own, cluster.cross, reach, near, survey.version)
        if not decided.tunnels:
            return decided
        if survey.carrier is None:
            return None
        ways = survey.ways.each(decided.tunnels.values())
        if len(ways) < len(decided.tunnels):
            return None  # no way to it now: it keeps what it has, which is not known here
        width = underlay.path_mtu(self._socket, ways)
        other = any(way.link != survey.carrier.link for way in ways if survey.carrier.link)
        return None if other or 0 < width < survey.carrier.mtu else decided

    def _apply(self, made: _Made, before: dict[str, Peers], after: dict[str, Peers]) -> Changes:
        """Take the kernel from one to the other, or leave it and raise CniError."""
        old, new = _joined(before), _joined(after)
        changes = routes.difference(new.routes, old.routes)
        table = KernelRouteTable(self._socket, made.device)
        table.refuse_taken([*changes.add, *changes.replace])
        here, there = paths.entries_of(old), paths.entries_of(new)
        added = removed = 0
        try:
            if made.device:
                added = overlayentries.add(self._socket, made.device, there, here)
            table.work(changes, old.routes)
            if made.device:
                removed = overlayentries.remove(self._socket, made.device, there, here)
        except CniError:
            table.undo(changes, old.routes)
            if made.device:
                overlayentries.remove(self._socket, made.device, here, there)
                overlayentries.add(self._socket, made.device, here, there)
            raise
        words = [f"set {added} entries of the overlay"] if added else []
        words += [f"removed {removed} entries of the overlay"] if removed else []
        return Changes(changes, tuple(words))


def _moves_the_overlay(made: _Made, known: Inventory) -> bool:
    """Whether another IP version than before has to carry the overlay among these nodes, or none
    can: that concerns every peer."""
    version = made.survey.version
    try:
        return version != 0 and version != node_peers.underlay_version(known, made.cluster.cross)
    except CniError:
        return True  # a look at all of it says the same


def _is_fit(found: Survey, route_socket: RouteSocket) -> bool:
    """Whether nothing is missing on the way to the peers that keeps their paths from working."""
    try:
        paths.refuse_unfit(found, route_socket)
        paths.refuse_waiting(found)
    except CniError:
        return False
    return True


def _joined(parts: dict[str, Peers]) -> Peers:
    """Several peers' needs as one."""
    neighbours = {via: mac for part in parts.values() for via, mac in part.neighbours.items()}
    tunnels = {mac: to for part in parts.values() for mac, to in part.tunnels.items()}
    return Peers(
        tuple(route for part in parts.values() for route in part.routes), neighbours, tunnels
    )
