"""What a node has to keep up for each of its networks, remembered beside the kernel.

An ADD writes the record of its network when it differs; the agent's upkeep, CHECK, `podwire
status` and `podwire uninstall` work from it, since no runtime tells them a configuration. One file
for each network, a JSON object in `kernel.statefolder`'s folder: it lives as long as the kernel.

Rules:
- `FORMAT` moves when a key gets another meaning. A file of another format is an error, never a
  guess; a key that an older podwire did not write has its default; unknown keys are passed over.
- What the inventory says is not repeated here: the record names the file.
"""

from __future__ import annotations

import os
from json import dumps, loads
from time import time_ns

from cni_plugin.crossnode import CrossNode
from cni_plugin.fields import Fields, as_network, shown
from cni_plugin.hostports import DEFAULT_MARK_BIT
from cni_plugin.kernel.statefolder import StateFolder
from cni_plugin.ruleset import ISOLATED, OPEN
from cni_plugin.spec import CniError, Code, IPNetwork
from cni_plugin.typed import Any, NamedTuple

KIND = "networks"
FORMAT = 1
_MOST_SUBNETS = 4096  # that are kept from before
_SETTLED_NS = 20_000_000  # older kernels move a folder's time every 1 to 10 ms only


class NetworkRecord(NamedTuple):
    """`subnets` are those of this node's pods, `direct` the configured destinations that see the
    pods' own addresses, `nodes` the inventory's path ("" for none). `host_ports` False: no pod of
    it ever maps ports; `mark_bit` is what the others' packets are marked with on their way."""

    network: str
    subnets: tuple[IPNetwork, ...] = ()
    masquerade: bool = False
    direct: tuple[IPNetwork, ...] = ()
    bridge: str = ""
    ingress_policy: str = "open"
    accept_forwarding: bool = True
    host_ports: bool = True
    mark_bit: int = DEFAULT_MARK_BIT
    nodes: str = ""
    node_name: str = ""
    cross_node: CrossNode = CrossNode()


def encode(record: NetworkRecord) -> bytes:
    """The content of the record's file."""
    document = {"format": FORMAT, **record._asdict()}
    for key in ("subnets", "direct"):
        document[key] = [str(network) for network in document[key]]
    cross = record.cross_node._asdict()
    cross["cidr"] = str(cross["cidr"]) if cross["cidr"] is not None else None
    document["cross_node"] = cross
    return dumps(document, indent=1).encode() + b"\n"


def decode(data: bytes, source: str) -> NetworkRecord:
    """The record in a file's content; `source` is its path, for errors.

    Raises CniError 6 for what is none, or of another format.
    """
    try:
        return _record(Fields(_document(data)))
    except CniError as e:
        remedy = "remove the file: the next ADD of this network writes it anew"
        raise CniError(Code.DECODE_FAILURE, f"{source}: {e.msg}", remedy) from e


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise CniError(Code.DECODE_FAILURE, f"not valid JSON: {e}") from e
    if not isinstance(document, dict):
        raise CniError(Code.DECODE_FAILURE, f"expected an object, got {shown(document)}")
    if document.get("format") != FORMAT:
        written = shown(document.get("format"))
        raise CniError(
            Code.DECODE_FAILURE, f"format {written} of another podwire, this one reads {FORMAT}"
        )
    return document


def _record(fields: Fields) -> NetworkRecord:
    plain = NetworkRecord(fields.text("network"))
    if not plain.network:
        raise CniError(Code.DECODE_FAILURE, "network: missing")
    mark_bit = fields.integer("mark_bit", 0, 31)
    return NetworkRecord(
        plain.network,
        _networks(fields, "subnets"),
        fields.flag("masquerade"),
        _networks(fields, "direct"),
        fields.text("bridge"),
        fields.text("ingress_policy", plain.ingress_policy),
        fields.flag("accept_forwarding", plain.accept_forwarding),
        fields.flag("host_ports", plain.host_ports),
        plain.mark_bit if mark_bit is None else mark_bit,
        fields.text("nodes"),
        fields.text("node_name"),
        _cross_node(fields.child("cross_node")),
    )


def _networks(fields: Fields, key: str) -> tuple[IPNetwork, ...]:
    return tuple(as_network(value, path) for path, value in fields.items(key))


def _cross_node(fields: Fields) -> CrossNode:
    plain = CrossNode()
    vni, port = fields.integer("vni", 1, 2**24 - 1), fields.integer("port", 1, 65535)
    return CrossNode(
        fields.text("backend", plain.backend),
        plain.vni if vni is None else vni,
        plain.port if port is None else port,
        fields.integer("mtu", 0, 65535) or 0,
        fields.text("checksum_offload", plain.checksum_offload),
        fields.text("interface"),
        fields.text("interface_regex"),
        fields.network("cidr"),
    )


def _plain(record: NetworkRecord) -> NetworkRecord:
    return record._replace(subnets=())


