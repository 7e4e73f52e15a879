"""The elements of host ports: what a record says, as keys and data of nftables' maps.

A key is protocol and port, in `HOST_PORTS_IP` behind the node's address; the data are the pod's
address and port. Each part of such a concatenation fills whole registers of 4 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cni_plugin import ruleset
from cni_plugin.hostports import PROTOCOLS, HostPort, PortRecord
from cni_plugin.kernel import nftsets
from cni_plugin.kernel.messages import Message
from cni_plugin.kernel.nftsets import Element
from cni_plugin.typed import NamedTuple

MAPS = (ruleset.HOST_PORTS, ruleset.HOST_PORTS_IP, ruleset.UNMASKED_PORTS)
"""The maps and the set that have such elements."""


class Entry(NamedTuple):
    """An element, and where it belongs. One of a set may be several attachments'."""

    version: int
    where: str
    element: Element
    port: HostPort

    @property
    def shared(self) -> bool:
        return self.where == ruleset.UNMASKED_PORTS


def entries_of(record: PortRecord) -> Iterator[Entry]:
    """The elements of an attachment: keys and data as docs/datapath.md lists them."""
    for port in record.ports:
        key = _padded(bytes((PROTOCOLS[port.protocol],))) + _padded(port.host_port.to_bytes(2))
        data = port.pod.packed + _padded(port.container_port.to_bytes(2))
        if port.host_ip is None:
            element = Element(key, data, record.comment)
            yield Entry(port.version, ruleset.HOST_PORTS, element, port)
        else:
            element = Element(port.host_ip.packed + key, data, record.comment)
            yield Entry(port.version, ruleset.HOST_PORTS_IP, element, port)
        if not record.snat:
            # The key has no address: of two pods with one port on two addresses of the node,
            # neither is masqueraded when one asks for that. The chains look after the address was
            # rewritten, and two such pods have to be of two networks' configurations.
            element = Element(key, comment=record.comment)
            yield Entry(port.version, ruleset.UNMASKED_PORTS, element, port)


def _padded(data: bytes) -> bytes:
    """Each part of a concatenation fills whole registers of 4 bytes."""
    return data + bytes(-len(data) % 4)


def additions(entries: Sequence[Entry]) -> list[Message]:
    return [
        message
        for (version, where, shared), elements in _grouped(entries).items()
        for message in nftsets.add_elements(version, ruleset.TABLE, where, elements, not shared)
    ]


def removals(entries: Sequence[Entry]) -> list[Message]:
    return [
        message
        for (version, where, _), elements in _grouped(entries).items()
        for message in nftsets.delete_elements(
            version, ruleset.TABLE, where, [Element(element.key) for element in elements]
        )
    ]


def _grouped(entries: Sequence[Entry]) -> dict[tuple[int, str, bool], list[Element]]:
    groups: dict[tuple[int, str, bool], list[Element]] = {}
    shared: set[tuple[int, str, bytes]] = set()
    for entry in entries:
        key = entry.version, entry.where, bytes(entry.element.key)
        if not entry.shared or key not in shared:
            groups.setdefault((entry.version, entry.where, entry.shared), []).append(entry.element)
        if entry.shared:
            shared.add(key)
    return groups


def described(element: Element) -> str:
    """Where an element that is not as it should be leads."""
    address = bytes(element.data[:-4])
    port = int.from_bytes(element.data[-4:-2])
    shown = ".".join(map(str, address)) if len(address) == 4 else address.hex(":", 2)
    return f"{shown} port {port}, of {element.comment or 'nobody'}"
