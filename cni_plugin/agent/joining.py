"""This node's place in an inventory that the agent itself has written: after a change it is found
again at the cost of what changed.

Whatever is not plain (another own node, an overlap) is `cluster.join`'s, which looks at all of it
and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

from cni_plugin import cluster as clusters
from cni_plugin import waiting
from cni_plugin.cluster import Cluster
from cni_plugin.fabric import Way, way_of
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.records import NetworkRecord
from cni_plugin.spec import CniError
from ipam import overlaps
from ipam.claims import Claims
from ipam.inventory import Inventory
from ipam.steps import step


class _Joined(NamedTuple):
    way: Way
    cluster: Cluster
    claims: Claims


@contextmanager
def held(lock: Lock) -> Iterator[None]:
    """With the lock, for which a call may have to wait."""
    if not lock.acquire(blocking=False):
        waiting.begins()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Joining:
    """For the threads of one agent, as `fabric.Memory.join`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: _Joined | None = None
        self._looked_at: Inventory | None = None  # all of it

    def join(
        self, route_socket: RouteSocket, record: NetworkRecord, inventory: Inventory
    ) -> Cluster:
        """As `cluster.join` of the record's inventory, which says this. Raises CniError."""
        with held(self._lock):
            known, self._known = self._known, None
            way = way_of(record)
            if known is not None and known.way == way and record.node_name:
                cluster = _again(known, inventory, route_socket)
                if cluster is not None:
                    self._known = known._replace(cluster=cluster)
                    return cluster
            path, name, cross = record.nodes, record.node_name, record.cross_node
            cluster = clusters.join(path, name, cross, route_socket, inventory)
            self._known = _Joined(way, cluster, Claims(inventory.nodes))
            self._looked_at = inventory
            return cluster

    def look_again(self, route_socket: RouteSocket) -> list[str]:
        """After changes: look at all of the inventory. What was wrong, in words: then nothing is
        trusted any more. Now and then, as it takes tens of milliseconds at thousands of nodes."""
        with held(self._lock):
            known = self._known
            if known is None or self._looked_at is known.cluster.inventory:
                return []
        try:
            local = clusters.local_networks(known.cluster.own, route_socket)
            overlaps.refuse_overlaps(known.cluster.inventory, known.cluster.own, local)
        except CniError as e:
            with held(self._lock):
                self._known = None
            return [f"an overlap had been missed: {e.msg}"]
        self._looked_at = known.cluster.inventory
        return []


def _again(known: _Joined, inventory: Inventory, route_socket: RouteSocket) -> Cluster | None:
    """The same after a change; None where all of it has to be looked at."""
    own = known.cluster.own
    change = step(known.cluster.inventory.nodes, inventory.nodes)
    if change.concerns(own.name) or not known.claims.take(change):
        return None
    networks = clusters.local_networks(own, route_socket)
    if any(known.claims.meets(network) for _, network in networks):
        return None
    return known.cluster._replace(inventory=inventory, surveys=[])
