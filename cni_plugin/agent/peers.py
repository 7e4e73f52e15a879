"""The paths to the peers, kept by the upkeep's thread, and by an ADD that meets a change first.

Both come here, one after the other, so that what was last made is known (`peering`), and a change
of one peer costs what one peer costs. What the kernel then tells of our own changes is passed
over (`watch`).
"""

from __future__ import annotations

from threading import Lock

from cni_plugin import waiting
from cni_plugin.fabric import Fabric, Memory, Way, cluster_of, way_of
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.watch import RouteWatch
from cni_plugin.paths import Changes, Survey
from cni_plugin.peering import Peering
from cni_plugin.records import NetworkRecord


class SharedPeers:
    """For the threads of one agent; made and used in the node's namespace."""

    def __init__(self, memory: Memory, watch: RouteWatch) -> None:
        self._memory = memory
        self._watch = watch
        self._lock = Lock()
        self._way: Way = ()
        self._epoch = -1
        self._socket: RouteSocket | None = None
        self._peering: Peering | None = None

    def close(self) -> None:
        with self._lock:
            self._forget()

    @property
    def offload(self) -> str:
        """Why the overlay does not leave checksums to the network card; "" when it does."""
        survey = self._peering.survey if self._peering is not None else None
        return survey.offload.reason if survey is not None else ""

    def survey(self, way: Way) -> Survey | None:
        """What the last `keep` found out of the network for a way; None if it was another's."""
        peering = self._peering
        return peering.survey if peering is not None and way == self._way else None

    def keep(self, fabric: Fabric, record: NetworkRecord, whole: bool = False) -> Changes:
        """Make the paths what the record's inventory says: what changed since the last time, or,
        after a change of links and routes and when asked for the `whole`, compared with the kernel.

        Raises CniError.
        """
        if not self._lock.acquire(blocking=False):
            waiting.begins()
            self._lock.acquire()
        try:
            return self._keep(fabric, record, whole)
        except BaseException:
            self._forget()  # whatever is still on its way to the socket
            raise
        finally:
            self._watch.listen()
            self._lock.release()

    def _keep(self, fabric: Fabric, record: NetworkRecord, whole: bool) -> Changes:
        memory, way = self._memory, way_of(record)
        mark, epoch = memory.stamp(record.nodes), memory.epoch
        if not whole and mark and memory.synced.get(way) == (mark, epoch):
            return Changes()  # somebody else was faster
        cluster = cluster_of(fabric, record)
        if self._peering is None or self._socket is None or self._way != way:
            self._forget()
            self._socket, self._way = RouteSocket(), way
            self._peering = Peering(self._socket)
            self._epoch = -1
        self._watch.pass_over(self._socket)
        if whole or epoch != self._epoch:
            changes = self._peering.resync(cluster)
        else:
            changes = self._peering.update(cluster)
        self._epoch = epoch
        memory.synced[way] = (mark, epoch)
        mtu = self._peering.pod_mtu()
        if mtu is not None:
            memory.mtus[way] = (mark, epoch, mtu)
        return changes

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = self._peering = None