def _within(subnet: IPNetwork, known: tuple[IPNetwork, ...]) -> bool:
    return any(
        subnet.version == other.version
        and subnet.prefixlen >= other.prefixlen
        and subnet.network_address in other
        for other in known
    )


def chain_of(record: NetworkRecord) -> str:
    """The network's name in its configuration: what podwire does behind another plugin of the
    chain has a record of its own, with a plus sign in its name."""
    return record.network.partition("+")[0]


def counts_against(other: NetworkRecord, record: NetworkRecord) -> bool:
    """Whether the other network changes what the rules do for the pods of this one: where they
    share a bridge or addresses, the stricter policy holds, and what either lets through."""
    if chain_of(other) == chain_of(record):
        return False
    shared_bridge = other.bridge != "" and other.bridge == record.bridge
    if shared_bridge and _strictness(other) > _strictness(record):
        return True
    more = (
        other.masquerade > record.masquerade
        or other.accept_forwarding > record.accept_forwarding
        or (record.masquerade and not set(other.direct).issubset(record.direct))
    )
    return more and any(
        a.version == b.version and a.overlaps(b) for a in record.subnets for b in other.subnets
    )


def _strictness(record: NetworkRecord) -> int:
    return (record.ingress_policy != OPEN) + (record.ingress_policy == ISOLATED)


class _Known(NamedTuple):
    """What was read at once, by an order of names; threads share it, so it is replaced whole."""

    stamp: int = -1
    records: tuple[NetworkRecord, ...] = ()
    broken: tuple[CniError, ...] = ()

    def of(self, network: str) -> NetworkRecord | None:
        return next((record for record in self.records if record.network == network), None)


class Records:
    """The records of the node with this key (`statefolder.node_key`), with what was read kept.

    One that can't be read is left out of `all`, and told by `broken`.
    """

    def __init__(self, key: str) -> None:
        self._folder = StateFolder(key, KIND)
        self._known = _Known()

    def all(self) -> tuple[NetworkRecord, ...]:
        """The records of all networks, by the order of their names."""
        return self._read().records

    @property
    def broken(self) -> tuple[CniError, ...]:
        """Why some could not be read, as of the last look."""
        return self._known.broken

    def of(self, network: str) -> NetworkRecord | None:
        """The record of one network."""
        return self._read().of(network)

    def restore(self, record: NetworkRecord) -> None:
        """Write a record as it was before another one took its place."""
        self._folder.write(record.network, encode(record))

    def holds(self, record: NetworkRecord) -> bool:
        """Whether the network's record says this, of these subnets at least."""
        known = self._read().of(record.network)
        if known is None or known == record:
            return known is not None
        record = record._replace(host_ports=record.host_ports or known.host_ports)
        if _plain(known) != _plain(record):
            return False
        return all(_within(subnet, known.subnets) for subnet in record.subnets)

    def stamp(self) -> int:
        """Moves whenever a record comes, goes or is replaced (ns)."""
        return self._folder.stamp()

    def settled(self) -> int:
        """The stamp of what was read last; 0 when a change since might not show by it."""
        return max(self._known.stamp, 0)

    def remember(self, record: NetworkRecord) -> bool:
        """Write the record, unless `holds`; whether it was written.

        Subnets that were known stay: there may be pods in them, from before the configuration was
        changed or with ranges of their own.
        """
        if self.holds(record):
            return False
        known = self._read().of(record.network)
        if known is not None:
            older = known.subnets[-_MOST_SUBNETS:]
            new = tuple(s for s in record.subnets if not _within(s, older))
            # A pod without host ports says nothing of other pods'.
            ports = record.host_ports or known.host_ports
            record = record._replace(subnets=(*older, *new), host_ports=ports)
        self._folder.write(record.network, encode(record))
        return True

    def age_key(self, record: NetworkRecord) -> tuple[int, str]:
        """Sorts records by when they were written (ns); by their names where that is the same."""
        try:
            status = os.stat(f"{self._folder.path}/{record.network}")
        except OSError:  # it went meanwhile
            return 0, record.network
        return status.st_mtime_ns, record.network

    def forget(self, network: str) -> bool:
        """Remove a network's record; whether there was one."""
        return self._folder.remove(network)

    def _read(self) -> _Known:
        """What the folder holds now; from memory when it is as it was."""
        stamp = self._folder.stamp()
        known = self._known
        if stamp == known.stamp:
            return known
        found: dict[str, NetworkRecord] = {}
        broken = []
        for name in self._folder.names():
            try:
                data = self._folder.read(name)
                if data is None:
                    continue  # it went meanwhile
                record = decode(data, f"{self._folder.path}/{name}")
            except CniError as e:
                broken.append(e)
                continue
            found[record.network] = record
        # A change in the same tick of the file system's clock would not show.
        settled = stamp if time_ns() - stamp > _SETTLED_NS else -1
        self._known = known = _Known(settled, tuple(found.values()), tuple(broken))
        return known
