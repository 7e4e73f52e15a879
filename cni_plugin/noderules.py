"""The rules that the networks of a node want together, as their records and inventories say."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from json import loads

from cni_plugin import names
from cni_plugin.fabric import PORTS, Fabric, cluster_of, way_of
from cni_plugin.fields import as_address, as_network
from cni_plugin.hostports import DEFAULT_MARK_BIT
from cni_plugin.kernel import messages, observe
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.netlink import KernelError, RouteSocket
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.records import NetworkRecord, chain_of, counts_against
from cni_plugin.ruleset import NetworkRules, NodeRules, node_rules
from cni_plugin.spec import CniError, IPAddress, IPNetwork
from cni_plugin.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cni_plugin.destinations import Destinations
    from cni_plugin.kernel.portrecords import PortRecords
    from ipam.inventory import Node

_DIRECT = "direct"  # the kind of state that holds what inventories said last
_OUR_NAME = len("veth") + 11  # characters of a host veth's name; the reference's has 12
_HEX = frozenset("0123456789abcdef")


def wanted(fabric: Fabric) -> NodeRules:
    """The rules of all networks: worked out when a record or an inventory changed."""
    memory = fabric.memory
    records = fabric.records.all()
    paths = {record.nodes for record in records if record.nodes}
    marks = [(memory.stamp(path), path) for path in paths]
    basis = (records, marks, memory.epoch if marks else 0)
    whole = all(mark for mark, _ in marks)
    if memory.wanted is not None and whole and (memory.watched or not marks):
        known, rules = memory.wanted
        if known == basis:
            return rules
    stepped = memory.work_out(fabric, records) if memory.work_out is not None else None
    if stepped is not None:
        memory.wanted = (basis, stepped)
        return stepped
    networks, complete = networks_of(fabric, records)
    rules = node_rules(networks, mark(fabric, records))
    memory.wanted = (basis, rules) if complete else None
    return rules


def networks_of(
    fabric: Fabric, records: Sequence[NetworkRecord]
) -> tuple[list[NetworkRules], bool]:
    """What each network wants, and whether all inventories could be read."""
    networks, complete = [], True
    for record in records:
        known, is_current = _known(fabric, record)
        complete = complete and is_current
        port = overlay_port(record)
        networks.append(
            NetworkRules(
                record.subnets,
                record.masquerade,
                record.direct + (known.direct if record.masquerade else ()),
                record.bridge,
                record.ingress_policy,
                record.accept_forwarding,
                record.host_ports,
                port,
                known.nodes if port else (),
                known.own if port else (),
            )
        )
    return networks, complete


def mark(fabric: Fabric, records: Sequence[NetworkRecord]) -> int:
    """The node has one: where networks ask for different ones, that of the newest record."""
    mapping = [record for record in records if record.host_ports] or records
    if len({record.mark_bit for record in mapping}) > 1:
        return 1 << max(mapping, key=fabric.records.age_key).mark_bit
    return 1 << (mapping[0].mark_bit if mapping else DEFAULT_MARK_BIT)


def overlay_port(record: NetworkRecord) -> int:
    """The UDP port where the overlay may listen for the network; 0 when it never does. `auto`
    may need it with the next node, so the port is guarded before."""
    cross = record.cross_node
    return cross.port if record.nodes and cross.backend != "host-gw" else 0


class _Known(NamedTuple):
    """What an inventory says that rules need: destinations that are never masqueraded, the
    addresses of all nodes, and this node's, which nobody remembers for it."""

    direct: tuple[IPNetwork, ...] = ()
    nodes: tuple[IPAddress, ...] = ()
    own: tuple[IPAddress, ...] = ()


def _known(fabric: Fabric, record: NetworkRecord) -> tuple[_Known, bool]:
    """What the record's inventory says; when it can't be read, what was known last, and False."""
    if not needs_nodes(record):
        return _Known(), True
    from cni_plugin import destinations

    try:
        cluster = cluster_of(fabric, record)
    except CniError:
        saved = StateFolder(fabric.key, _DIRECT).read(record.network)
        return _decoded(saved), False
    by_name = remember(fabric, record, cluster.inventory.nodes)
    found = _Known(
        tuple(network for each in by_name.values() for network in each.networks),
        tuple(address for each in by_name.values() for address in each.addresses),
        destinations.reached_at(cluster.own),
    )
    return found, True


