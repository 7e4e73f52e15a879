"""The way to what the networks of a node share, and what is known of it.

`Fabric` leads to the kernel and to the records; `Memory` is what a process has found to be true
there, so that an agent need not look at all of it for each pod. Nothing depends on that memory:
who has none looks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from time import time_ns

from cni_plugin.kernel.firewall import Firewall
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.netlink import RouteSocket
from cni_plugin.kernel.nfnetlink import NetfilterSocket
from cni_plugin.kernel.nftmessages import get_generation
from cni_plugin.kernel.statefolder import node_key
from cni_plugin.records import NetworkRecord, Records
from cni_plugin.ruleset import NodeRules
from cni_plugin.spec import IPNetwork
from cni_plugin.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cni_plugin.cluster import Cluster
    from cni_plugin.destinations import Destinations
    from cni_plugin.paths import Changes, Survey
    from ipam.inventory import Inventory

PORTS = "ports"  # the kind of state that holds the records of host ports
_SETTLED_NS = 20_000_000  # as in records: a file's time may stand still for so long

Way = tuple[object, ...]
"""What a cluster is worked out from: the inventory's path, this node's name, the configuration."""
Stamp = tuple[int, ...]
"""What of a file changes when its content does; () when it has just changed, or is not there."""


def stamp(path: str) -> Stamp:
    """The stamp of the file at `path`: () equals no other."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return () if time_ns() - status.st_ctime_ns < _SETTLED_NS else _stamped(status)


def exact_stamp(path: str) -> Stamp:
    """The stamp of a file that only this process writes; () when it is not there."""
    try:
        return _stamped(os.stat(path))
    except OSError:
        return ()


def _stamped(status: os.stat_result) -> Stamp:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Verified(NamedTuple):
    """Rules that the kernel was seen to hold, at which generation, after how many transactions of
    this process."""

    rules: NodeRules
    generation: int
    moves: int


class Joined(NamedTuple):
    stamp: Stamp
    epoch: int
    cluster: Cluster


class Kept(NamedTuple):
    """A record that was kept, and what would have moved with anything that it depends on."""

    record: NetworkRecord
    records: int
    inventory: Stamp
    epoch: int
    verified: Verified


class Memory:
    """What a process knows to be true of its network namespace; an agent's threads share one.

    Every value is replaced whole. `moves` counts the transactions of this process: one that two
    threads count as one only makes somebody look once more. `epoch` moves when something happened
    to links, addresses, routes or the overlay; it counts while `watched`, which says that somebody
    listens to the kernel and moves it. `keep_peers`, where set, makes the paths to the peers right
    with what it remembers of them. `written` are inventories that this process wrote itself, by
    their paths: nobody has to read them again. `survey`, where set, tells what `keep_peers` has
    found out of the network for a way. `join` and `work_out` are `cluster.join` of an inventory of
    `written` and `noderules.anew` at the cost of what changed; the latter answers None where it
    can't. A `brief` one is of a process that serves one call: an inventory is read once.
    """

    def __init__(self, brief: bool = False) -> None:
        self.brief = brief
        self.watched = False
        self.epoch = 0
        self.moves = 0
        self.records: Records | None = None
        self.kept: dict[str, Kept] = {}
        self.verified: Verified | None = None
        self.wanted: tuple[object, NodeRules] | None = None
        self.joined: dict[Way, Joined] = {}
        self.mtus: dict[Way, tuple[Stamp, int, int]] = {}
        self.synced: dict[Way, tuple[Stamp, int]] = {}
        self.saved: dict[str, tuple[IPNetwork, ...]] = {}
        self.destinations: dict[str, Destinations] = {}
        self.written: dict[str, tuple[Stamp, Inventory]] = {}
        self.keep_peers: Callable[[Fabric, NetworkRecord], Changes] | None = None
        self.survey: Callable[[Way], Survey | None] | None = None
        self.join: Callable[[RouteSocket, NetworkRecord, Inventory], Cluster] | None = None
        self.work_out: Callable[[Fabric, Sequence[NetworkRecord]], NodeRules | None] | None = None

    def happened(self) -> None:
        """Something changed: who trusted what was verified before looks again."""
        self.epoch += 1

    def stamp(self, path: str) -> Stamp:
        """As the function; a file that this process wrote has settled at once."""
        return self.stamp_written(path) or stamp(path)

    def stamp_written(self, path: str) -> Stamp:
        """The stamp of a file that is as this process wrote it; () for any other."""
        written, _ = self.written.get(path, ((), None))
        return written if written and written == exact_stamp(path) else ()


class _CountingSocket(NetfilterSocket):
    """Tells the memory of each transaction; each has to change something, or the ruleset's
    generation stays, and somebody else's change could pass for it."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory = memory
        self._question = get_generation()

    def generation(self) -> int:
        """As the other's; asked for each pod, so the question is put together once."""
        entry = self.get(self._question)
        return int(entry.get_attr("NFTA_GEN_ID")) if entry is not None else 0

    def transaction(self, messages: Sequence[Message], generation: int = 0) -> None:
        super().transaction(messages, generation)
        if messages:
            self._memory.moves += 1


class Fabric:
    """The way to what a node's networks share; of one namespace, and for one thread.

    The socket of nftables is opened when first needed: call from the node's own namespace.
    """

    def __init__(self, route_socket: RouteSocket, memory: Memory | None = None) -> None:
        """`route_socket` stays the caller's."""
        self.route_socket = route_socket
        self.memory = Memory(brief=True) if memory is None else memory
        self.given: dict[Way, Cluster] = {}  # what a caller has read just now
        self._key = ""
        self._netfilter: NetfilterSocket | None = None
        self._firewall: Firewall | None = None

    def close(self) -> None:
        if self._netfilter is not None:
            self._netfilter.close()
            self._netfilter = self._firewall = None

    @property
    def key(self) -> str:
        """The node's, for its state folders."""
        self._key = self._key or node_key()
        return self._key

    @property
    def records(self) -> Records:
        if self.memory.records is None:
            self.memory.records = Records(self.key)
        return self.memory.records

    @property
    def netfilter(self) -> NetfilterSocket:
        """For host ports as well: transactions through it are known to be ours."""
        if self._netfilter is None:
            self._netfilter = _CountingSocket(self.memory)
        return self._netfilter

    @property
    def firewall(self) -> Firewall:
        if self._firewall is None:
            self._firewall = Firewall(self.netfilter)
        return self._firewall


def way_of(record: NetworkRecord) -> Way:
    return record.nodes, record.node_name, record.cross_node


def cluster_of(fabric: Fabric, record: NetworkRecord) -> Cluster:
    """The inventory of a record and this node in it, as `cluster.join`; read when it changed."""
    memory, way, mark = fabric.memory, way_of(record), fabric.memory.stamp(record.nodes)
    if way in fabric.given:
        return fabric.given[way]
    joined = memory.joined.get(way)
    if joined is not None and memory.brief:
        return joined.cluster
    if joined is not None and mark and joined[:2] == (mark, memory.epoch) and memory.watched:
        return joined.cluster._replace(surveys=[])
    epoch = memory.epoch
    known = memory.written[record.nodes][1] if memory.stamp_written(record.nodes) else None
    if known is not None and memory.join is not None:
        cluster = memory.join(fabric.route_socket, record, known)
    else:
        # And with it the overlay: a node without peers needs neither.
        from cni_plugin import cluster as clusters

        cluster = clusters.join(
            record.nodes, record.node_name, record.cross_node, fabric.route_socket, known
        )
    memory.joined[way] = Joined(mark, epoch, cluster)
    return cluster