def needs_nodes(record: NetworkRecord) -> bool:
    """Whether the rules of a network depend on its inventory."""
    return bool(record.nodes) and (record.masquerade or overlay_port(record) > 0)


def remember(
    fabric: Fabric, record: NetworkRecord, nodes: Sequence[Node]
) -> Mapping[str, Destinations]:
    """Write down what the rules take of these nodes, for the day when their inventory can't be
    read; it is returned by the nodes' names."""
    from cni_plugin import destinations

    memory = fabric.memory
    memory.destinations = by_name = destinations.of_nodes(nodes, memory.destinations)
    direct = tuple(network for each in by_name.values() for network in each.networks)
    if memory.saved.get(record.network) != direct:  # it holds the addresses as well
        saved, data = StateFolder(fabric.key, _DIRECT), _encoded(by_name.values())
        if saved.read(record.network) != data:
            saved.write(record.network, data)
        memory.saved[record.network] = direct
    return by_name


def _encoded(known: Collection[Destinations]) -> bytes:
    direct = ", ".join(each.networks_text for each in known)
    nodes = ", ".join(each.addresses_text for each in known)
    return f'{{"direct": [{direct}], "nodes": [{nodes}]}}'.encode()


def _decoded(data: bytes | None) -> _Known:
    """The opposite; of an older podwire's, a list, the destinations alone."""
    document = loads(data) if data else []
    if isinstance(document, list):
        document = {"direct": document, "nodes": []}
    return _Known(
        tuple(as_network(text, "direct") for text in document["direct"]),
        tuple(as_address(text, "nodes") for text in document["nodes"]),
    )


# --- networks that are gone -------------------------------------------------------------------


def without_pods(fabric: Fabric, record: NetworkRecord) -> Iterator[NetworkRecord]:
    """The records that count against this one though their networks have no pod here.

    A runtime that forgets a configuration never says so. One with peers stays unless this one has
    the same: the node itself reaches their pods.
    """
    for other in fabric.records.all():
        if not counts_against(other, record):
            continue
        if other.nodes and way_of(other) != way_of(record):
            continue
        if not _has_pods(fabric.route_socket, other):
            yield other


def drop_empty(fabric: Fabric, record: NetworkRecord) -> list[str]:
    """Forget these records; what was done, in words. The rules are the caller's to keep.

    An ADD marks its pod's link before it looks for its record: one that has found it is seen when
    the links are looked at again, and any other writes it anew.
    """
    done = []
    for other in without_pods(fabric, record):
        fabric.records.forget(other.network)
        if not _has_pods(fabric.route_socket, other):
            done.append(f"forget network {other.network}, which has no pods here any more")
        elif fabric.records.of(other.network) is None:
            fabric.records.restore(other)
    return done


def _has_pods(route_socket: RouteSocket, record: NetworkRecord) -> bool:
    """Whether the network may have pods here. Those of other plugins have no mark: on the record's
    bridge they count, and where podwire is chained and knows of no bridge they can't be told."""
    prefix = names.alias_prefix(chain_of(record))
    try:
        bridge = observe.link(route_socket, record.bridge) if record.bridge else None
        dump = messages.dump_links(kind="veth")  # whole: a pod that is overlooked loses its rules
        links = [observe.state(entry) for entry in route_socket.dump(dump)]
    except KernelError:
        return True
    if any(link.alias.startswith(prefix) for link in links):
        return True
    if not record.bridge:
        return record.network != chain_of(record)
    return bridge is not None and any(
        link.master == bridge.ifindex and not link.alias and not _is_being_made(link.name)
        for link in links
    )


def _is_being_made(name: str) -> bool:
    """Whether the name of a host veth without its mark is one of ours."""
    return name.startswith("veth") and len(name) == _OUR_NAME and _HEX.issuperset(name[4:])


class Refill:
    """What fills host-port maps that are made anew: what the records of the ports say.

    Once it was asked, nobody changes these records until it is closed.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._stack = ExitStack()
        self._records: PortRecords | None = None

    def __enter__(self) -> Refill:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, version: int) -> list[Message]:
        folder = StateFolder(self._fabric.key, PORTS)
        if not folder.stamp():
            return []  # there was never one
        from cni_plugin.kernel import portelements, portrecords

        if self._records is None:
            self._records = portrecords.PortRecords(folder)
            self._stack.enter_context(self._records.locked())
        entries = [
            entry
            for record in self._records.everything().values()
            for entry in portelements.entries_of(record)
            if entry.version == version
        ]
        return portelements.additions(entries)
